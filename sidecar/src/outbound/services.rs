//! The services of the workload: those of the configuration, and those that a name in a mesh domain makes.

use std::{
    cell::{Cell, OnceCell, RefCell},
    fmt,
    net::SocketAddr,
    rc::{Rc, Weak},
    time::Duration,
};

use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::{
    routed::HostRoutes,
    service::{Service, ServiceSpec},
};
use crate::{
    config::{Config, Host, MtlsMode},
    route::Routes,
    worker::Worker,
};

/// Services made from names alone, of one worker. Beyond it the ones unused for longest go.
const MAX_FROM_NAMES: usize = 2_000;
/// A service made from a name is forgotten after this long without a request, when room is needed.
const UNUSED: Duration = Duration::from_secs(60);

struct FromName {
    service: Rc<Service>,
    used: Cell<Instant>,
    /// A route sends requests there, so it is never forgotten.
    of_route: Cell<bool>,
}

/// Finds services by name and by address.
pub struct Services {
    configured: FxHashMap<(Host, u16), usize>,
    /// The configured services by their names, which backends of routes have.
    by_name: FxHashMap<Host, usize>,
    /// By the number of their table, once a request has named one of its hosts.
    routes: Box<[OnceCell<Rc<HostRoutes>>]>,
    /// The configured services that go through the mesh, by their port.
    required: FxHashMap<u16, Vec<usize>>,
    made: RefCell<Vec<Option<Rc<Service>>>>,
    from_names: RefCell<FxHashMap<(Host, u16), FromName>>,
    addresses: RefCell<FxHashMap<SocketAddr, Weak<Service>>>,
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Services({} configured, {} from names)", self.configured.len(), self.from_names.borrow().len())
    }
}

impl Services {
    /// The services of `config` with its `routes`; none is started yet.
    pub fn new(config: &Config, routes: &Routes) -> Self {
        let mut configured = FxHashMap::default();
        let mut required = FxHashMap::<u16, Vec<usize>>::default();
        for (index, service) in config.services.iter().enumerate() {
            if service.mtls == MtlsMode::Required {
                required.entry(service.port).or_default().push(index);
            }
            let hosts = if service.hosts.is_empty() { std::slice::from_ref(&service.name) } else { &service.hosts };
            for host in hosts {
                configured.insert((host.clone(), service.port), index);
            }
        }
        let routed = !routes.tables().is_empty();
        let by_name = config.services.iter().enumerate().filter(|_| routed).map(|(i, s)| (s.name.clone(), i)).collect();
        let routes = routes.tables().iter().map(|_| OnceCell::new()).collect();
        let made = RefCell::new(vec![None; config.services.len()]);
        let (from_names, addresses) = Default::default();
        Self { configured, by_name, routes, required, made, from_names, addresses }
    }

    /// Starts every configured service, so that its endpoints are known before the first call.
    pub fn start(&self, worker: &Rc<Worker>) {
        let all = self.made.borrow().len();
        for index in 0..all {
            self.configured_service(worker, index);
        }
    }

    fn configured_service(&self, worker: &Rc<Worker>, index: usize) -> Option<Rc<Service>> {
        if let Some(Some(service)) = self.made.borrow().get(index) {
            return Some(Rc::clone(service));
        }
        let service = Service::start(worker, ServiceSpec::configured(worker.config().services.get(index)?));
        *self.made.borrow_mut().get_mut(index)? = Some(Rc::clone(&service));
        Some(service)
    }

    /// Whether `host` at `port` is a service.
    pub fn knows(&self, worker: &Worker, host: &Host, port: u16) -> bool {
        // A key of the same shape as the map's costs one reference count.
        self.configured.contains_key(&(host.clone(), port)) || in_mesh(worker.config(), host)
    }

    /// The service that `host` at `port` means.
    pub fn by_host(&self, worker: &Rc<Worker>, host: &Host, port: u16) -> Option<Rc<Service>> {
        let key = (host.clone(), port);
        if let Some(index) = self.configured.get(&key) {
            return self.configured_service(worker, *index);
        }
        if !in_mesh(worker.config(), host) {
            return None;
        }
        let now = Instant::now();
        if let Some(known) = self.from_names.borrow().get(&key) {
            known.used.set(now);
            return Some(Rc::clone(&known.service));
        }
        let mut from_names = self.from_names.borrow_mut();
        if from_names.len() >= MAX_FROM_NAMES {
            from_names.retain(|_, s| s.of_route.get() || now - s.used.get() < UNUSED);
            if from_names.len() >= MAX_FROM_NAMES {
                tracing::warn!(%host, "more than {MAX_FROM_NAMES} mesh services in use at once; this one is not taken up");
                return None;
            }
        }
        let service = Service::start(worker, ServiceSpec::from_name(host.clone(), port));
        let entry = FromName { service: Rc::clone(&service), used: Cell::new(now), of_route: Cell::new(false) };
        from_names.insert(key, entry);
        Some(service)
    }

    /// The service that a backend of a route means: one of the configuration by its name, or one made from its name.
    pub fn backend(&self, worker: &Rc<Worker>, name: &Host, port: Option<u16>) -> Option<Rc<Service>> {
        if let Some(index) = self.by_name.get(name) {
            return self.configured_service(worker, *index);
        }
        let port = port?;
        let service = self.by_host(worker, name, port)?;
        if let Some(entry) = self.from_names.borrow().get(&(name.clone(), port)) {
            entry.of_route.set(true);
        }
        Some(service)
    }

    /// The routes that requests for `host` at `port` take, if a route names it.
    pub fn routes(&self, worker: &Worker, host: &Host, port: u16) -> Option<Rc<HostRoutes>> {
        let number = worker.shared.routes.find(host, port)?;
        let table = worker.shared.routes.tables().get(number)?;
        Some(Rc::clone(self.routes.get(number)?.get_or_init(|| Rc::new(HostRoutes::new(table)))))
    }

    /// The service that has an endpoint at `address`.
    pub fn by_address(&self, address: SocketAddr) -> Option<Rc<Service>> {
        self.addresses.borrow().get(&address).and_then(Weak::upgrade)
    }

    /// The same, where it is known already whether there is one.
    pub fn known_by_address(&self, worker: &Rc<Worker>, address: SocketAddr) -> Option<Option<Rc<Service>>> {
        let known = self.by_address(address);
        (known.is_some() || self.unknown_at(worker, address.port()).is_empty()).then_some(known)
    }

    /// The configured services that go through the mesh and of which discovery has never said where they are: who dials
    /// `port` may mean one of them.
    pub fn unknown_at(&self, worker: &Rc<Worker>, port: u16) -> Vec<Rc<Service>> {
        let indices = self.required.get(&port).map_or(&[][..], Vec::as_slice);
        let services = indices.iter().filter_map(|index| self.configured_service(worker, *index));
        services.filter(|service| service.is_unknown()).collect()
    }

    /// Records where a service's endpoints are now.
    pub fn moved(&self, service: &Rc<Service>, gone: &[SocketAddr], here: &[SocketAddr]) {
        let mut addresses = self.addresses.borrow_mut();
        let this = Rc::downgrade(service);
        for address in gone {
            if addresses.get(address).is_some_and(|s| s.ptr_eq(&this)) {
                addresses.remove(address);
            }
        }
        for address in here {
            let taken = addresses.get(address).is_some_and(|s| s.strong_count() > 0);
            if !taken {
                addresses.insert(*address, this.clone());
            }
        }
    }
}

fn in_mesh(config: &Config, host: &Host) -> bool {
    config.outbound.mesh_domains.iter().any(|domain| host.is_under(domain))
}
