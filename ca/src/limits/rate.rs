//! Rates by key, in bounded memory: the generic cell rate algorithm, which keeps one instant for each key.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Keys that one limiter remembers; each costs well under 100 bytes.
const MAX_KEYS: usize = 65_536;
/// How often a full limiter looks for keys that it may forget.
const SWEEP: Duration = Duration::from_secs(1);

/// So many a span of time, after a burst; or no limit at all. Written `1/s:20`, `30/m:5`, `500/s` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(Option<Allowance>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Allowance {
    /// Time after which one more is allowed; never zero.
    interval: Duration,
    /// How many may come at once; never zero.
    burst: u32,
}

/// A text is not a rate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a rate; write COUNT/UNIT or COUNT/UNIT:BURST with the unit s, m or h, as 1/s:20, or \"off\"")]
pub struct RateError(String);

impl Rate {
    /// `count` in `per`, and `burst` of them at once. Zeros count as one.
    pub const fn new(count: u32, per: Duration, burst: u32) -> Self {
        let count = if count == 0 { 1 } else { count };
        let interval = Duration::from_nanos((per.as_nanos() as u64 / count as u64).saturating_add(1));
        Self(Some(Allowance { interval, burst: if burst == 0 { 1 } else { burst } }))
    }

    /// No limit.
    pub const OFF: Self = Self(None);
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let bad = || RateError(text.to_owned());
        if text == "off" {
            return Ok(Self::OFF);
        }
        let (rate, burst) = match text.split_once(':') {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (text, None),
        };
        let (count, unit) = rate.split_once('/').ok_or_else(bad)?;
        let per = match unit {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(bad()),
        };
        // A number of 1 to 1,000,000 without a sign.
        let number = |text: &str| match text.parse::<u32>() {
            Ok(n @ 1..=1_000_000) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
            _ => Err(bad()),
        };
        let count = number(count)?;
        let burst = burst.map_or(Ok(count), number)?;
        Ok(Self::new(count, per, burst))
    }
}

/// One [`Rate`] for each key.
pub struct Limiter<K> {
    rate: Rate,
    state: Mutex<State<K>>,
}

struct State<K> {
    /// When the key's bucket is full again: the algorithm's "theoretical arrival time".
    full_at: HashMap<K, Instant>,
    swept_at: Option<Instant>,
}

impl<K> fmt::Debug for Limiter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Limiter").field(&self.rate).finish()
    }
}

impl<K: Eq + Hash> Limiter<K> {
    /// A limiter that has seen nobody.
    pub fn new(rate: Rate) -> Self {
        Self { rate, state: Mutex::new(State { full_at: HashMap::new(), swept_at: None }) }
    }

    /// Whether `key` has one left at `now`, without taking it. `Err`: how long until it has.
    pub fn look(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let Some(allowed) = self.rate.0 else { return Ok(()) };
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.full_at.get(key).map_or(Ok(()), |full_at| allowed.left(*full_at, now))
    }

    /// Takes one of `key`'s. `Err`: there is none, and how long until there is.
    ///
    /// With [`MAX_KEYS`] busy keys no further one is remembered, so a key beyond them is not limited: that it costs
    /// memory or locks others out would serve whoever sends from that many addresses.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let Some(allowed) = self.rate.0 else { return Ok(()) };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(full_at) = state.full_at.get_mut(&key) {
            allowed.left(*full_at, now)?;
            *full_at = (*full_at).max(now) + allowed.interval;
            return Ok(());
        }
        if state.has_room(now) {
            state.full_at.insert(key, now + allowed.interval);
        }
        Ok(())
    }

    #[cfg(test)]
    fn keys(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).full_at.len()
    }
}

impl<K> State<K> {
    /// Makes room by forgetting keys whose bucket is full again, which are as good as unknown.
    fn has_room(&mut self, now: Instant) -> bool {
        let due = self.swept_at.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP);
        if self.full_at.len() >= MAX_KEYS && due {
            self.swept_at = Some(now);
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        self.full_at.len() < MAX_KEYS
    }
}

impl Allowance {
    fn left(self, full_at: Instant, now: Instant) -> Result<(), Duration> {
        let owed = full_at.saturating_duration_since(now);
        let most = self.interval.saturating_mul(self.burst - 1);
        if owed <= most { Ok(()) } else { Err(owed - most) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let limiter = Limiter::new("2/s:3".parse().unwrap());
        let start = Instant::now();
        for _ in 0..3 {
            limiter.look(&"a", start).unwrap();
            limiter.take("a", start).unwrap();
        }
        let wait = limiter.take("a", start).unwrap_err();
        assert!(wait > Duration::from_millis(499) && wait < Duration::from_millis(501), "{wait:?}");
        assert!(limiter.look(&"a", start).is_err());
        limiter.take("b", start).unwrap();
        // What was refused is not charged, so the wait that was told is enough.
        limiter.take("a", start + wait).unwrap();
        assert!(limiter.take("a", start + wait).is_err());
        let later = start + Duration::from_secs(60);
        assert_eq!(
            (0..10).filter(|_| limiter.take("a", later).is_ok()).count(),
            3,
            "a rest restores the burst, no more"
        );
    }

    #[test]
    fn looking_takes_nothing_and_off_limits_nobody() {
        let now = Instant::now();
        let limiter = Limiter::new("1/h".parse().unwrap());
        assert!((0..100).all(|_| limiter.look(&1, now).is_ok()));
        let off = Limiter::new("off".parse().unwrap());
        assert!((0..100_000).all(|_| off.take(1, now).is_ok()));
        assert_eq!(off.keys(), 0);
    }

    #[test]
    fn memory_is_bounded_and_what_has_rested_is_forgotten() {
        let limiter = Limiter::new("1/s".parse().unwrap());
        let now = Instant::now();
        for key in 0..MAX_KEYS + 1000 {
            limiter.take(key, now).unwrap();
        }
        assert_eq!(limiter.keys(), MAX_KEYS);
        limiter.take(usize::MAX, now + Duration::from_secs(3)).unwrap();
        assert_eq!(limiter.keys(), 1);
        assert!(limiter.take(usize::MAX, now + Duration::from_secs(3)).is_err(), "the new key is limited again");
    }

    #[test]
    fn rates_are_read_as_they_are_documented_and_nothing_else_is() {
        assert_eq!("500/s".parse(), Ok(Rate::new(500, Duration::from_secs(1), 500)));
        assert_eq!("30/m:5".parse(), Ok(Rate::new(30, Duration::from_secs(60), 5)));
        assert_eq!("off".parse(), Ok(Rate::OFF));
        for bad in ["", "1", "1/", "/s", "0/s", "1/d", "1/s:", "1/s:0", "+1/s", "1.5/s", "1/s:1:1", "1000001/s", "OFF"]
        {
            assert_eq!(bad.parse::<Rate>(), Err(RateError(bad.to_owned())), "{bad:?}");
        }
    }
}
