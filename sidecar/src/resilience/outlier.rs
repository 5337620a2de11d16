//! Passive outlier detection, as Envoy's `outlier_detection` with its three consecutive-failure detectors: an endpoint
//! that fails so many times in a row is left out for a while, and longer each time that it happens again.
//!
//! Where it differs from Envoy, on purpose:
//! - an ejection ends when its time is over, not at the first `interval` after it;
//! - a threshold that is reached while `max_ejection_percent` forbids another ejection stays reached, so the endpoint's
//!   next failure ejects it if there is room by then; Envoy starts counting from zero.

use std::{cell::Cell, time::Duration};

use tokio::time::Instant;

use crate::config;

/// How one try against an endpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response below 500, or an opaque connection that was made. Resets every counter.
    Success,
    /// A response 5xx other than a gateway failure.
    Http5xx,
    /// A response 502, 503 or 504. Counts as 5xx too.
    GatewayFailure,
    /// No response: connect failure, failed handshake, timeout or reset. Counts as 5xx too, which is Envoy's
    /// `split_external_local_origin_errors: false`.
    LocalOrigin,
}

/// An endpoint was ejected just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// The detector that tripped, by its name under `outlier_detection`. A metric label.
    pub cause: &'static str,
    /// When the ejection ends.
    pub until: Instant,
}

/// What one worker knows about the health of one endpoint.
#[derive(Debug, Default)]
pub struct HostHealth {
    consecutive_5xx: Cell<u32>,
    consecutive_gateway_failure: Cell<u32>,
    consecutive_local_origin_failure: Cell<u32>,
    ejections: Cell<u32>,
    /// By what the next ejection's base time is multiplied, less one.
    multiplier: Cell<u32>,
    /// Set from the ejection until the detector has counted the readmission, which may be a little after its time.
    ejected: Cell<Option<Ejection>>,
    /// When the multiplier goes down next.
    decays_at: Cell<Option<Instant>>,
}

impl HostHealth {
    /// A healthy endpoint.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the endpoint is to be left out at `now`.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected.get().is_some_and(|e| now < e.until)
    }

    /// The ejection that is in force at `now`.
    pub fn ejection(&self, now: Instant) -> Option<Ejection> {
        self.ejected.get().filter(|e| now < e.until)
    }

    /// For how long from `now` the endpoint will still be left out.
    pub fn ejected_for(&self, now: Instant) -> Option<Duration> {
        self.ejection(now).map(|e| e.until - now)
    }

    /// How often the endpoint has been ejected since this worker knows it.
    pub fn ejections(&self) -> u32 {
        self.ejections.get()
    }

    fn reset_counters(&self) {
        self.consecutive_5xx.set(0);
        self.consecutive_gateway_failure.set(0);
        self.consecutive_local_origin_failure.set(0);
    }
}

/// Decides about the endpoints of one service, in one worker.
///
/// It keeps the number of ejected endpoints exact as long as every endpoint that leaves the set goes through
/// [`OutlierDetector::forget`] and [`OutlierDetector::sweep`] runs on `outlier_detection.interval`.
pub struct OutlierDetector {
    thresholds: [(u32, &'static str); 3],
    interval: Duration,
    base: Duration,
    longest: Duration,
    jitter: Duration,
    max_ejected_percent: usize,
    ejected: Cell<usize>,
    /// Readmissions that [`OutlierDetector::record`] saw before a sweep did, for the next sweep to report.
    readmitted: Cell<usize>,
}

impl OutlierDetector {
    /// A detector with these parameters.
    pub fn new(config: &config::OutlierDetection) -> Self {
        let base = config.base_ejection_time.get();
        Self {
            // The most specific first, since one failure can trip two at once and one name is given.
            thresholds: [
                (config.consecutive_local_origin_failure, "consecutive_local_origin_failure"),
                (config.consecutive_gateway_failure, "consecutive_gateway_failure"),
                (config.consecutive_5xx, "consecutive_5xx"),
            ],
            interval: config.interval.get().max(Duration::from_millis(1)),
            base,
            longest: config.max_ejection_time.get().max(base),
            jitter: config.max_ejection_time_jitter.get(),
            max_ejected_percent: usize::from(config.max_ejection_percent.get()),
            ejected: Cell::new(0),
            readmitted: Cell::new(0),
        }
    }

    /// Endpoints whose ejection has begun and whose readmission has not been counted.
    pub fn ejected(&self) -> usize {
        self.ejected.get()
    }

    /// Takes note of an outcome. Says so if it ejected the endpoint; `total_hosts` is the number of endpoints of the
    /// service, for `max_ejection_percent`. Outcomes of an endpoint that is ejected (requests from before, or from a
    /// panic) count for nothing.
    pub fn record(&self, host: &HostHealth, total_hosts: usize, outcome: Outcome, now: Instant) -> Option<Ejection> {
        if host.ejected.get().is_some() {
            if !self.settle(host, now) {
                return None;
            }
            self.readmitted.set(self.readmitted.get() + 1);
        }
        let bump = |counter: &Cell<u32>| counter.set(counter.get().saturating_add(1));
        match outcome {
            Outcome::Success => {
                host.reset_counters();
                return None;
            }
            // A response of any kind proves that connecting works; one that is no gateway failure ends a row of them.
            Outcome::Http5xx => {
                host.consecutive_local_origin_failure.set(0);
                host.consecutive_gateway_failure.set(0);
            }
            Outcome::GatewayFailure => {
                host.consecutive_local_origin_failure.set(0);
                bump(&host.consecutive_gateway_failure);
            }
            Outcome::LocalOrigin => bump(&host.consecutive_local_origin_failure),
        }
        bump(&host.consecutive_5xx);

        let counts = [
            host.consecutive_local_origin_failure.get(),
            host.consecutive_gateway_failure.get(),
            host.consecutive_5xx.get(),
        ];
        let (_, (_, cause)) =
            counts.into_iter().zip(self.thresholds).find(|(count, (limit, _))| *limit > 0 && count >= limit)?;
        self.may_eject(total_hosts).then(|| self.eject(host, cause, now))
    }

    /// Readmits every endpoint whose time is over, and forgives one earlier ejection for each `interval` that an
    /// endpoint has stayed in. Returns how many were readmitted since the last sweep. To be run every `interval`.
    pub fn sweep<'a>(&self, hosts: impl IntoIterator<Item = &'a HostHealth>, now: Instant) -> usize {
        let mut readmitted = self.readmitted.take();
        for host in hosts {
            if host.ejected.get().is_some() {
                readmitted += usize::from(self.settle(host, now));
                continue;
            }
            while let Some(at) = host.decays_at.get().filter(|at| now >= *at) {
                host.multiplier.set(host.multiplier.get().saturating_sub(1));
                host.decays_at.set((host.multiplier.get() > 0).then(|| at + self.interval));
            }
        }
        readmitted
    }

    /// An endpoint leaves the set: if it is ejected it counts no more. Harmless for one that is not.
    pub fn forget(&self, host: &HostHealth) {
        if host.ejected.take().is_some() {
            self.ejected.set(self.ejected.get().saturating_sub(1));
        }
    }

    /// Envoy: one endpoint may always be ejected, any other only while the share stays within the percentage.
    fn may_eject(&self, total_hosts: usize) -> bool {
        let ejected = self.ejected.get();
        ejected == 0 || (ejected + 1) * 100 <= self.max_ejected_percent * total_hosts
    }

    fn eject(&self, host: &HostHealth, cause: &'static str, now: Instant) -> Ejection {
        let times = host.multiplier.get() + 1;
        let wanted = self.base.saturating_mul(times);
        // Counting on beyond the cap would only lengthen the way back down.
        if wanted < self.longest + self.base {
            host.multiplier.set(times);
        }
        let until = now + wanted.min(self.longest) + self.jitter.mul_f64(fastrand::f64());
        let ejection = Ejection { cause, until };
        host.reset_counters();
        host.ejections.set(host.ejections.get().saturating_add(1));
        host.ejected.set(Some(ejection));
        host.decays_at.set(Some(until + self.interval));
        self.ejected.set(self.ejected.get() + 1);
        ejection
    }

    /// Ends an ejection whose time is over; true if it did.
    fn settle(&self, host: &HostHealth, now: Instant) -> bool {
        let over = host.ejected.get().is_some_and(|e| now >= e.until);
        if over {
            host.reset_counters();
            self.forget(host);
        }
        over
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "outlier_tests.rs"]
mod tests;
