//! Circuit breakers: finite bounds on what may be under way to one service (Envoy's `circuit_breakers.thresholds`).
//! What is beyond a bound is refused at once, because a queue that nobody bounds turns a slow service into a full one.

use std::{cell::Cell, fmt, rc::Rc};

use crate::config;

#[derive(Clone, Copy)]
enum Kind {
    Request,
    Pending,
    Connection,
    Retry,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Request, "max_requests"),
    (Kind::Pending, "max_pending_requests"),
    (Kind::Connection, "max_connections"),
    (Kind::Retry, "max_retries"),
];

/// One worker's share of a service's circuit breakers.
pub struct CircuitBreakers {
    limits: [u32; 4],
    used: [Cell<u32>; 4],
}

impl CircuitBreakers {
    /// Each limit is `ceil(limit / workers)`, so that the sum is never below what is configured, and above it by less
    /// than one for each worker. The kernel spreads connections over the workers evenly enough that no worker needs
    /// to borrow from another one.
    pub fn new(limits: &config::CircuitBreakers, workers: u32) -> Rc<Self> {
        let share = |limit: std::num::NonZeroU32| limit.get().div_ceil(workers.max(1));
        Rc::new(Self {
            limits: [
                share(limits.max_requests),
                share(limits.max_pending_requests),
                share(limits.max_connections),
                share(limits.max_retries),
            ],
            used: Default::default(),
        })
    }

    /// A request under way, until the permit is dropped.
    pub fn try_request(self: &Rc<Self>) -> Result<Permit, Overflow> {
        self.take(Kind::Request)
    }

    /// A request that waits for a connection or for the first endpoints, until the permit is dropped.
    pub fn try_pending(self: &Rc<Self>) -> Result<Permit, Overflow> {
        self.take(Kind::Pending)
    }

    /// A connection, from the moment that it is dialled until the permit is dropped.
    pub fn try_connection(self: &Rc<Self>) -> Result<Permit, Overflow> {
        self.take(Kind::Connection)
    }

    /// A retry under way, until the permit is dropped.
    pub fn try_retry(self: &Rc<Self>) -> Result<Permit, Overflow> {
        self.take(Kind::Retry)
    }

    /// Every bound by its name in the configuration, with this worker's limit and what is under way.
    pub fn usage(&self) -> [Usage; 4] {
        KINDS.map(|(kind, name)| Usage {
            name,
            limit: self.limits[kind as usize],
            used: self.used[kind as usize].get(),
        })
    }

    fn take(self: &Rc<Self>, kind: Kind) -> Result<Permit, Overflow> {
        let used = &self.used[kind as usize];
        if used.get() >= self.limits[kind as usize] {
            return Err(Overflow { which: KINDS[kind as usize].1, limit: self.limits[kind as usize] });
        }
        used.set(used.get() + 1);
        Ok(Permit { breakers: Rc::clone(self), kind })
    }
}

/// One bound of a [`CircuitBreakers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Its name under `circuit_breakers`.
    pub name: &'static str,
    /// This worker's share of it.
    pub limit: u32,
    /// What this worker has under way.
    pub used: u32,
}

/// The right to have one thing under way. Dropping it gives it back.
#[must_use = "a permit that is dropped at once bounds nothing"]
pub struct Permit {
    breakers: Rc<CircuitBreakers>,
    kind: Kind,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let used = &self.breakers.used[self.kind as usize];
        used.set(used.get().saturating_sub(1));
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({})", KINDS[self.kind as usize].1)
    }
}

/// A bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("circuit_breakers.{which} is reached: {limit} under way in this worker")]
pub struct Overflow {
    which: &'static str,
    limit: u32,
}

impl Overflow {
    /// The bound's name under `circuit_breakers`: `max_requests`, `max_pending_requests`, `max_connections` or
    /// `max_retries`. A metric label.
    pub fn which(&self) -> &'static str {
        self.which
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn limits(n: u32) -> config::CircuitBreakers {
        let n = std::num::NonZeroU32::new(n).unwrap();
        config::CircuitBreakers { max_connections: n, max_pending_requests: n, max_requests: n, max_retries: n }
    }

    #[test]
    fn what_is_beyond_the_limit_is_refused_at_once_and_named() {
        let breakers = CircuitBreakers::new(&limits(2), 1);
        let held = [breakers.try_request().unwrap(), breakers.try_request().unwrap()];
        let refused = breakers.try_request().unwrap_err();
        assert_eq!(refused.which(), "max_requests");
        assert_eq!(refused.to_string(), "circuit_breakers.max_requests is reached: 2 under way in this worker");
        drop(held);
        assert!(breakers.try_request().is_ok(), "a dropped permit is given back");
    }

    #[test]
    fn each_bound_counts_for_itself_and_under_its_own_name() {
        let breakers = CircuitBreakers::new(&limits(1), 1);
        let _held = [
            breakers.try_request().unwrap(),
            breakers.try_pending().unwrap(),
            breakers.try_connection().unwrap(),
            breakers.try_retry().unwrap(),
        ];
        let refused = [
            breakers.try_request().unwrap_err(),
            breakers.try_pending().unwrap_err(),
            breakers.try_connection().unwrap_err(),
            breakers.try_retry().unwrap_err(),
        ]
        .map(|o| o.which());
        assert_eq!(refused, ["max_requests", "max_pending_requests", "max_connections", "max_retries"]);
        assert!(breakers.usage().iter().all(|u| u.used == 1 && u.limit == 1), "{:?}", breakers.usage());
    }

    #[test]
    fn workers_share_a_limit_and_each_has_at_least_one() {
        for (limit, workers, each) in [(4_096, 8, 512), (10, 4, 3), (1, 8, 1), (7, 1, 7)] {
            let breakers = CircuitBreakers::new(&limits(limit), workers);
            assert_eq!(breakers.usage()[0].limit, each, "{limit} over {workers}");
        }
    }

    #[test]
    fn a_permit_outlives_its_service() {
        let breakers = CircuitBreakers::new(&limits(1), 1);
        let permit = breakers.try_connection().unwrap();
        drop(breakers);
        drop(permit);
    }
}
