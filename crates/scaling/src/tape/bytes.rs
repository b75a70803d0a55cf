//! Whole numbers of few bytes: seven bits a byte, signed ones folded so that small ones stay small.
//!
//! **Invariant:** what is put is taken again; too few or too many bytes are an error.

use super::Damaged;

/// Bytes that are still to be read.
pub(super) struct Source<'a>(pub(super) &'a [u8]);

pub(super) fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(low_bits(number) | 0x80);
        number >>= 7;
    }
    bytes.push(low_bits(number));
}

pub(super) fn put_signed(bytes: &mut Vec<u8>, number: i64) {
    put_number(bytes, (number.cast_unsigned() << 1) ^ (number >> 63).cast_unsigned());
}

/// 0 for none, else one more than the number.
pub(super) fn put_option(bytes: &mut Vec<u8>, number: Option<u32>) {
    put_number(bytes, number.map_or(0, |number| u64::from(number) + 1));
}

pub(super) fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_number(bytes, u64::try_from(text.len()).unwrap_or(0));
    bytes.extend_from_slice(text.as_bytes());
}

fn low_bits(number: u64) -> u8 {
    u8::try_from(number & 0x7f).unwrap_or(0)
}

impl<'a> Source<'a> {
    pub(super) fn number(&mut self) -> Result<u64, Damaged> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Damaged("a number is cut"))?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Damaged("a number is too long"))
    }

    pub(super) fn signed(&mut self) -> Result<i64, Damaged> {
        let folded = self.number()?;
        Ok((folded >> 1).cast_signed() ^ -(folded & 1).cast_signed())
    }

    pub(super) fn count(&mut self) -> Result<u32, Damaged> {
        u32::try_from(self.number()?).map_err(|_| Damaged("a count is too large"))
    }

    pub(super) fn option(&mut self) -> Result<Option<u32>, Damaged> {
        match self.number()? {
            0 => Ok(None),
            number => u32::try_from(number - 1).map(Some).map_err(|_| Damaged("a count is too large")),
        }
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Damaged> {
        let length = usize::try_from(self.number()?).map_err(|_| Damaged("a text is too long"))?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(Damaged("a text is cut"))?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| Damaged("a text is not UTF-8"))
    }
}
