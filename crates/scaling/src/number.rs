//! Arithmetic on thousandths: readings are compared as integers, so that no float rounding decides a replica.
//!
//! **Invariant:** total: absurd input saturates, nothing panics.

/// A value in thousandths, rounded to the nearest; negative and not-a-number give 0, infinity too.
pub fn milli(value: f64) -> u64 {
    let scaled = (value * 1000.0).round();
    if !scaled.is_finite() || scaled <= 0.0 {
        return 0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "finite and positive; `as` saturates above u64::MAX"
    )]
    {
        scaled as u64
    }
}

/// A value of so many thousandths.
#[expect(clippy::cast_precision_loss, reason = "beyond 2^53 thousandths nothing depends on the last digit")]
pub fn of_milli(milli: u64) -> f64 {
    milli as f64 / 1000.0
}

/// `ceil(value / target)`; a target of 0 counts as 1.
pub(crate) fn ceil_div(value: u128, target: u128) -> u32 {
    u32::try_from(value.div_ceil(target.max(1))).unwrap_or(u32::MAX)
}

/// Whether `value` is within `tolerance_percent` of `target * replicas`, both ends included.
pub(crate) fn within_tolerance(value: u128, target: u128, replicas: u128, tolerance_percent: u32) -> bool {
    let tolerance = u128::from(tolerance_percent);
    let due = target.saturating_mul(replicas);
    let value = value.saturating_mul(100);
    due.saturating_mul(100u128.saturating_sub(tolerance)) <= value && value <= due.saturating_mul(100 + tolerance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milli_of_anything() {
        for (value, expected) in [
            (0.067, 67),
            (100.0, 100_000),
            (-1.0, 0),
            (f64::NAN, 0),
            (f64::INFINITY, 0),
            (0.0004, 0),
            (1.0 / 15.0, 67),
            (1e300, u64::MAX),
        ] {
            assert_eq!(milli(value), expected, "{value}");
        }
    }

    #[test]
    fn tolerance_includes_its_ends() {
        for (value, inside) in [(44, false), (45, true), (55, true), (56, false)] {
            assert_eq!(within_tolerance(value, 5, 10, 10), inside, "{value}");
        }
        assert!(within_tolerance(u128::MAX, u128::MAX, u128::MAX, 10), "saturates instead of overflowing");
    }
}
