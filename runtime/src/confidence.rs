//! A confidence: how sure an answer is of itself, from 0 to 1.

use serde::{Deserialize, Serialize};

/// A number from 0 to 1, never NaN.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Confidence(f64);

impl Confidence {
    /// Reads what an agent stated: values outside 0 to 1 are clamped, NaN means that it stated nothing.
    #[must_use]
    pub fn stated(raw: f64) -> Option<Self> {
        (!raw.is_nan()).then(|| Self(raw.clamp(0.0, 1.0)))
    }

    /// 0 to 1.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

impl From<Confidence> for f64 {
    fn from(confidence: Confidence) -> f64 {
        confidence.0
    }
}

impl TryFrom<f64> for Confidence {
    type Error = String;

    fn try_from(raw: f64) -> Result<Self, String> {
        if (0.0..=1.0).contains(&raw) {
            Ok(Self(raw))
        } else {
            Err(format!("a confidence is a number from 0 to 1, not {raw}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_agents_state_is_clamped_and_nan_is_absent() {
        assert_eq!(Confidence::stated(7.3).map(Confidence::get), Some(1.0));
        assert_eq!(Confidence::stated(-0.1).map(Confidence::get), Some(0.0));
        assert_eq!(Confidence::stated(f64::INFINITY).map(Confidence::get), Some(1.0));
        assert_eq!(Confidence::stated(f64::NAN), None);
    }
}
