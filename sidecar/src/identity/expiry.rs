//! Says once for each identity that it nears its end, and that it has reached it.

use std::time::SystemTime;

use super::{Identity, NotValidNow, words_for};

/// A certificate that has less than this share of its life left is warned about: nobody has renewed it.
const UNRENEWED: f64 = 0.25;

/// What has been said of one identity.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub(super) enum Expiry {
    #[default]
    Nothing,
    Soon,
    Over,
}

impl Expiry {
    /// `whose` fault it is that it was not renewed, in words.
    pub(super) fn check(&mut self, identity: &Identity, now: SystemTime, whose: &str) {
        match identity.check_valid(now) {
            Err(why @ NotValidNow::Expired { .. }) if *self != Self::Over => {
                *self = Self::Over;
                tracing::error!("{why}; every new mesh connection is refused until there is a new one");
            }
            Ok(()) if *self == Self::Nothing => {
                let life = identity.not_after.duration_since(identity.not_before).unwrap_or_default();
                let left = identity.not_after.duration_since(now).unwrap_or_default();
                if left.as_secs_f64() < life.as_secs_f64() * UNRENEWED {
                    *self = Self::Soon;
                    tracing::warn!(serial = %identity.serial, "our own certificate expires in {}; {whose}", words_for(left));
                }
            }
            _ => {}
        }
    }
}
