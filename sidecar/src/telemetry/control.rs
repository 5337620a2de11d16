//! Metrics of the control side: identity and discovery. Few and slow, so that ordinary locks do.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, OnceLock, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType, registry::Unit};

use super::families::counter;

type Expiry = Box<dyn Fn() -> Option<SystemTime> + Send + Sync>;
type Source = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

/// The control side's metrics. Each can be counted here, or be read at a scrape from whoever counts it already.
#[derive(Default)]
pub struct ControlMetrics {
    expiry: OnceLock<Expiry>,
    /// `outrigger_identity_renewals_total{outcome}`: enrolments, renewals and reloads of the certificate.
    pub identity_renewals: Outcomes,
    /// `outrigger_dns_lookups_total{outcome}`: look-ups of discovery.
    pub dns_lookups: Outcomes,
}

impl ControlMetrics {
    /// Where `outrigger_identity_expiry_timestamp_seconds` comes from: the end of the current certificate's validity,
    /// or `None` while there is no certificate, which leaves the metric out. Only the first call counts.
    pub fn identity_expiry(&self, source: impl Fn() -> Option<SystemTime> + Send + Sync + 'static) {
        let _ = self.expiry.set(Box::new(source));
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
        if let Some(expiry) = self.expiry.get().and_then(|source| source()) {
            let expiry = expiry.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
            let help = "End of the current certificate's validity, since the Unix epoch.";
            to.encode_descriptor("outrigger_identity_expiry_timestamp", help, Some(&Unit::Seconds), MetricType::Gauge)?
                .encode_gauge(&expiry)?;
        }
        let outcomes = [
            ("outrigger_identity_renewals", "Times a certificate was asked for or read.", &self.identity_renewals),
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
