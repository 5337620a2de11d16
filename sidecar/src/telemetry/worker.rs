//! The handles through which a worker counts. All are `!Send`: their cells have a single writer.

use std::{cell::RefCell, marker::PhantomData, rc::Rc, sync::Arc, time::Duration};

use http::StatusCode;
use rustc_hash::FxHashMap;

use super::{
    cells::{Cell64, Count, Family, HistogramCells},
    families::{Families, OTHER, ReasonKey, RequestKey, ServiceReasonKey},
    route::RouteMetrics,
};

/// Which of the two journeys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From a peer to the workload.
    Inbound,
    /// From the workload to others.
    Outbound,
}

impl Direction {
    /// The label value: `inbound` or `outbound`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What the sidecar knows of a connection's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Mesh mTLS that the sidecar ends or begins.
    Mtls,
    /// No encryption.
    Plaintext,
    /// The application's own TLS, never opened.
    Tls,
    /// To or from no known service, never looked into.
    Passthrough,
    /// Between the sidecar and its own workload, which is not the network.
    Workload,
}

impl Transport {
    const COUNT: usize = 5;

    /// The label value: `mtls`, `plaintext`, `tls`, `passthrough` or `workload`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mtls => "mtls",
            Self::Plaintext => "plaintext",
            Self::Tls => "tls",
            Self::Passthrough => "passthrough",
            Self::Workload => "workload",
        }
    }
}

/// Status classes in label order; the last is for a request that ended without a response.
pub(super) const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

/// One worker's cells of one request label set.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct RequestCells {
    pub(super) by_class: [Cell64; CLASSES.len()],
    pub(super) in_flight: Cell64,
    pub(super) latency: HistogramCells,
}

/// One worker's cells of one kind of connection.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct ConnectionCells {
    pub(super) opened: Cell64,
    pub(super) open: Cell64,
    pub(super) received: Cell64,
    pub(super) sent: Cell64,
}

/// One worker's cells of one service.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct ServiceCells {
    pub(super) endpoints: Cell64,
    pub(super) ejected: Cell64,
    pub(super) unhealthy: Cell64,
    pub(super) stale: Cell64,
    pub(super) readmissions: Cell64,
}

/// Makes a type `!Send` and `!Sync`.
type Local = PhantomData<*const ()>;

type ByName<T> = FxHashMap<Box<str>, T>;

/// The metrics of one worker. Cheap to clone; handles are made once a label set and cached.
///
/// Making a handle may take a lock and allocate, so it belongs where a connection, a route or a service is made.
/// What the handles do afterwards is a load and a store each.
#[derive(Clone)]
pub struct WorkerMetrics(Rc<Inner>);

struct Inner {
    families: Arc<Families>,
    routes: RefCell<ByName<Rc<RouteMetrics>>>,
    other_route: RefCell<Option<Rc<RouteMetrics>>>,
    /// By direction, service and peer.
    requests: [RefCell<ByName<ByName<Rc<RequestMetrics>>>>; 2],
    other_requests: RefCell<[Option<Rc<RequestMetrics>>; 2]>,
    connections: RefCell<[[Option<Rc<ConnectionMetrics>>; Transport::COUNT]; 2]>,
    services: RefCell<ByName<Rc<ServiceMetrics>>>,
    other_service: RefCell<Option<Rc<ServiceMetrics>>>,
    errors: [Reasons; 2],
    tls_failures: [Reasons; 2],
}

impl WorkerMetrics {
    pub(super) fn new(families: Arc<Families>) -> Self {
        Self(Rc::new(Inner {
            families,
            routes: Default::default(),
            other_route: Default::default(),
            requests: Default::default(),
            other_requests: Default::default(),
            connections: Default::default(),
            services: Default::default(),
            other_service: Default::default(),
            errors: Default::default(),
            tls_failures: Default::default(),
        }))
    }

    /// The handle for requests of `service` with `peer`, the other side's SPIFFE id or `unknown`. Both must come from
    /// the configuration, from discovery or from a verified certificate, never from an unverified header.
    ///
    /// When [`super::MAX_SERIES`] label sets exist, a new one is counted under `service="other",peer="other"`.
    pub fn requests(&self, d: Direction, service: &str, peer: &str) -> Rc<RequestMetrics> {
        let cache = &self.0.requests[d as usize];
        if let Some(handle) = cache.borrow().get(service).and_then(|peers| peers.get(peer)) {
            return handle.clone();
        }
        let families = &self.0.families.requests;
        let key = |service: &str, peer: &str| RequestKey { direction: d, service: service.into(), peer: peer.into() };
        let Some(cells) = families.block(key(service, peer)) else {
            // Kept once per worker and not under the label set's own name: else the cache would grow with the very
            // names that the limit keeps out.
            let other = &mut self.0.other_requests.borrow_mut()[d as usize];
            return other.get_or_insert_with(|| RequestMetrics::new(families.block_always(key(OTHER, OTHER)))).clone();
        };
        let handle = RequestMetrics::new(cells);
        cache.borrow_mut().entry(service.into()).or_default().insert(peer.into(), handle.clone());
        handle
    }

    /// The handle for connections of one kind.
    pub fn connections(&self, d: Direction, transport: Transport) -> Rc<ConnectionMetrics> {
        let slot = &mut self.0.connections.borrow_mut()[d as usize][transport as usize];
        slot.get_or_insert_with(|| {
            let cells = self.0.families.connections.block_always((d, transport));
            Rc::new(ConnectionMetrics { cells, local: PhantomData })
        })
        .clone()
    }

    /// The handle for what befalls a service as a whole. Beyond [`super::MAX_SERVICES`] services it is that of
    /// `service="other"`.
    pub fn service(&self, service: &str) -> Rc<ServiceMetrics> {
        if let Some(handle) = self.0.services.borrow().get(service) {
            return handle.clone();
        }
        let families = &self.0.families;
        let name: Arc<str> = service.into();
        let Some(cells) = families.services.block(name.clone()) else {
            let mut other = self.0.other_service.borrow_mut();
            let other = other.get_or_insert_with(|| {
                let cells = families.services.block_always(OTHER.into());
                ServiceMetrics::new(families.clone(), cells, OTHER.into(), true)
            });
            return other.clone();
        };
        let handle = ServiceMetrics::new(families.clone(), cells, name, false);
        self.0.services.borrow_mut().insert(service.into(), handle.clone());
        handle
    }

    /// The handle for the requests of a route of the configuration. Beyond [`super::MAX_ROUTES`] routes it is that of
    /// `route="other"`.
    pub fn route(&self, route: &str) -> Rc<RouteMetrics> {
        if let Some(handle) = self.0.routes.borrow().get(route) {
            return handle.clone();
        }
        let families = &self.0.families;
        let name: Arc<str> = route.into();
        let Some(cells) = families.routes.block(name.clone()) else {
            let mut other = self.0.other_route.borrow_mut();
            let other = other.get_or_insert_with(|| {
                let requests = RequestMetrics::new(families.routes.block_always(OTHER.into()));
                RouteMetrics::new(families.clone(), requests, OTHER.into())
            });
            return other.clone();
        };
        let handle = RouteMetrics::new(families.clone(), RequestMetrics::new(cells), name);
        self.0.routes.borrow_mut().insert(route.into(), handle.clone());
        handle
    }

    /// A TLS handshake failed, for the reason of this stable code.
    pub fn tls_failure(&self, d: Direction, reason: &'static str) {
        let key = ReasonKey { direction: d, reason };
        self.0.tls_failures[d as usize].count(reason, &self.0.families.tls_failures, || key);
    }

    /// The sidecar itself answered a request with an error, or ended a connection, for the reason of this stable code.
    pub fn error(&self, d: Direction, reason: &'static str) {
        let key = ReasonKey { direction: d, reason };
        self.0.errors[d as usize].count(reason, &self.0.families.errors, || key);
    }
}

/// Counters by a reason that is one of a few fixed words: found by a walk along a short list.
#[derive(Default)]
pub(super) struct Reasons(RefCell<Vec<(&'static str, Arc<Count>)>>);

impl Reasons {
    pub(super) fn count<K: Ord + Clone>(
        &self,
        reason: &'static str,
        family: &Family<K, Count>,
        key: impl FnOnce() -> K,
    ) {
        let mut known = self.0.borrow_mut();
        if let Some((_, count)) = known.iter().find(|(r, _)| *r == reason) {
            count.0.add(1);
            return;
        }
        let count = family.block_always(key());
        count.0.add(1);
        known.push((reason, count));
    }
}

/// Requests of one direction, service and peer.
#[derive(Debug)]
pub struct RequestMetrics {
    cells: Arc<RequestCells>,
    local: Local,
}

impl RequestMetrics {
    fn new(cells: Arc<RequestCells>) -> Rc<Self> {
        Rc::new(Self { cells, local: PhantomData })
    }

    /// A request began. Each call must be followed by one of [`Self::end`] or [`Self::withdraw`].
    pub fn begin(&self) {
        self.cells.in_flight.add(1);
    }

    /// The request turned out to be one of other metrics, where it began as well.
    pub fn withdraw(&self) {
        self.cells.in_flight.sub(1);
    }

    /// The request ended `latency` after it began, with the final response's status or with none.
    pub fn end(&self, status: Option<StatusCode>, latency: Duration) {
        let class = match status.map(|s| s.as_u16() / 100) {
            Some(n @ 1..=5) => usize::from(n) - 1,
            _ => CLASSES.len() - 1,
        };
        self.cells.in_flight.sub(1);
        self.cells.by_class[class].add(1);
        self.cells.latency.observe(latency);
    }
}

/// Connections of one direction and transport.
pub struct ConnectionMetrics {
    cells: Arc<ConnectionCells>,
    local: Local,
}

impl ConnectionMetrics {
    /// A connection was opened. Each call must be followed by one of [`Self::closed`].
    pub fn opened(&self) {
        self.cells.opened.add(1);
        self.cells.open.add(1);
    }

    /// A connection was closed.
    pub fn closed(&self) {
        self.cells.open.sub(1);
    }

    /// Bytes moved since the last call: received from the other side of the connection, sent to it.
    pub fn bytes(&self, received: u64, sent: u64) {
        self.cells.received.add(received);
        self.cells.sent.add(sent);
    }

    /// Counts the bytes of one connection.
    pub fn meter(&self) -> Meter {
        Meter { cells: Arc::clone(&self.cells) }
    }
}

/// Counts bytes on the cells of a [`ConnectionMetrics`]. It is `Send` only because hyper wants that of a connection
/// which may be upgraded; the connection stays on the worker that made the meter, so the cells keep their one writer.
pub struct Meter {
    cells: Arc<ConnectionCells>,
}

impl Meter {
    /// So many bytes came from the other side.
    pub fn received(&self, bytes: u64) {
        self.cells.received.add(bytes);
    }

    /// So many bytes went to the other side.
    pub fn sent(&self, bytes: u64) {
        self.cells.sent.add(bytes);
    }
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meter")
    }
}

/// What befalls one service as a whole.
pub struct ServiceMetrics {
    cells: Arc<ServiceCells>,
    families: Arc<Families>,
    name: Arc<str>,
    /// Whether this handle is shared by all services beyond the limit.
    is_other: bool,
    retries: Reasons,
    denied: Reasons,
    ejections: Reasons,
    retry_after: Reasons,
    circuit_open: Reasons,
    health_checks: Reasons,
    connect_failures: Reasons,
    local: Local,
}

impl ServiceMetrics {
    fn new(families: Arc<Families>, cells: Arc<ServiceCells>, name: Arc<str>, is_other: bool) -> Rc<Self> {
        Rc::new(Self {
            cells,
            families,
            name,
            is_other,
            retries: Reasons::default(),
            denied: Reasons::default(),
            ejections: Reasons::default(),
            retry_after: Reasons::default(),
            circuit_open: Reasons::default(),
            health_checks: Reasons::default(),
            connect_failures: Reasons::default(),
            local: PhantomData,
        })
    }

    fn key(&self, reason: &'static str) -> ServiceReasonKey {
        ServiceReasonKey { service: self.name.clone(), reason }
    }

    /// A request was tried again because of `reason`.
    pub fn retry(&self, reason: &'static str) {
        self.retries.count(reason, &self.families.retries, || self.key(reason));
    }

    /// A request would have been tried again, but `why` forbade it (`budget`, `circuit_open` …).
    pub fn retry_denied(&self, why: &'static str) {
        self.denied.count(why, &self.families.retries_denied, || self.key(why));
    }

    /// This worker ejected an endpoint.
    pub fn ejection(&self, cause: &'static str) {
        self.ejections.count(cause, &self.families.ejections, || self.key(cause));
    }

    /// An endpoint asked with `Retry-After` to be left alone: `respected`, or not for its `ejection_share`.
    pub fn retry_after(&self, outcome: &'static str) {
        self.retry_after.count(outcome, &self.families.retry_after, || self.key(outcome));
    }

    /// This worker took an ejected endpoint back.
    pub fn readmission(&self) {
        self.cells.readmissions.add(1);
    }

    /// Something was refused because the limit called `which` was reached.
    pub fn circuit_open(&self, which: &'static str) {
        self.circuit_open.count(which, &self.families.circuit_open, || self.key(which));
    }

    /// An active health check ended with `result`.
    pub fn health_check(&self, result: &'static str) {
        self.health_checks.count(result, &self.families.health_checks, || self.key(result));
    }

    /// How many of the endpoints that this worker's balancer holds are out of use by their health checks. Does nothing
    /// for services beyond the limit.
    pub fn unhealthy(&self, endpoints: usize) {
        if !self.is_other {
            self.cells.unhealthy.set(endpoints as u64);
        }
    }

    /// What this worker's balancer now holds: endpoints in all, those ejected, and whether the set is stale because
    /// discovery fails. Does nothing for services beyond the limit, whose sets have no common meaning.
    pub fn endpoints(&self, total: usize, ejected: usize, stale: bool) {
        if self.is_other {
            return;
        }
        self.cells.endpoints.set(total as u64);
        self.cells.ejected.set(ejected as u64);
        self.cells.stale.set(u64::from(stale));
    }

    /// A connection to an endpoint could not be made.
    pub fn connect_failure(&self, reason: &'static str) {
        self.connect_failures.count(reason, &self.families.connect_failures, || self.key(reason));
    }
}

impl Drop for ServiceMetrics {
    fn drop(&mut self) {
        // Counts outlive their worker; a set of endpoints that no balancer holds any more does not.
        self.cells.endpoints.set(0);
        self.cells.ejected.set(0);
        self.cells.unhealthy.set(0);
        self.cells.stale.set(0);
    }
}
