//! One worker: a thread with a runtime of its own, and everything that its connections share.

use std::{
    cell::Cell,
    fmt,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::watch;

use crate::{
    admin::EndpointsView,
    config::Config,
    discovery::Discovery,
    identity::IdentityHandle,
    inbound::Inbound,
    outbound::Services,
    route::Routes,
    telemetry::{Metrics, WorkerMetrics},
    tls::Peers,
};

/// Where the sidecar stands between its start and its end. Each phase only ever follows the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Running,
    /// Told to stop: not ready any more, still serving everything, so that callers can learn of it.
    Draining,
    /// No new inbound connection; those that are open end after the requests under way.
    Finishing,
    /// No new outbound connection either.
    Closing,
}

/// What all threads share.
#[derive(Clone)]
pub struct Shared {
    /// The configuration.
    pub config: Arc<Config>,
    /// Its routes.
    pub routes: Arc<Routes>,
    /// Who this workload is.
    pub identity: IdentityHandle,
    /// Names to endpoints.
    pub discovery: Discovery,
    /// All metrics.
    pub metrics: Metrics,
    /// The operator's view of the endpoints.
    pub endpoints: EndpointsView,
    /// Where the sidecar stands.
    pub phase: watch::Receiver<Phase>,
    /// How many workers there are.
    pub workers: usize,
}

/// One worker's own.
pub struct Worker {
    /// Its number, from 0.
    pub index: usize,
    /// What it shares with the others.
    pub shared: Shared,
    /// Its metrics.
    pub metrics: WorkerMetrics,
    /// The services that the workload calls.
    pub services: Services,
    /// What inbound connections share.
    pub inbound: Inbound,
    /// The peers of its mesh connections.
    pub peers: Peers,
    /// Outbound connections that are open.
    pub outbound_open: Open,
    busy: Rc<BusyCount>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({})", self.index)
    }
}

impl Worker {
    /// The worker of this thread. `busy` tells the control thread how much is under way.
    pub fn new(index: usize, shared: Shared, busy: Arc<AtomicUsize>) -> Rc<Self> {
        let metrics = shared.metrics.worker();
        let services = Services::new(&shared.config, &shared.routes);
        let inbound = Inbound::new(&shared.config);
        let outbound_open = Open::new(shared.config.outbound.max_connections.get());
        let busy = Rc::new(BusyCount { here: Cell::new(0), shared: busy });
        Rc::new(Self { index, shared, metrics, services, inbound, peers: Peers::default(), outbound_open, busy })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Marks something as under way until the result is dropped: the drain waits for it.
    pub fn busy(&self) -> Busy {
        self.busy.change(1);
        Busy(Rc::clone(&self.busy))
    }

    /// Ends when the sidecar has reached `phase`.
    pub fn reached(&self, phase: Phase) -> impl Future<Output = ()> + use<> {
        let mut receiver = self.shared.phase.clone();
        async move {
            // The sender lives as long as the process; should it be gone, this is the end as well.
            let _ = receiver.wait_for(|now| *now >= phase).await;
        }
    }
}

struct BusyCount {
    here: Cell<usize>,
    shared: Arc<AtomicUsize>,
}

impl BusyCount {
    fn change(&self, by: isize) {
        let now = self.here.get().saturating_add_signed(by);
        self.here.set(now);
        // This thread alone writes: a store is enough.
        self.shared.store(now, Ordering::Relaxed);
    }
}

/// Something under way.
pub struct Busy(Rc<BusyCount>);

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Busy")
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.change(-1);
    }
}

/// A count of open things with a limit.
#[derive(Debug, Clone)]
pub struct Open {
    count: Rc<Cell<u32>>,
    limit: u32,
}

impl Open {
    /// None open, `limit` allowed.
    pub fn new(limit: u32) -> Self {
        Self { count: Rc::new(Cell::new(0)), limit }
    }

    /// Takes a place, where there is one.
    pub fn enter(&self) -> Option<Entered> {
        let now = self.count.get();
        (now < self.limit).then(|| {
            self.count.set(now + 1);
            Entered(Rc::clone(&self.count))
        })
    }
}

/// A place among the open things.
#[derive(Debug)]
pub struct Entered(Rc<Cell<u32>>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
