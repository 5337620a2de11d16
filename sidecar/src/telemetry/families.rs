//! The metric families that workers write, and how a scrape turns them into text.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

use super::{
    MAX_ROUTES, MAX_SERIES, MAX_SERVICES,
    cells::{Cell64, Count, Family, HistogramSum, max, sum},
    worker::{CLASSES, ConnectionCells, Direction, RequestCells, ServiceCells, Transport},
};

/// The label value of everything beyond a limit.
pub(super) const OTHER: &str = "other";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RequestKey {
    pub(super) direction: Direction,
    pub(super) service: Arc<str>,
    pub(super) peer: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ReasonKey {
    pub(super) direction: Direction,
    pub(super) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServiceReasonKey {
    pub(super) service: Arc<str>,
    pub(super) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RouteReasonKey {
    pub(super) route: Arc<str>,
    pub(super) reason: &'static str,
}

/// Everything that workers write.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) requests: Family<RequestKey, RequestCells>,
    pub(super) connections: Family<(Direction, Transport), ConnectionCells>,
    pub(super) services: Family<Arc<str>, ServiceCells>,
    pub(super) errors: Family<ReasonKey, Count>,
    pub(super) tls_failures: Family<ReasonKey, Count>,
    pub(super) retries: Family<ServiceReasonKey, Count>,
    pub(super) retries_denied: Family<ServiceReasonKey, Count>,
    pub(super) ejections: Family<ServiceReasonKey, Count>,
    pub(super) retry_after: Family<ServiceReasonKey, Count>,
    pub(super) circuit_open: Family<ServiceReasonKey, Count>,
    pub(super) health_checks: Family<ServiceReasonKey, Count>,
    pub(super) connect_failures: Family<ServiceReasonKey, Count>,
    pub(super) routes: Family<Arc<str>, RequestCells>,
    pub(super) route_retries: Family<RouteReasonKey, Count>,
    pub(super) route_faults: Family<RouteReasonKey, Count>,
    pub(super) route_mirrored: Family<RouteReasonKey, Count>,
}

impl Families {
    pub(super) fn new() -> Self {
        // Reasons are fixed words and services are limited, so the families by reason need no limit of their own.
        Self {
            requests: Family::new(MAX_SERIES),
            connections: Family::new(usize::MAX),
            services: Family::new(MAX_SERVICES),
            errors: Family::new(usize::MAX),
            tls_failures: Family::new(usize::MAX),
            retries: Family::new(usize::MAX),
            retries_denied: Family::new(usize::MAX),
            ejections: Family::new(usize::MAX),
            retry_after: Family::new(usize::MAX),
            circuit_open: Family::new(usize::MAX),
            health_checks: Family::new(usize::MAX),
            connect_failures: Family::new(usize::MAX),
            routes: Family::new(MAX_ROUTES),
            route_retries: Family::new(usize::MAX),
            route_faults: Family::new(usize::MAX),
            route_mirrored: Family::new(usize::MAX),
        }
    }
}

/// Writes [`Families`] at a scrape.
#[derive(Debug)]
pub(super) struct WorkerCollector(pub(super) Arc<Families>);

impl Collector for WorkerCollector {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let families = &self.0;
        requests(families, &mut to)?;
        connections(families, &mut to)?;
        services(families, &mut to)?;
        routes(families, &mut to)?;

        let by_direction = [
            ("outrigger_errors", "Responses and ends of connections that the sidecar itself made.", &families.errors),
            ("outrigger_tls_failures", "TLS handshakes that failed.", &families.tls_failures),
        ];
        for (name, help, family) in by_direction {
            let mut metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
            family.each(|key, blocks| {
                let labels = [("direction", key.direction.as_str()), ("reason", key.reason)];
                counter(&mut metric, &labels, sum(blocks, |c| &c.0))
            })?;
        }
        let by_service = [
            ("outrigger_retries", "Tries after a request's first.", "reason", &families.retries),
            ("outrigger_retries_denied", "Retries that a limit forbade.", "limit", &families.retries_denied),
            ("outrigger_ejections", "Endpoints that a worker ejected.", "cause", &families.ejections),
            ("outrigger_retry_after", "Endpoints that asked to be left alone.", "outcome", &families.retry_after),
            ("outrigger_circuit_open", "What a circuit breaker refused.", "limit", &families.circuit_open),
            ("outrigger_health_checks", "Active health checks.", "result", &families.health_checks),
            ("outrigger_connect_failures", "Endpoints not reached.", "reason", &families.connect_failures),
        ];
        for (name, help, label, family) in by_service {
            let mut metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
            family.each(|key, blocks| {
                counter(&mut metric, &[("service", &*key.service), (label, key.reason)], sum(blocks, |c| &c.0))
            })?;
        }
        Ok(())
    }
}

fn requests(families: &Families, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Requests that have ended, by the class of the status that the caller got; none: no response.";
    let mut metric = to.encode_descriptor("outrigger_requests", help, None, MetricType::Counter)?;
    families.requests.each(|key, blocks| {
        for (i, class) in CLASSES.iter().enumerate() {
            let [direction, service, peer] = request_labels(key);
            let labels = [direction, service, peer, ("status_class", class)];
            // Classes that never happened are there as 0, so that the first failure shows in `increase()`.
            counter(&mut metric, &labels, sum(blocks, |c: &RequestCells| &c.by_class[i]))?;
        }
        Ok::<_, fmt::Error>(())
    })?;

    let help = "From a request's head to the end of its response.";
    let mut metric =
        to.encode_descriptor("outrigger_request_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    families.requests.each(|key, blocks| {
        let mut latency = HistogramSum::default();
        blocks.iter().for_each(|block| block.latency.add_to(&mut latency));
        metric.encode_family(&request_labels(key))?.encode_histogram::<NoLabelSet>(
            latency.seconds(),
            latency.count(),
            &latency.buckets(),
            None,
        )
    })?;

    let help = "Requests under way.";
    let mut metric = to.encode_descriptor("outrigger_requests_in_flight", help, None, MetricType::Gauge)?;
    families.requests.each(|key, blocks| gauge(&mut metric, &request_labels(key), sum(blocks, |c| &c.in_flight)))
}

fn request_labels(key: &RequestKey) -> [(&'static str, &str); 3] {
    [("direction", key.direction.as_str()), ("service", &key.service), ("peer", &key.peer)]
}

fn routes(families: &Families, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Requests that took a route and have ended, by the class of the status that the caller got.";
    let mut metric = to.encode_descriptor("outrigger_route_requests", help, None, MetricType::Counter)?;
    families.routes.each(|route, blocks| {
        CLASSES.iter().enumerate().try_for_each(|(i, class)| {
            let labels = [("route", &**route), ("status_class", class)];
            counter(&mut metric, &labels, sum(blocks, |c: &RequestCells| &c.by_class[i]))
        })
    })?;

    let help = "From a request's head to the end of its response, delays on purpose not included.";
    let mut metric =
        to.encode_descriptor("outrigger_route_request_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    families.routes.each(|route, blocks| {
        let mut latency = HistogramSum::default();
        blocks.iter().for_each(|block| block.latency.add_to(&mut latency));
        metric.encode_family(&[("route", &**route)])?.encode_histogram::<NoLabelSet>(
            latency.seconds(),
            latency.count(),
            &latency.buckets(),
            None,
        )
    })?;

    let by_route = [
        ("outrigger_route_retries", "Tries after a request's first.", "reason", &families.route_retries),
        ("outrigger_route_faults", "Faults that were injected.", "fault", &families.route_faults),
        ("outrigger_route_mirrored", "Copies of requests, sent or not.", "result", &families.route_mirrored),
    ];
    for (name, help, label, family) in by_route {
        let mut metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        family.each(|key, blocks| {
            counter(&mut metric, &[("route", &*key.route), (label, key.reason)], sum(blocks, |c| &c.0))
        })?;
    }
    Ok(())
}

fn connections(families: &Families, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let labels = |key: &(Direction, Transport)| [("direction", key.0.as_str()), ("transport", key.1.as_str())];

    let help = "Connections that were made; transport workload is between the sidecar and its own workload.";
    let mut metric = to.encode_descriptor("outrigger_connections", help, None, MetricType::Counter)?;
    families.connections.each(|key, blocks| counter(&mut metric, &labels(key), sum(blocks, |c| &c.opened)))?;

    let help = "Connections open now.";
    let mut metric = to.encode_descriptor("outrigger_connections_open", help, None, MetricType::Gauge)?;
    families.connections.each(|key, blocks| gauge(&mut metric, &labels(key), sum(blocks, |c| &c.open)))?;

    let help = "Bytes received from the other side of a connection and sent to it, within TLS where there is any.";
    let mut metric = to.encode_descriptor("outrigger_bytes", help, None, MetricType::Counter)?;
    families.connections.each(|key, blocks| {
        let [direction, transport] = labels(key);
        let mut flow = |flow, cell: fn(&ConnectionCells) -> &Cell64| {
            counter(&mut metric, &[direction, transport, ("flow", flow)], sum(blocks, cell))
        };
        flow("received", |c| &c.received)?;
        flow("sent", |c| &c.sent)
    })
}

fn services(families: &Families, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    type Pick = fn(&ServiceCells) -> &Cell64;
    // Every worker holds the same endpoints and ejects for itself: a sum would count each one several times.
    let gauges: [(&str, &str, Pick); 4] = [
        ("outrigger_endpoints", "Endpoints of a service.", |c| &c.endpoints),
        ("outrigger_endpoints_ejected", "Endpoints ejected by the worker that has ejected most.", |c| &c.ejected),
        ("outrigger_endpoints_unhealthy", "Endpoints out of use by health checks, most of a worker.", |c| &c.unhealthy),
        ("outrigger_endpoints_stale", "1 while discovery fails and the last good answer is used.", |c| &c.stale),
    ];
    for (name, help, cell) in gauges {
        let mut metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
        families.services.each(|service, blocks| {
            // The services beyond the limit share one label set and report no endpoints.
            if &**service == OTHER {
                return Ok(());
            }
            gauge(&mut metric, &[("service", &**service)], max(blocks, cell))
        })?;
    }
    let help = "Ejected endpoints that a worker took back.";
    let mut metric = to.encode_descriptor("outrigger_readmissions", help, None, MetricType::Counter)?;
    families
        .services
        .each(|service, blocks| counter(&mut metric, &[("service", &**service)], sum(blocks, |c| &c.readmissions)))
}

pub(super) fn counter(metric: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    metric.encode_family(labels)?.encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

fn gauge(metric: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    // As i64: one worker may have closed, by the time it is read, what another's cell does not show as opened.
    metric.encode_family(labels)?.encode_gauge(&value.cast_signed())
}
