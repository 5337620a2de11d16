//! What callers may use up. Everything here is a number that an operator can change and memory that nobody can make
//! grow.

mod rate;
mod source;

use std::time::{Duration, Instant};

use outrigger_identity::SpiffeId;

use crate::authority::DEFAULT_TTL;

pub use rate::{Limiter, Rate, RateError};
pub use source::Source;

const SECOND: Duration = Duration::from_secs(1);

/// The limits of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time; further ones wait in the kernel's backlog.
    pub connections: u32,
    /// Connections at a time from one [`Source`]; further ones are closed at once.
    pub connections_of_one: u32,
    /// Attempts of one [`Source`] that fail through the caller's fault.
    pub failures: Rate,
    /// Certificates of one SPIFFE id.
    pub issuances_of_one: Rate,
    /// Certificates in total.
    pub issuances: Rate,
    /// The longest lifetime that a caller over the network gets; who asks for more gets this.
    pub max_ttl: Duration,
}

impl Default for Limits {
    /// A thousand sidecars behind one address that start at once, and a thousand replicas of one workload, pass.
    fn default() -> Self {
        Self {
            connections: 2048,
            connections_of_one: 1024,
            // SPIRE lets a source attest once a second; the burst is a deployment that starts with one wrong setting.
            failures: Rate::new(1, SECOND, 100),
            // Every replica of a workload has the same id, so the burst is that of the largest deployment.
            issuances_of_one: Rate::new(10, SECOND, 2000),
            // SPIRE's number for signing.
            issuances: Rate::new(500, SECOND, 5000),
            // As step-ca: a short certificate must not renew itself into one that outlives its revocation.
            max_ttl: DEFAULT_TTL,
        }
    }
}

/// Which limit a caller has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// Too many failures of its address.
    Failures,
    /// Too many certificates of its id.
    Id,
    /// Too many certificates altogether.
    Total,
}

impl std::fmt::Display for Exceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Failures => "too many attempts from this address have failed",
            Self::Id => "this identity was issued too many certificates",
            Self::Total => "the CA issues as many certificates as it may",
        })
    }
}

impl Exceeded {
    /// As the metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::Id => "id",
            Self::Total => "total",
        }
    }
}

/// The rates in force.
#[derive(Debug)]
pub struct Rates {
    failures: Limiter<Source>,
    ids: Limiter<SpiffeId>,
    total: Limiter<()>,
    /// See [`Limits::max_ttl`].
    pub max_ttl: Duration,
}

impl Rates {
    /// Nothing is used up yet.
    pub fn new(limits: &Limits) -> Self {
        Self {
            failures: Limiter::new(limits.failures),
            ids: Limiter::new(limits.issuances_of_one),
            total: Limiter::new(limits.issuances),
            max_ttl: limits.max_ttl,
        }
    }

    /// Whether an attempt from `source` is looked at; `Err`: when to come back.
    pub fn may_try(&self, source: Source) -> Result<(), Duration> {
        self.failures.look(&source, Instant::now())
    }

    /// Charges a failure that was the caller's fault.
    pub fn failed(&self, source: Source) {
        // One that was begun before the limit was met is free.
        let _ = self.failures.take(source, Instant::now());
    }

    /// Whether one more certificate may be issued for `id`; charges it. `Err`: which limit, and when to come back.
    pub fn admit(&self, id: &SpiffeId) -> Result<(), (Exceeded, Duration)> {
        let now = Instant::now();
        self.ids.take(id.clone(), now).map_err(|wait| (Exceeded::Id, wait))?;
        self.total.take((), now).map_err(|wait| (Exceeded::Total, wait))
    }
}
