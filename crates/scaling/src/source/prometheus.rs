//! `prometheus`: the single value of an instant query.
//!
//! **Invariant:** several series are a mistake in the query, never a sum.

use super::params::Params;
use super::{Metric, Unreadable};

/// Metadata of a `prometheus` rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prometheus {
    /// Per replica.
    pub threshold: f64,
    /// The value must exceed this, default 0.
    pub activation: f64,
    /// An empty or infinite result is 0, default yes; otherwise it fails.
    pub ignore_null_values: bool,
}

impl Prometheus {
    pub(super) fn parse(params: &mut Params<'_>) -> Self {
        Self {
            threshold: params.target("threshold", None),
            activation: params.activation("activationThreshold"),
            ignore_null_values: params.flag("ignoreNullValues", true),
        }
    }

    /// From the values of the result, one per series; `None` = a series without a value.
    pub fn measure(&self, series: &[Option<f64>]) -> Result<Metric, Unreadable> {
        let value = match series {
            [] | [None] => None,
            [Some(value)] => Some(*value).filter(|value| value.is_finite()),
            several => {
                let number = several.len();
                return Err(Unreadable::new(format!("the query gave {number} series; aggregate them to one")));
            }
        };
        let value = match value {
            Some(value) => value,
            None if self.ignore_null_values => 0.0,
            None => return Err(Unreadable::new("the query gave an empty or infinite result")),
        };
        Ok(Metric { value, active: value > self.activation })
    }
}
