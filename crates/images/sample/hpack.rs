//! Header compression of HTTP/2 (RFC 7541), as much as a server that compresses nothing needs: the whole decoder, and
//! literals without indexing for answers.
//!
//! **Invariant:** what a peer sends takes at most [`LIST_MAX`] bytes of decoded headers and 4,096 bytes of table.

use std::collections::VecDeque;

/// Most bytes of one decoded header list.
const LIST_MAX: usize = 64 * 1024;
/// The size of the dynamic table that peers may use; the protocol's default, which is never changed.
const TABLE_MAX: usize = 4096;

/// Names and values 1 to 61 that every table begins with (RFC 7541, appendix A).
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// Bits of each byte's Huffman code (RFC 7541, appendix B). The code is canonical: lengths say everything.
#[rustfmt::skip]
const HUFFMAN_BITS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];
const HUFFMAN_BITS_MAX: usize = 30;

/// Decodes the header blocks of one connection, in their order.
pub(crate) struct Decoder {
    /// The newest first.
    dynamic: VecDeque<(String, String)>,
    dynamic_bytes: usize,
    huffman: Huffman,
}

/// Codes by their length: the first of each length, how many there are, and the bytes in the order of their codes.
struct Huffman {
    count: [u32; HUFFMAN_BITS_MAX + 1],
    bytes: Vec<u8>,
}

impl Huffman {
    fn new() -> Self {
        let mut bytes: Vec<u8> = (0..=255).collect();
        bytes.sort_by_key(|byte| (HUFFMAN_BITS[usize::from(*byte)], *byte));
        let mut count = [0; HUFFMAN_BITS_MAX + 1];
        for bits in HUFFMAN_BITS {
            count[usize::from(bits)] += 1;
        }
        Self { count, bytes }
    }

    /// What was encoded; the padding behind the last code is all ones and shorter than a byte.
    fn decode(&self, data: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(data.len() * 2);
        let (mut code, mut bits, mut first, mut index) = (0_u32, 0_usize, 0_u32, 0_u32);
        for place in 0..data.len() * 8 {
            code = code << 1 | u32::from(data[place / 8] >> (7 - place % 8) & 1);
            bits += 1;
            if bits > HUFFMAN_BITS_MAX {
                return None;
            }
            first <<= 1;
            let count = self.count[bits];
            if code - first < count {
                out.push(self.bytes[(index + code - first) as usize]);
                (code, bits, first, index) = (0, 0, 0, 0);
            } else {
                index += count;
                first += count;
            }
        }
        (bits < 8 && code == (1 << bits) - 1).then_some(out)
    }
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { dynamic: VecDeque::new(), dynamic_bytes: 0, huffman: Huffman::new() }
    }

    /// The headers of a block; none when it is not well formed.
    pub(crate) fn decode(&mut self, block: &[u8]) -> Option<Vec<(String, String)>> {
        let mut rest = block;
        let mut headers = Vec::new();
        let mut total = 0;
        while let Some(&first) = rest.first() {
            let field = if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                self.entry(index)?
            } else if first & 0xe0 == 0x20 {
                // a change of the table's size: everything that does not fit is forgotten
                let size = integer(&mut rest, 5)?;
                if size > TABLE_MAX {
                    return None;
                }
                self.evict(size);
                continue;
            } else {
                let is_indexed = first & 0x40 != 0;
                let index = integer(&mut rest, if is_indexed { 6 } else { 4 })?;
                let name = if index == 0 { self.string(&mut rest)? } else { self.entry(index)?.0 };
                let value = self.string(&mut rest)?;
                if is_indexed {
                    self.insert(name.clone(), value.clone());
                }
                (name, value)
            };
            total += field.0.len() + field.1.len() + 32;
            if total > LIST_MAX {
                return None;
            }
            headers.push(field);
        }
        Some(headers)
    }

    fn entry(&self, index: usize) -> Option<(String, String)> {
        match index.checked_sub(1)? {
            known if known < STATIC.len() => Some((STATIC[known].0.to_owned(), STATIC[known].1.to_owned())),
            later => self.dynamic.get(later - STATIC.len()).cloned(),
        }
    }

    fn string(&self, rest: &mut &[u8]) -> Option<String> {
        let is_huffman = rest.first()? & 0x80 != 0;
        let length = integer(rest, 7)?;
        let (data, behind) = rest.split_at_checked(length)?;
        *rest = behind;
        let bytes = if is_huffman { self.huffman.decode(data)? } else { data.to_vec() };
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn insert(&mut self, name: String, value: String) {
        let size = name.len() + value.len() + 32;
        if size > TABLE_MAX {
            self.evict(0);
            return;
        }
        self.evict(TABLE_MAX - size);
        self.dynamic_bytes += size;
        self.dynamic.push_front((name, value));
    }

    fn evict(&mut self, bytes_max: usize) {
        while self.dynamic_bytes > bytes_max {
            let Some((name, value)) = self.dynamic.pop_back() else { return };
            self.dynamic_bytes -= name.len() + value.len() + 32;
        }
    }
}

/// An integer with a prefix of so many bits.
fn integer(rest: &mut &[u8], bits: u32) -> Option<usize> {
    let mask = (1_u8 << bits) - 1;
    let (&first, mut behind) = rest.split_first()?;
    let mut value = usize::from(first & mask);
    if first & mask == mask {
        let mut shift = 0;
        loop {
            let (&byte, next) = behind.split_first()?;
            behind = next;
            if shift > 21 {
                return None;
            }
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = behind;
    Some(value)
}

/// A header block of literals.
pub(crate) fn encode(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            let length = text.len();
            if length < 127 {
                block.push(length as u8);
            } else {
                block.push(127);
                let mut rest = length - 127;
                while rest >= 128 {
                    block.push((rest % 128 + 128) as u8);
                    rest /= 128;
                }
                block.push(rest as u8);
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}
