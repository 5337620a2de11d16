//! Metrics of the control side: identity and discovery. Few and slow, so that ordinary locks do.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, OnceLock, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType, registry::Unit};

use super::families::counter;

type Time = Box<dyn Fn() -> Option<SystemTime> + Send + Sync>;
type Source = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

/// The control side's metrics. Each can be counted here, or be read at a scrape from whoever counts it already.
#[derive(Default)]
pub struct ControlMetrics {
    expiry: OnceLock<Time>,
    trust_read: OnceLock<Time>,
    lists_next_update: OnceLock<Time>,
    /// `outrigger_identity_renewals_total{outcome}`: enrolments, renewals and reloads of the certificate.
    pub identity_renewals: Outcomes,
    /// `outrigger_trust_readings_total{outcome}`: readings of the CA's bundle and revocation lists. `ok`: they are in use, new or
    /// unchanged; `refused`: something about them is wrong, and what was known stays; `absent`: the CA publishes none;
    /// `failed`: it could not be read.
    pub trust_readings: Outcomes,
    /// `outrigger_dns_lookups_total{outcome}`: look-ups of discovery.
    pub dns_lookups: Outcomes,
}

impl ControlMetrics {
    /// Where `outrigger_identity_expiry_timestamp_seconds` comes from: the end of the current certificate's validity,
    /// or `None` while there is no certificate, which leaves the metric out. Only the first call counts.
    pub fn identity_expiry(&self, source: impl Fn() -> Option<SystemTime> + Send + Sync + 'static) {
        let _ = self.expiry.set(Box::new(source));
    }

    /// Where `outrigger_trust_read_timestamp_seconds` comes from: the last reading that counts as `ok` in
    /// `outrigger_trust_readings_total`, or `None` before there was one, which leaves the metric out. Only the first call counts.
    pub fn trust_read(&self, source: impl Fn() -> Option<SystemTime> + Send + Sync + 'static) {
        let _ = self.trust_read.set(Box::new(source));
    }

    /// Where `outrigger_trust_lists_next_update_timestamp_seconds` comes from: the earliest nextUpdate of the revocation lists
    /// in use, or `None` without one, which leaves the metric out. A time that has passed says that newer revocations are
    /// not known. Only the first call counts.
    pub fn lists_next_update(&self, source: impl Fn() -> Option<SystemTime> + Send + Sync + 'static) {
        let _ = self.lists_next_update.set(Box::new(source));
    }
}

/// A counter by outcome, a few fixed words.
#[derive(Default)]
pub struct Outcomes {
    counted: Mutex<BTreeMap<&'static str, u64>>,
    source: OnceLock<Source>,
}

impl Outcomes {
    /// Counts one.
    pub fn count(&self, outcome: &'static str) {
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
    }

    /// Adds, at each scrape, what `source` gives. Its numbers must never go down. Only the first call counts.
    pub fn read_from(&self, source: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static) {
        let _ = self.source.set(Box::new(source));
    }

    fn total(&self) -> BTreeMap<&'static str, u64> {
        let mut total = self.counted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (outcome, n) in self.source.get().map(|source| source()).unwrap_or_default() {
            *total.entry(outcome).or_default() += n;
        }
        total
    }
}

impl fmt::Debug for ControlMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlMetrics").finish_non_exhaustive()
    }
}

impl Collector for ControlMetrics {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let times = [
            (
                "outrigger_identity_expiry_timestamp",
                "End of the current certificate's validity, since the Unix epoch.",
                &self.expiry,
            ),
            (
                "outrigger_trust_read_timestamp",
                "Last good reading of the CA's bundle and revocation lists, since the Unix epoch.",
                &self.trust_read,
            ),
            (
                "outrigger_trust_lists_next_update_timestamp",
                "Earliest nextUpdate of the revocation lists in use, since the Unix epoch.",
                &self.lists_next_update,
            ),
        ];
        for (name, help, time) in times {
            let Some(time) = time.get().and_then(|source| source()) else { continue };
            let seconds = time.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
            to.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?.encode_gauge(&seconds)?;
        }
        let outcomes = [
            ("outrigger_identity_renewals", "Times a certificate was asked for or read.", &self.identity_renewals),
            (
                "outrigger_trust_readings",
                "Times the CA's bundle and revocation lists were asked for.",
                &self.trust_readings,
            ),
            ("outrigger_dns_lookups", "DNS look-ups.", &self.dns_lookups),
        ];
        for (name, help, outcomes) in outcomes {
            let mut metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (outcome, n) in outcomes.total() {
                counter(&mut metric, &[("outcome", outcome)], n)?;
            }
        }
        Ok(())
    }
}
