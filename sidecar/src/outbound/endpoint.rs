//! One address of a service, as one worker sees it.

use std::{
    cell::Cell,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    balance::{self, Candidate, PeakEwma},
    http::client::H2Pool,
    http1::client::Pool,
    resilience::{ActiveHealth, HostHealth, full_jitter},
};

/// The first wait after a failed connect; it doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// No endpoint is left alone longer than this for connect failures.
const MAX_DOUBLINGS: u32 = 5;

/// An endpoint: its load, its health, its connections.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// A hash of the address, the same everywhere.
    identity: u64,
    weight: Cell<u32>,
    priority: Cell<u16>,
    load: PeakEwma,
    /// What outlier detection knows of it.
    pub health: HostHealth,
    /// What active health checks know of it.
    pub checked: ActiveHealth,
    requests: Cell<u64>,
    connect_failures: Cell<u32>,
    unavailable_until: Cell<Option<Instant>>,
    rests_until: Cell<Option<Instant>>,
    /// Connections that carry HTTP/2.
    pub h2: Rc<H2Pool>,
    /// Connections that carry HTTP/1.1, where the endpoint has no sidecar.
    pub h1: Rc<Pool>,
}

impl Endpoint {
    /// An endpoint of which nothing is known yet.
    pub fn new(address: SocketAddr, weight: u32, priority: u16) -> Rc<Self> {
        Rc::new(Self {
            address,
            identity: balance::hash(address.to_string().as_bytes()),
            weight: Cell::new(weight),
            priority: Cell::new(priority),
            load: PeakEwma::new(Instant::now()),
            health: HostHealth::default(),
            checked: ActiveHealth::default(),
            requests: Cell::new(0),
            connect_failures: Cell::new(0),
            unavailable_until: Cell::new(None),
            rests_until: Cell::new(None),
            h2: Rc::default(),
            h1: Rc::default(),
        })
    }

    /// Takes over what discovery says now.
    pub fn update(&self, weight: u32, priority: u16) {
        self.weight.set(weight);
        self.priority.set(priority);
    }

    /// Its weight among the endpoints of its priority.
    pub fn current_weight(&self) -> u32 {
        self.weight.get()
    }

    /// One more request was sent to it.
    pub fn count_request(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    /// Requests that this worker has sent to it.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// A connect failed: others are preferred for a while, so that each request need not find out again.
    pub fn connect_failed(&self, now: Instant) {
        let failures = self.connect_failures.get().saturating_add(1);
        self.connect_failures.set(failures);
        let wait = FIRST_BACKOFF * 2_u32.pow(failures.min(MAX_DOUBLINGS + 1) - 1);
        self.unavailable_until.set(Some(now + wait / 2 + full_jitter(wait / 2, 1)));
    }

    /// Whether it is left alone because it asked for it.
    pub fn rests(&self, now: Instant) -> bool {
        self.rests_until.get().is_some_and(|until| now < until)
    }

    /// It asked to be left alone until then.
    pub fn rest(&self, until: Instant) {
        self.rests_until.set(Some(until));
    }

    /// Nobody else can be used: true if it was left alone until now.
    pub fn wake(&self, now: Instant) -> bool {
        self.rests_until.take().is_some_and(|until| now < until)
    }

    /// A connect succeeded.
    pub fn connected(&self) {
        self.connect_failures.set(0);
        self.unavailable_until.set(None);
    }
}

impl Candidate for Endpoint {
    fn load(&self) -> &PeakEwma {
        &self.load
    }

    fn weight(&self) -> u32 {
        self.weight.get()
    }

    fn priority(&self) -> u16 {
        self.priority.get()
    }

    fn identity(&self) -> u64 {
        self.identity
    }

    fn seat(&self) -> u64 {
        thread_local! {
            /// Another one in each worker of each sidecar, so that together they use all endpoints alike.
            static ORDER: RandomState = RandomState::new();
        }
        ORDER.with(|order| order.hash_one(self.address))
    }

    fn is_available(&self, now: Instant) -> bool {
        self.checked.is_usable()
            && !self.health.is_ejected(now)
            && !self.rests(now)
            && self.unavailable_until.get().is_none_or(|until| now >= until)
    }
}
