//! Metrics, in OpenMetrics text.
//!
//! Workers count into cells that nobody else writes (see `cells`); a scrape sums them. What is on the request path
//! takes no lock and allocates nothing. Names and units follow the Prometheus conventions; no label ever holds a
//! path, a raw header or an unverified name, and the number of label sets is bounded.

mod cells;
mod control;
mod families;
mod process;
mod route;
mod worker;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{encoding::text, registry::Registry};

pub use self::{
    control::{ControlMetrics, Outcomes},
    route::RouteMetrics,
    worker::{ConnectionMetrics, Direction, Meter, RequestMetrics, ServiceMetrics, Transport, WorkerMetrics},
};
use self::{
    families::{Families, WorkerCollector},
    process::ProcessCollector,
};

/// Label sets of direction, service and peer that are told apart, over all workers. More of them are counted
/// together as `service="other",peer="other"`: a scrape stays below 50,000 lines whatever the workload calls.
pub const MAX_SERIES: usize = 2_000;

/// Services that are told apart in the metrics of services; more of them are counted together as `service="other"`.
pub const MAX_SERVICES: usize = 1_000;

/// Routes that are told apart; more of them are counted together as `route="other"`.
pub const MAX_ROUTES: usize = 1_000;

/// The `content-type` of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of this process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    families: Arc<Families>,
    control: Arc<ControlMetrics>,
}

impl Metrics {
    /// To be made once, when the process starts: that moment becomes `process_start_time_seconds`.
    pub fn new() -> Self {
        let families = Arc::new(Families::new());
        let control = Arc::new(ControlMetrics::default());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(WorkerCollector(families.clone())));
        registry.register_collector(Box::new(control.clone()));
        registry.register_collector(Box::new(ProcessCollector::new()));
        Self(Arc::new(Inner { registry: Mutex::new(registry), families, control }))
    }

    /// The metrics of one more worker, to be made on the worker's own thread.
    pub fn worker(&self) -> WorkerMetrics {
        WorkerMetrics::new(self.0.families.clone())
    }

    /// Identity and discovery.
    pub fn control(&self) -> &ControlMetrics {
        &self.0.control
    }

    /// Gives `register` the registry, to add metrics that no request path touches.
    pub fn registry<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.0.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything as OpenMetrics text (version 1.0.0), ending in `# EOF`.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.0.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(fmt::Error) = text::encode(&mut text, &registry) {
            // Writing to a string fails only where a value's own encoder does, and none of ours can. A partial text
            // without its `# EOF` is what OpenMetrics has a scraper refuse.
            tracing::error!("the metrics could not be encoded: this scrape is incomplete");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use http::StatusCode;

    use super::*;

    /// The value of the sample whose name and labels are `series`.
    fn sample(text: &str, series: &str) -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn a_scrape_sums_the_workers_and_keeps_what_a_finished_one_counted() {
        let metrics = Metrics::new();
        let threads = [3, 4].map(|n: u64| {
            let metrics = metrics.clone();
            std::thread::spawn(move || {
                let worker = metrics.worker();
                let requests = worker.requests(Direction::Outbound, "orders.mesh", "spiffe://t/orders");
                for _ in 0..n {
                    requests.begin();
                    requests.end(Some(StatusCode::OK), Duration::from_millis(20));
                }
                requests.begin();
                requests.begin();
                requests.end(None, Duration::from_secs(1));
                let connections = worker.connections(Direction::Inbound, Transport::Mtls);
                connections.opened();
                connections.opened();
                connections.closed();
                connections.bytes(10 * n, n);
            })
        });
        threads.into_iter().for_each(|t| t.join().unwrap());

        let text = metrics.encode();
        let labels = r#"direction="outbound",service="orders.mesh",peer="spiffe://t/orders""#;
        let total = |class| sample(&text, &format!(r#"outrigger_requests_total{{{labels},status_class="{class}"}}"#));
        assert_eq!(total("2xx"), Some(7.0), "{text}");
        assert_eq!(total("5xx"), Some(0.0), "{text}");
        assert_eq!(total("none"), Some(2.0), "{text}");
        assert_eq!(sample(&text, &format!("outrigger_requests_in_flight{{{labels}}}")), Some(2.0));
        let duration = |what: &str| sample(&text, &format!("outrigger_request_duration_seconds_{what}"));
        assert_eq!(duration(&format!("count{{{labels}}}")), Some(9.0));
        assert!((duration(&format!("sum{{{labels}}}")).unwrap() - 2.14).abs() < 1e-9);
        assert_eq!(duration(&format!(r#"bucket{{le="0.01",{labels}}}"#)), Some(0.0));
        assert_eq!(duration(&format!(r#"bucket{{le="0.025",{labels}}}"#)), Some(7.0));
        assert_eq!(duration(&format!(r#"bucket{{le="+Inf",{labels}}}"#)), Some(9.0));
        let inbound = r#"direction="inbound",transport="mtls""#;
        assert_eq!(sample(&text, &format!("outrigger_connections_total{{{inbound}}}")), Some(4.0));
        assert_eq!(sample(&text, &format!("outrigger_connections_open{{{inbound}}}")), Some(2.0));
        assert_eq!(sample(&text, &format!(r#"outrigger_bytes_total{{{inbound},flow="received"}}"#)), Some(70.0));
        assert_eq!(sample(&text, &format!(r#"outrigger_bytes_total{{{inbound},flow="sent"}}"#)), Some(7.0));
    }

    #[test]
    fn a_label_value_cannot_break_out_of_its_quotes() {
        let metrics = Metrics::new();
        let worker = metrics.worker();
        let requests = worker.requests(Direction::Inbound, "a\"} 1\nforged_total 9\\", "p");
        requests.begin();
        let text = metrics.encode();
        assert!(text.contains(r#"service="a\"} 1\nforged_total 9\\",peer="p""#), "{text}");
        assert!(!text.lines().any(|line| line.starts_with("forged")));
    }

    #[test]
    fn label_sets_beyond_the_limit_become_other_and_cost_no_more_memory() {
        let metrics = Metrics::new();
        let worker = metrics.worker();
        for i in 0..MAX_SERIES + 100 {
            let requests = worker.requests(Direction::Outbound, &format!("s{i}.mesh"), "unknown");
            requests.begin();
            requests.end(Some(StatusCode::OK), Duration::ZERO);
        }
        let text = metrics.encode();
        let series = text.lines().filter(|l| l.starts_with("outrigger_requests_in_flight{")).count();
        assert_eq!(series, MAX_SERIES + 1);
        let other = r#"outrigger_requests_total{direction="outbound",service="other",peer="other",status_class="2xx"}"#;
        assert_eq!(sample(&text, other), Some(100.0));
        // A second worker still reaches the label sets that exist.
        let second = metrics.worker().requests(Direction::Outbound, "s7.mesh", "unknown");
        second.begin();
        let seventh = r#"outrigger_requests_in_flight{direction="outbound",service="s7.mesh",peer="unknown"}"#;
        assert_eq!(sample(&metrics.encode(), seventh), Some(1.0));
    }

    #[test]
    fn handles_are_made_once_a_label_set() {
        let worker = Metrics::new().worker();
        let make = || worker.requests(Direction::Inbound, "a", "b");
        assert!(std::rc::Rc::ptr_eq(&make(), &make()));
        assert!(std::rc::Rc::ptr_eq(&worker.service("a"), &worker.service("a")));
        assert!(!std::rc::Rc::ptr_eq(&make(), &worker.requests(Direction::Outbound, "a", "b")));
    }

    #[test]
    fn endpoints_are_not_counted_once_a_worker_and_go_with_their_balancer() {
        let metrics = Metrics::new();
        let (a, b) = (metrics.worker(), metrics.worker());
        a.service("s").endpoints(3, 0, false);
        b.service("s").endpoints(3, 1, true);
        b.service("s").ejection("consecutive_5xx");
        let text = metrics.encode();
        assert_eq!(sample(&text, r#"outrigger_endpoints{service="s"}"#), Some(3.0));
        assert_eq!(sample(&text, r#"outrigger_endpoints_ejected{service="s"}"#), Some(1.0));
        assert_eq!(sample(&text, r#"outrigger_endpoints_stale{service="s"}"#), Some(1.0));
        drop(b);
        let text = metrics.encode();
        assert_eq!(sample(&text, r#"outrigger_endpoints_stale{service="s"}"#), Some(0.0));
        assert_eq!(sample(&text, r#"outrigger_ejections_total{service="s",cause="consecutive_5xx"}"#), Some(1.0));
    }

    #[test]
    fn reasons_are_counted_by_direction_and_service() {
        let metrics = Metrics::new();
        let worker = metrics.worker();
        worker.error(Direction::Outbound, "no_endpoints");
        worker.error(Direction::Outbound, "no_endpoints");
        worker.error(Direction::Inbound, "no_endpoints");
        worker.tls_failure(Direction::Inbound, "expired");
        let service = worker.service("s");
        service.retry("connect_failed");
        service.retry_denied("budget");
        service.retry_after("respected");
        service.circuit_open("requests");
        service.connect_failure("refused");
        service.readmission();
        let text = metrics.encode();
        for (series, n) in [
            (r#"outrigger_errors_total{direction="outbound",reason="no_endpoints"}"#, 2.0),
            (r#"outrigger_errors_total{direction="inbound",reason="no_endpoints"}"#, 1.0),
            (r#"outrigger_tls_failures_total{direction="inbound",reason="expired"}"#, 1.0),
            (r#"outrigger_retries_total{service="s",reason="connect_failed"}"#, 1.0),
            (r#"outrigger_retries_denied_total{service="s",limit="budget"}"#, 1.0),
            (r#"outrigger_retry_after_total{service="s",outcome="respected"}"#, 1.0),
            (r#"outrigger_circuit_open_total{service="s",limit="requests"}"#, 1.0),
            (r#"outrigger_connect_failures_total{service="s",reason="refused"}"#, 1.0),
            (r#"outrigger_readmissions_total{service="s"}"#, 1.0),
        ] {
            assert_eq!(sample(&text, series), Some(n), "{series} in {text}");
        }
    }

    #[test]
    fn the_control_side_and_the_process_are_in_the_scrape() {
        let metrics = Metrics::new();
        metrics.control().identity_expiry(|| Some(UNIX_EPOCH + Duration::from_secs(2_000_000_000)));
        metrics.control().identity_renewals.count("ok");
        metrics.control().trust_readings.read_from(|| vec![("ok", 7), ("failed", 2)]);
        metrics.control().lists_next_update(|| Some(UNIX_EPOCH + Duration::from_secs(1_900_000_000)));
        metrics.control().trust_read(|| None);
        metrics.control().dns_lookups.count("ok");
        metrics.control().dns_lookups.read_from(|| vec![("ok", 4), ("servfail", 1)]);
        let text = metrics.encode();
        assert_eq!(sample(&text, "outrigger_identity_expiry_timestamp_seconds"), Some(2e9));
        assert_eq!(sample(&text, r#"outrigger_identity_renewals_total{outcome="ok"}"#), Some(1.0));
        assert_eq!(sample(&text, r#"outrigger_trust_readings_total{outcome="failed"}"#), Some(2.0));
        assert_eq!(sample(&text, "outrigger_trust_lists_next_update_timestamp_seconds"), Some(1.9e9));
        assert!(!text.contains("outrigger_trust_read_timestamp"), "a time that there never was");
        assert_eq!(sample(&text, r#"outrigger_dns_lookups_total{outcome="ok"}"#), Some(5.0));
        assert_eq!(sample(&text, r#"outrigger_dns_lookups_total{outcome="servfail"}"#), Some(1.0));
        assert_eq!(
            sample(&text, &format!(r#"outrigger_build_info{{version="{}"}}"#, env!("CARGO_PKG_VERSION"))),
            Some(1.0)
        );
        assert!(sample(&text, "process_start_time_seconds").unwrap() > 1.7e9);
        assert!(sample(&text, "process_resident_memory_bytes").unwrap() > 100_000.0);
        assert!(sample(&text, "process_open_fds").unwrap() >= 3.0);
        assert!(sample(&text, "process_max_fds").unwrap() >= sample(&text, "process_open_fds").unwrap());
        assert!(sample(&text, "process_cpu_seconds_total").is_some());
    }

    #[test]
    fn the_text_is_open_metrics() {
        let metrics = Metrics::new();
        let worker = metrics.worker();
        worker.requests(Direction::Inbound, "s", "p").begin();
        worker.connections(Direction::Outbound, Transport::Passthrough).opened();
        worker.service("s").retry("r");
        worker.error(Direction::Inbound, "r");
        let text = metrics.encode();
        assert!(text.ends_with("\n# EOF\n"));
        // Each family is described once, directly before its samples, and its samples carry its name.
        let (mut family, mut seen) = (String::new(), std::collections::HashSet::new());
        for line in text.lines().filter(|l| *l != "# EOF") {
            if let Some(rest) = line.strip_prefix("# ") {
                let name = rest.split(' ').nth(1).unwrap();
                if name != family {
                    assert!(seen.insert(name.to_owned()), "{name} is described twice");
                    family = name.to_owned();
                }
            } else {
                let name = line.split(['{', ' ']).next().unwrap();
                let suffix = name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} in family {family}"));
                assert!(["", "_total", "_info", "_sum", "_count", "_bucket"].contains(&suffix), "{line}");
                assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
            }
        }
    }
}
