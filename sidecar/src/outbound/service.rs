//! A service as one worker sees it: its endpoints and everything that decides about them.

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::SocketAddr,
    rc::{Rc, Weak},
    time::Duration,
};

use rustc_hash::FxHashMap;
use rustls::ClientConfig;
use tokio::{
    sync::Notify,
    task::{AbortHandle, spawn_local},
    time::Instant,
};

use super::{endpoint::Endpoint, health_check};
use crate::{
    admin::EndpointReport,
    balance::{Balancer, Candidate},
    config::{
        CircuitBreakers as Thresholds, EndpointSource, HealthCheck, Host, LoadBalancing, MtlsMode, OutlierDetection,
        Protocol, RetryPolicy, ServiceConfig, Timeouts,
    },
    discovery::{EndpointSet, SetState, Target, Watch},
    http::client::ConnectError,
    reason::Reason,
    resilience::{CircuitBreakers, Outcome, OutlierDetector, Rests, RetryBudget},
    telemetry::{Direction, RequestMetrics, ServiceMetrics},
    tls::PeerExpectation,
    worker::Worker,
};

/// Everything that says what a service is.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    /// Its name in metrics and logs.
    pub name: Host,
    /// Where its endpoints come from.
    pub target: Target,
    /// Whether they have sidecars.
    pub mtls: MtlsMode,
    /// Whom its certificate must name.
    pub expect: PeerExpectation,
    /// What is spoken.
    pub protocol: Protocol,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// Retries.
    pub retry: RetryPolicy,
    /// Ejection.
    pub outlier_detection: OutlierDetection,
    /// Active health checks.
    pub health_check: Option<HealthCheck>,
    /// Bounds.
    pub circuit_breakers: Thresholds,
    /// Which endpoint takes the next request.
    pub load_balancing: LoadBalancing,
}

impl ServiceSpec {
    /// A service of the configuration.
    pub fn configured(config: &ServiceConfig) -> Self {
        let host = config.hosts.first().unwrap_or(&config.name).clone();
        let source = config.endpoints.clone().unwrap_or_else(|| EndpointSource::Dns(host.clone()));
        Self {
            name: config.name.clone(),
            target: Target { source, port: config.port },
            mtls: config.mtls,
            expect: PeerExpectation { host, identities: config.identities.clone() },
            protocol: config.protocol,
            timeouts: config.timeouts.clone(),
            retry: config.retry.clone(),
            outlier_detection: config.outlier_detection.clone(),
            health_check: config.health_check.clone(),
            circuit_breakers: config.circuit_breakers.clone(),
            load_balancing: config.load_balancing.clone(),
        }
    }

    /// A service that is known by its name alone.
    pub fn from_name(host: Host, port: u16) -> Self {
        Self {
            name: host.clone(),
            target: Target { source: EndpointSource::Dns(host.clone()), port },
            mtls: MtlsMode::Required,
            expect: PeerExpectation { host, identities: Vec::new() },
            protocol: Protocol::Auto,
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            outlier_detection: OutlierDetection::default(),
            health_check: None,
            circuit_breakers: Thresholds::default(),
            load_balancing: LoadBalancing::default(),
        }
    }

    /// The one address that the workload dialled, spoken to as it is: no retry, since there is nowhere else to go.
    pub fn passthrough(destination: SocketAddr) -> Self {
        let name = Host::from_static("passthrough");
        Self {
            target: Target { source: EndpointSource::Static(vec![destination]), port: destination.port() },
            mtls: MtlsMode::Off,
            retry: RetryPolicy { attempts: 0, ..RetryPolicy::default() },
            outlier_detection: OutlierDetection {
                consecutive_5xx: 0,
                consecutive_gateway_failure: 0,
                consecutive_local_origin_failure: 0,
                ..OutlierDetection::default()
            },
            ..Self::from_name(name, destination.port())
        }
    }
}

/// TLS settings, as long as the identity that they were made from is the current one.
#[derive(Default)]
pub(super) struct TlsCache {
    pub(super) generation: u64,
    pub(super) http: Option<std::sync::Arc<ClientConfig>>,
    pub(super) bytes: Option<std::sync::Arc<ClientConfig>>,
}

/// A service.
pub struct Service {
    /// What it is.
    pub spec: ServiceSpec,
    balancer: RefCell<Balancer<Endpoint>>,
    state: RefCell<SetState>,
    changed: Rc<Notify>,
    detector: OutlierDetector,
    rests: Rests,
    /// The share of requests that may be retries.
    pub budget: RetryBudget,
    /// Bounds on what is under way.
    pub breakers: Rc<CircuitBreakers>,
    /// Its metrics.
    pub metrics: Rc<ServiceMetrics>,
    /// The metrics of requests that never reached an endpoint.
    pub unattached: Rc<RequestMetrics>,
    pub(super) tls: RefCell<TlsCache>,
    watch: RefCell<Option<Watch>>,
    task: Cell<Option<AbortHandle>>,
    checks: Cell<Option<AbortHandle>>,
    worker: Weak<Worker>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service({})", self.spec.name)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(checks) = self.checks.take() {
            checks.abort();
        }
        if let Some(task) = self.task.take() {
            task.abort();
            if let Some(worker) = self.worker.upgrade() {
                worker.shared.endpoints.withdraw(worker.index, self.spec.name.as_str());
            }
        }
    }
}

impl Service {
    /// Makes the service and begins to look for its endpoints.
    pub fn start(worker: &Rc<Worker>, spec: ServiceSpec) -> Rc<Self> {
        let service = Self::new(worker, spec);
        let mut watch = worker.shared.discovery.watch(service.spec.target.clone());
        service.apply(worker, &watch.snapshot());
        *service.watch.borrow_mut() = Some(worker.shared.discovery.watch(service.spec.target.clone()));
        let interval = service.spec.outlier_detection.interval.get();
        let weak = Rc::downgrade(&service);
        let task = spawn_local(async move {
            let mut sweep = tokio::time::interval(interval);
            loop {
                let changed = tokio::select! {
                    () = watch.changed() => true,
                    _ = sweep.tick() => false,
                };
                let Some(service) = weak.upgrade() else { return };
                let Some(worker) = service.worker.upgrade() else { return };
                if changed {
                    service.apply(&worker, &watch.snapshot());
                } else {
                    service.sweep(&worker);
                }
            }
        });
        service.task.set(Some(task.abort_handle()));
        service.checks.set(health_check::start(&service));
        service
    }

    /// The service that is the one address which the workload dialled.
    pub fn passthrough(worker: &Rc<Worker>, destination: SocketAddr) -> Rc<Self> {
        let service = Self::new(worker, ServiceSpec::passthrough(destination));
        service.balancer.borrow_mut().replace(vec![Endpoint::new(destination, 1, 0)]);
        *service.state.borrow_mut() = SetState::Fresh;
        service
    }

    fn new(worker: &Rc<Worker>, spec: ServiceSpec) -> Rc<Self> {
        let workers = u32::try_from(worker.shared.workers).unwrap_or(u32::MAX);
        Rc::new(Self {
            balancer: RefCell::new(Balancer::new(spec.outlier_detection.panic_threshold, &spec.load_balancing)),
            state: RefCell::new(SetState::Resolving),
            changed: Rc::default(),
            detector: OutlierDetector::new(&spec.outlier_detection),
            rests: Rests::new(&spec.outlier_detection),
            budget: RetryBudget::new(spec.retry.budget, spec.retry.budget_floor.div_ceil(workers.max(1))),
            breakers: CircuitBreakers::new(&spec.circuit_breakers, workers),
            metrics: worker.metrics.service(spec.name.as_str()),
            unattached: worker.metrics.requests(Direction::Outbound, spec.name.as_str(), ""),
            tls: RefCell::default(),
            watch: RefCell::new(None),
            task: Cell::new(None),
            checks: Cell::new(None),
            worker: Rc::downgrade(worker),
            spec,
        })
    }

    /// Whether its connections are never looked into.
    pub fn is_opaque(&self) -> bool {
        self.spec.protocol == Protocol::Opaque
    }

    /// Whether its endpoints are behind sidecars.
    pub fn is_mesh(&self) -> bool {
        self.spec.mtls == MtlsMode::Required
    }

    /// An endpoint for a request of this `hash` that was sent to `tried` already. Waits for the first answer of discovery, within
    /// `timeouts.connect`.
    pub async fn pick(&self, tried: &[Rc<Endpoint>], hash: Option<u64>) -> Result<Rc<Endpoint>, ConnectError> {
        if let Some(endpoint) = self.balancer.borrow().pick(Instant::now(), tried, hash) {
            return Ok(endpoint);
        }
        if self.is_resolving() {
            let pending = self.breakers.try_pending().map_err(|full| {
                self.metrics.circuit_open(full.which());
                ConnectError::new(Reason::CircuitOpen, format_args!("too many requests wait for {}", self.spec.name))
            })?;
            self.first_answer().await;
            drop(pending);
            if let Some(endpoint) = self.balancer.borrow().pick(Instant::now(), tried, hash) {
                return Ok(endpoint);
            }
        }
        // With panic switched off. An endpoint that asked for a rest is better than none.
        if self.balancer.borrow().endpoints().iter().filter(|e| e.wake(Instant::now())).count() > 0
            && let Some(endpoint) = self.balancer.borrow().pick(Instant::now(), tried, hash)
        {
            return Ok(endpoint);
        }
        Err(self.nobody())
    }

    fn is_resolving(&self) -> bool {
        matches!(*self.state.borrow(), SetState::Resolving)
    }

    /// Whether discovery has never said where it is.
    pub fn is_unknown(&self) -> bool {
        matches!(*self.state.borrow(), SetState::Resolving | SetState::Failed { .. })
    }

    /// Waits for the first answer of discovery, within `timeouts.connect`; without one the state says so afterwards.
    pub async fn first_answer(&self) {
        let answered = async {
            while self.is_resolving() {
                self.changed.notified().await;
            }
        };
        let _ = tokio::time::timeout(self.spec.timeouts.connect.get(), answered).await;
    }

    /// Why there is no endpoint to pick.
    pub fn nobody(&self) -> ConnectError {
        let name = &self.spec.name;
        let total = self.balancer.borrow().endpoints().len();
        if total > 0 {
            let checked = if self.spec.health_check.is_some() { "unhealthy, " } else { "" };
            let text = format!("all {total} endpoints of {name} are {checked}ejected or unreachable");
            return ConnectError::new(Reason::NoHealthyEndpoints, text);
        }
        let text = match &*self.state.borrow() {
            SetState::Resolving => format!("the endpoints of {name} are not known yet: DNS has not answered"),
            SetState::Failed { error } => format!("the endpoints of {name} are not known: {error}"),
            _ => format!("discovery has no endpoint for {name}"),
        };
        ConnectError::new(Reason::NoEndpoints, text)
    }

    /// Takes note of how a try ended.
    pub fn record(&self, endpoint: &Rc<Endpoint>, outcome: Outcome) {
        let total = self.balancer.borrow().endpoints().len();
        let Some(ejection) = self.detector.record(&endpoint.health, total, outcome, Instant::now()) else { return };
        self.metrics.ejection(ejection.cause);
        tracing::warn!(service = %self.spec.name, endpoint = %endpoint.address, cause = ejection.cause, "endpoint ejected");
        if let Some(worker) = self.worker.upgrade() {
            self.publish(&worker);
        }
    }

    /// An endpoint wants no request for `time`. It gets none for at most `retry.max_retry_after`, if others are there.
    pub fn told_to_wait(&self, endpoint: &Rc<Endpoint>, time: Duration) {
        let now = Instant::now();
        let time = time.min(self.spec.retry.max_retry_after.get());
        // What it says meanwhile, to requests from before, neither lengthens nor shortens that.
        if time.is_zero() || !endpoint.is_available(now) {
            return;
        }
        let total = self.balancer.borrow().endpoints().len();
        if self.rests.try_begin(now, now + time, self.detector.ejected(), total) {
            endpoint.rest(now + time);
            self.metrics.retry_after("respected");
            tracing::debug!(service = %self.spec.name, endpoint = %endpoint.address, ?time, "endpoint left alone: Retry-After");
        } else {
            self.metrics.retry_after("ejection_share");
        }
    }

    /// Whether an available endpoint is there that is neither of `tried` nor `failed`.
    pub fn has_other(&self, tried: &[Rc<Endpoint>], failed: &Rc<Endpoint>) -> bool {
        let now = Instant::now();
        let is_new = |e: &Rc<Endpoint>| !Rc::ptr_eq(e, failed) && !tried.iter().any(|t| Rc::ptr_eq(t, e));
        self.balancer.borrow().endpoints().iter().any(|e| is_new(e) && e.is_available(now))
    }

    /// A connect failed: perhaps the endpoint has moved.
    pub fn connect_failed(&self, endpoint: &Endpoint, error: &ConnectError) {
        self.metrics.connect_failure(error.reason.code());
        endpoint.connect_failed(Instant::now());
        if let Some(watch) = &*self.watch.borrow() {
            watch.re_resolve();
        }
    }

    fn sweep(&self, worker: &Worker) {
        self.balancer.borrow().relax();
        let readmitted =
            self.detector.sweep(self.balancer.borrow().endpoints().iter().map(|e| &e.health), Instant::now());
        for _ in 0..readmitted {
            self.metrics.readmission();
        }
        if readmitted > 0 {
            tracing::info!(service = %self.spec.name, readmitted, "endpoints readmitted");
        }
        self.publish(worker);
    }

    /// Takes over what discovery says; an endpoint that stays keeps its connections, its load and its health, and
    /// one that has gone ends with its last request.
    fn apply(self: &Rc<Self>, worker: &Worker, set: &EndpointSet) {
        *self.state.borrow_mut() = set.state.clone();
        let (mut gone, mut here) = (Vec::new(), Vec::new());
        {
            let mut balancer = self.balancer.borrow_mut();
            // An address is there once (`discovery::set`).
            let mut before: FxHashMap<_, _> = balancer.endpoints().iter().map(|e| (e.address, Rc::clone(e))).collect();
            let now: Vec<Rc<Endpoint>> = set
                .endpoints
                .iter()
                .map(|wanted| {
                    let endpoint = before.remove(&wanted.address).unwrap_or_else(|| {
                        here.push(wanted.address);
                        let new = Endpoint::new(wanted.address, wanted.weight, wanted.priority);
                        if self.spec.health_check.is_some() && !balancer.endpoints().is_empty() {
                            new.checked.expect();
                        }
                        new
                    });
                    endpoint.update(wanted.weight, wanted.priority);
                    endpoint
                })
                .collect();
            for old in before.into_values() {
                self.detector.forget(&old.health);
                gone.push(old.address);
            }
            gone.sort_unstable();
            balancer.replace(now);
        }
        if !gone.is_empty() || !here.is_empty() {
            let (here, gone) = (Named(&here), Named(&gone));
            tracing::info!(service = %self.spec.name, ?here, ?gone, state = ?set.state, "endpoints changed");
        }
        worker.services.moved(self, &gone, &here);
        self.publish(worker);
        self.changed.notify_waiters();
    }

    /// Its worker, until that ends.
    pub(super) fn worker(&self) -> Option<Rc<Worker>> {
        self.worker.upgrade()
    }

    /// Tells whoever waits when discovery has said something.
    pub(super) fn changed(&self) -> Rc<Notify> {
        Rc::clone(&self.changed)
    }

    /// Its endpoints now.
    pub(super) fn endpoints(&self) -> Vec<Rc<Endpoint>> {
        self.balancer.borrow().endpoints().to_vec()
    }

    /// Shows operators how its endpoints are.
    pub(super) fn publish(&self, worker: &Worker) {
        let now = Instant::now();
        let balancer = self.balancer.borrow();
        let endpoints = balancer.endpoints();
        let stale = matches!(*self.state.borrow(), SetState::Stale { .. });
        self.metrics.endpoints(endpoints.len(), self.detector.ejected(), stale);
        self.metrics.unhealthy(endpoints.iter().filter(|e| !e.checked.is_usable()).count());
        let report = endpoints
            .iter()
            .map(|e| EndpointReport {
                address: e.address,
                weight: e.current_weight(),
                priority: e.priority(),
                ejected_for: e.health.ejected_for(now),
                ejections: e.health.ejections(),
                unhealthy: !e.checked.is_usable(),
                check_failure: e.checked.failure(),
                requests: e.requests(),
            })
            .collect();
        worker.shared.endpoints.publish(worker.index, self.spec.name.as_str(), report);
    }
}

/// Addresses in a log: the first few, and how many there are beside them.
struct Named<'a>(&'a [SocketAddr]);

impl fmt::Debug for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FEW: usize = 16;
        let mut list = f.debug_list();
        list.entries(self.0.iter().take(FEW));
        if let Some(more) = self.0.len().checked_sub(FEW).filter(|n| *n > 0) {
            list.entry(&format_args!("and {more} more"));
        }
        list.finish()
    }
}
