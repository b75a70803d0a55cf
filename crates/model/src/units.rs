//! Units that must not be confused: CPU in thousandths of a core, memory and storage in bytes.
//!
//! **Invariant:** a bare number never crosses a public function where one of these exists.

use std::fmt;

use serde::{Deserialize, Serialize};

/// CPU in thousandths of a core; ARM writes `0.25`, we keep `250`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MilliCpu(pub u32);

impl MilliCpu {
    /// From ARM's decimal cores (`0.25`). `None` when negative, not finite, above 1024 cores or finer than a thousandth.
    #[must_use]
    pub fn from_cores(cores: f64) -> Option<Self> {
        let milli = cores * 1000.0;
        if !milli.is_finite() || !(0.0..=1_024_000.0).contains(&milli) || (milli - milli.round()).abs() > 1e-6 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "range checked above")]
        Some(Self(milli.round() as u32))
    }

    /// ARM's decimal cores.
    #[must_use]
    pub fn cores(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cores())
    }
}

/// An amount of memory or storage in bytes; ARM writes `0.5Gi`, `512Mi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bytes(pub u64);

impl Bytes {
    /// One mebibyte.
    pub const MIB: u64 = 1 << 20;
    /// One gibibyte.
    pub const GIB: u64 = 1 << 30;

    /// Parses a Kubernetes quantity: a decimal number with `Ki`, `Mi`, `Gi`, `Ti`, `k`, `M`, `G`, `T` or nothing behind it.
    #[must_use]
    pub fn parse_quantity(text: &str) -> Option<Self> {
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let number: f64 = number.parse().ok()?;
        let factor: f64 = match suffix.trim() {
            "" => 1.0,
            "Ki" => 1024.0,
            "Mi" => 1_048_576.0,
            "Gi" => 1_073_741_824.0,
            "Ti" => 1_099_511_627_776.0,
            "k" | "K" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            "T" => 1e12,
            _ => return None,
        };
        let bytes = number * factor;
        if !bytes.is_finite() || !(0.0..=9e18).contains(&bytes) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "range checked above")]
        Some(Self(bytes.round() as u64))
    }

    /// The shortest quantity ARM would write: `0.5Gi`, `512Mi`, `100`.
    #[must_use]
    pub fn to_quantity(self) -> String {
        if self.0.is_multiple_of(Self::GIB / 4) {
            #[expect(clippy::cast_precision_loss, reason = "a multiple of a quarter")]
            let gib = self.0 as f64 / Self::GIB as f64;
            return format!("{gib}Gi");
        }
        if self.0.is_multiple_of(Self::MIB) {
            return format!("{}Mi", self.0 / Self::MIB);
        }
        self.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_survive_the_round_trip() {
        for text in ["0.5Gi", "1Gi", "2.5Gi", "4Gi", "100Mi", "77"] {
            assert_eq!(Bytes::parse_quantity(text).unwrap().to_quantity(), text);
        }
        assert_eq!(Bytes::parse_quantity("0.25Gi"), Bytes::parse_quantity("256Mi"));
        for bad in ["", "Gi", "-1Gi", "1Xi", "1e40Gi", "."] {
            assert_eq!(Bytes::parse_quantity(bad), None, "{bad}");
        }
    }

    #[test]
    fn cpu_is_exact_to_a_thousandth() {
        assert_eq!(MilliCpu::from_cores(0.25), Some(MilliCpu(250)));
        assert_eq!(MilliCpu::from_cores(0.000_1), None);
        assert_eq!(MilliCpu::from_cores(-1.0), None);
        assert_eq!(MilliCpu::from_cores(f64::NAN), None);
        assert_eq!(MilliCpu(1750).to_string(), "1.75");
    }
}
