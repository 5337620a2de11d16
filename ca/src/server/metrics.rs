//! Metrics, in OpenMetrics text. Names and units follow the Prometheus conventions. Every label is one of a fixed set
//! of words, but for the serials of the CA's own few certificates: no caller can make a series.

use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::limits::Exceeded;

/// The `content-type` of [`Metrics::encode`]'s text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An answer takes a millisecond of signing and a sync of the disk; the longest waits for a busy database.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

type Words<const N: usize> = [(&'static str, &'static str); N];
type ByWord<const N: usize> = Family<Words<N>, Counter>;
type Latency = Family<Words<1>, Histogram, fn() -> Histogram>;

/// What the credential of a request is called before it is known.
pub(super) const UNKNOWN: &str = "unknown";

/// How a request for a certificate ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A certificate was issued.
    Issued,
    /// The caller's fault; the reason is a word.
    Refused(&'static str),
    /// The CA's own fault or a passing state of it.
    Failed(&'static str),
}

/// A certificate of the CA's own whose end is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnLife {
    /// root, intermediate or server.
    pub(super) role: &'static str,
    /// Lower-case hex.
    pub(super) serial: String,
    /// Negative after its end.
    pub(super) seconds_left: i64,
}

/// What is looked up when somebody asks for the metrics.
#[derive(Debug, Default)]
pub(super) struct Moment {
    pub(super) connections: usize,
    pub(super) store_queue: usize,
    /// `None`: the store did not say.
    pub(super) tokens_waiting: Option<u64>,
    pub(super) lives: Vec<OwnLife>,
    pub(super) ready: bool,
}

pub(super) struct Metrics {
    registry: Registry,
    requests: ByWord<2>,
    refusals: ByWord<1>,
    latency: Latency,
    rate_limited: ByWord<1>,
    connections_refused: Counter,
    handshakes_failed: ByWord<1>,
    reads: ByWord<1>,
    connections: Gauge,
    store_queue: Gauge,
    tokens_waiting: Gauge,
    expiry: Family<[(&'static str, String); 2], Gauge>,
    ready: Gauge,
}

impl Metrics {
    pub(super) fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("outrigger_ca");
        let latency: Latency = Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let mut this = Self {
            requests: Family::default(),
            refusals: Family::default(),
            latency,
            rate_limited: Family::default(),
            connections_refused: Counter::default(),
            handshakes_failed: Family::default(),
            reads: Family::default(),
            connections: Gauge::default(),
            store_queue: Gauge::default(),
            tokens_waiting: Gauge::default(),
            expiry: Family::default(),
            ready: Gauge::default(),
            registry: Registry::default(),
        };
        let build: Family<Words<1>, Gauge> = Family::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("build_info", "The version of this program", build);
        let help = "Requests for a certificate, by credential and outcome";
        registry.register("requests", help, this.requests.clone());
        registry.register("refusals", "Requests that brought no certificate, by reason", this.refusals.clone());
        let help = "Time from the request to the answer, by outcome";
        registry.register_with_unit("request_duration", help, Unit::Seconds, this.latency.clone());
        let help = "Requests told to come back later, by the limit that they met";
        registry.register("rate_limited", help, this.rate_limited.clone());
        let help = "Connections closed because their source had as many as it may";
        registry.register("connections_refused", help, this.connections_refused.clone());
        let help = "TLS handshakes that failed, by reason";
        registry.register("handshakes_failed", help, this.handshakes_failed.clone());
        registry.register("reads", "Answers to requests for the published documents, by status", this.reads.clone());
        registry.register("connections", "Connections at this moment", this.connections.clone());
        registry.register("store_queue", "Work that waits for the database", this.store_queue.clone());
        let help = "Join tokens that could still be used";
        registry.register("join_tokens_waiting", help, this.tokens_waiting.clone());
        let help = "Time until a certificate of the CA's own ends; negative afterwards";
        registry.register_with_unit("certificate_expiry", help, Unit::Seconds, this.expiry.clone());
        registry.register("ready", "1 when certificates can be issued, else 0", this.ready.clone());
        this.registry = registry;
        Arc::new(this)
    }

    pub(super) fn request(&self, credential: &'static str, outcome: Outcome, took: Duration) {
        let word = match outcome {
            Outcome::Issued => "issued",
            Outcome::Refused(_) => "refused",
            Outcome::Failed(_) => "failed",
        };
        self.requests.get_or_create(&[("credential", credential), ("outcome", word)]).inc();
        self.latency.get_or_create(&[("outcome", word)]).observe(took.as_secs_f64());
        if let Outcome::Refused(reason) | Outcome::Failed(reason) = outcome {
            self.refusals.get_or_create(&[("reason", reason)]).inc();
        }
    }

    pub(super) fn limited(&self, limit: Exceeded) {
        self.rate_limited.get_or_create(&[("limit", limit.as_str())]).inc();
    }

    pub(super) fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    pub(super) fn handshake_failed(&self, reason: &'static str) {
        self.handshakes_failed.get_or_create(&[("reason", reason)]).inc();
    }

    pub(super) fn read(&self, status: StatusCode) {
        let status = match status {
            StatusCode::OK => "200",
            StatusCode::NOT_MODIFIED => "304",
            StatusCode::NOT_FOUND => "404",
            StatusCode::METHOD_NOT_ALLOWED => "405",
            _ => "other",
        };
        self.reads.get_or_create(&[("status", status)]).inc();
    }

    /// Everything as OpenMetrics text (version 1.0.0), ending in `# EOF`.
    pub(super) fn encode(&self, now: &Moment) -> Result<String, fmt::Error> {
        self.connections.set(signed(now.connections));
        self.store_queue.set(signed(now.store_queue));
        if let Some(waiting) = now.tokens_waiting {
            self.tokens_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        }
        // Certificates that are no longer of use leave their series behind otherwise.
        self.expiry.clear();
        for life in &now.lives {
            let labels = [("certificate", life.role.to_owned()), ("serial", life.serial.clone())];
            self.expiry.get_or_create(&labels).set(life.seconds_left);
        }
        self.ready.set(i64::from(now.ready));
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_units_and_a_gone_certificate_leaves_no_series() {
        let metrics = Metrics::new();
        metrics.request("token", Outcome::Issued, Duration::from_millis(3));
        metrics.request(UNKNOWN, Outcome::Refused("no_credential"), Duration::from_millis(1));
        metrics.limited(Exceeded::Failures);
        let life = |serial: &str, left| OwnLife { role: "root", serial: serial.into(), seconds_left: left };
        let moment =
            |lives| Moment { connections: 3, tokens_waiting: Some(2), lives, ready: true, ..Moment::default() };
        let text = metrics.encode(&moment(vec![life("01", 60), life("02", -1)])).unwrap();
        for line in [
            r#"outrigger_ca_requests_total{credential="token",outcome="issued"} 1"#,
            r#"outrigger_ca_refusals_total{reason="no_credential"} 1"#,
            r#"outrigger_ca_request_duration_seconds_bucket{le="0.005",outcome="issued"} 1"#,
            r#"outrigger_ca_rate_limited_total{limit="failures"} 1"#,
            "outrigger_ca_connections 3",
            "outrigger_ca_join_tokens_waiting 2",
            r#"outrigger_ca_certificate_expiry_seconds{certificate="root",serial="01"} 60"#,
            r#"outrigger_ca_certificate_expiry_seconds{certificate="root",serial="02"} -1"#,
            "outrigger_ca_ready 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
        let text = metrics.encode(&moment(vec![life("02", -2)])).unwrap();
        assert!(!text.contains(r#"serial="01""#), "{text}");
    }
}
