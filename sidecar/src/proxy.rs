//! Wires everything: what starts in which order, what drains in which order. Read this first.
//!
//! Start: listeners (so that a taken port is known at once), identity, discovery, admin, then the workers. The control
//! thread runs identity, discovery, admin and signals; each worker carries connections by itself.
//!
//! Stop, on SIGTERM or `POST /drain`: readiness goes off and everything is still served for `drain.minimum`; then no
//! new inbound connection is taken and peers get GOAWAY, while outbound goes on; when nothing has been under way for
//! a moment, or at `drain.timeout`, outbound ends too and the process exits with 0.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions},
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    task::spawn_local,
    time::Instant,
};

use crate::{
    admin::{self, AdminState, EndpointsView, Face, Readiness},
    config::{Config, Interception},
    discovery::Discovery,
    identity::{self, IdentityHandle, Readings},
    inbound,
    net::{
        accepted::{Accept, Listener},
        listen,
    },
    outbound,
    reason::Reason,
    route::Routes,
    telemetry::{Direction, Metrics},
    worker::{Entered, Open, Phase, Shared, Worker},
};

/// With more workers the connections to each peer multiply; a sidecar that needs more is told so by `workers`.
const MAX_DEFAULT_WORKERS: usize = 8;
/// The workload is taken to have finished when nothing was under way for this long.
const QUIET: Duration = Duration::from_millis(500);
/// The last moment for connections to be closed in good order.
const CLOSING: Duration = Duration::from_secs(1);
/// After an accept error that more accepts cannot cure, such as no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the sidecar could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}; is another sidecar running here, or is {setting} taken?")]
    Listen {
        /// The address.
        address: String,
        /// The setting that names it.
        setting: &'static str,
        /// Why.
        error: io::Error,
    },
    /// `inbound.interception` is `tproxy`, and the kernel does not let us.
    #[error(
        "cannot listen for TPROXY: {error}; give the sidecar the capability NET_RAW, or set inbound.interception to redirect"
    )]
    Transparent {
        /// Why.
        error: io::Error,
    },
    /// A route is not what `check` takes for right.
    #[error("the routes cannot be used: {0}; look at what \"outrigger-sidecar check\" says")]
    Routes(String),
    /// DNS cannot be used.
    #[error("{0}")]
    Discovery(#[from] crate::discovery::DiscoveryError),
    /// The operating system refused something basic.
    #[error("cannot start {what}: {error}")]
    System {
        /// What was to be started.
        what: &'static str,
        /// Why it could not.
        error: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |error| RunError::System { what, error }
}

/// Runs the sidecar until it is told to stop and has drained.
pub fn run(config: Config) -> Result<(), RunError> {
    raise_file_limit();
    let runtime = Builder::new_current_thread().enable_all().build().map_err(system("the control runtime"))?;
    let ended = runtime.block_on(control(Arc::new(config)));
    // A look-up of the CA's name by the system's resolver may take a minute; nobody waits for it any more.
    runtime.shutdown_background();
    ended
}

/// The sockets of one worker.
struct Listeners {
    inbound: StdListener,
    outbound: Vec<StdListener>,
}

async fn control(config: Arc<Config>) -> Result<(), RunError> {
    let workers = worker_count(&config);
    let routes = Arc::new(Routes::compile(&config).map_err(RunError::Routes)?);
    let listeners: Vec<Listeners> = (0..workers).map(|_| bind(&config)).collect::<Result<_, _>>()?;
    let operator = bind_admin(config.admin.address, "admin.address")?;
    let telemetry = bind_admin(config.admin.telemetry_address, "admin.telemetry_address")?;

    let identity = identity::start(&config.identity);
    let discovery = Discovery::new(&config.dns)?;
    let metrics = Metrics::new();
    observe(&metrics, &identity, &discovery);
    let readiness = Readiness::new();
    let endpoints = EndpointsView::default();
    let (phase, phases) = watch::channel(Phase::Running);
    let stop = Arc::new(Notify::new());

    let state = Arc::new(AdminState {
        config: Arc::clone(&config),
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        endpoints: endpoints.clone(),
        certs: Box::new({
            let identity = identity.clone();
            move || serde_json::to_value(identity.status()).unwrap_or_default()
        }),
        drain: Box::new({
            let stop = Arc::clone(&stop);
            move || stop.notify_one()
        }),
    });
    tokio::spawn(admin::serve(operator, Arc::clone(&state), Face::Operator, std::future::pending()));
    tokio::spawn(admin::serve(telemetry, state, Face::Telemetry, std::future::pending()));
    tokio::spawn(watch_certificate(identity.clone(), readiness.clone()));

    let shared =
        Shared { config: Arc::clone(&config), routes, identity, discovery, metrics, endpoints, phase: phases, workers };
    let busy = start_workers(listeners, &shared)?;
    readiness.set(admin::LISTENERS, Ok(()));
    tracing::info!(workers, inbound = config.inbound.port, outbound = config.outbound.port, "outrigger-sidecar runs");

    told_to_stop(&stop).await?;
    drain(&config, &readiness, &phase, &busy).await;
    Ok(())
}

fn worker_count(config: &Config) -> usize {
    let available = || thread::available_parallelism().map_or(1, usize::from).min(MAX_DEFAULT_WORKERS);
    config.workers.map_or_else(available, |n| n.get() as usize)
}

fn bind(config: &Config) -> Result<Listeners, RunError> {
    let taken = |setting, host: &str, port: u16| {
        let address = format!("{host}:{port}");
        move |error| RunError::Listen { address, setting, error }
    };
    let (inbound, outbound) = (config.inbound.port, config.outbound.port);
    let transparent = config.inbound.interception == Interception::Tproxy;
    let not_permitted = |error: io::Error| {
        if transparent && error.kind() == io::ErrorKind::PermissionDenied {
            return RunError::Transparent { error };
        }
        taken("inbound.port", "[::]", inbound)(error)
    };
    Ok(Listeners {
        inbound: listen::bind_any(inbound, transparent).map_err(not_permitted)?,
        outbound: listen::bind_loopback(outbound).map_err(taken("outbound.port", "127.0.0.1", outbound))?,
    })
}

fn bind_admin(address: SocketAddr, setting: &'static str) -> Result<TcpListener, RunError> {
    admin::bind(address).map_err(|error| RunError::Listen { address: address.to_string(), setting, error })
}

fn observe(metrics: &Metrics, identity: &IdentityHandle, discovery: &Discovery) {
    let control = metrics.control();
    control.identity_expiry({
        let identity = identity.clone();
        move || identity.current().map(|i| i.not_after)
    });
    control.identity_renewals.read_from({
        let identity = identity.clone();
        move || {
            let (ok, failed) = identity.renewals();
            vec![("ok", ok), ("failed", failed)]
        }
    });
    control.trust_readings.read_from({
        let identity = identity.clone();
        move || {
            let Readings { ok, refused, absent, failed, .. } = identity.readings();
            vec![("ok", ok), ("refused", refused), ("absent", absent), ("failed", failed)]
        }
    });
    control.trust_read({
        let identity = identity.clone();
        move || identity.readings().last_ok
    });
    control.lists_next_update({
        let identity = identity.clone();
        move || identity.lists_next_update()
    });
    control.dns_lookups.read_from({
        let discovery = discovery.clone();
        move || {
            let stats = discovery.stats();
            vec![("ok", stats.lookups_ok), ("empty", stats.lookups_empty), ("failed", stats.lookups_failed)]
        }
    });
}

/// Keeps the readiness condition of the certificate true to the facts, expiry included.
async fn watch_certificate(identity: IdentityHandle, readiness: Readiness) {
    let mut changes = identity.subscribe();
    loop {
        readiness.set(admin::CERTIFICATE, identity.status().ready());
        // Expiry is no change that anybody announces.
        let _ = tokio::time::timeout(Duration::from_secs(1), changes.changed()).await;
    }
}

fn start_workers(listeners: Vec<Listeners>, shared: &Shared) -> Result<Vec<Arc<AtomicUsize>>, RunError> {
    let mut busy = Vec::new();
    for (index, listeners) in listeners.into_iter().enumerate() {
        let (shared, count) = (shared.clone(), Arc::new(AtomicUsize::new(0)));
        busy.push(Arc::clone(&count));
        thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let _down_together = DownTogether;
                if let Err(error) = work(index, shared, count, listeners) {
                    // A sidecar that has lost a worker would drop the connections that the kernel gives it.
                    tracing::error!(%error, worker = index, "a worker could not start");
                    std::process::exit(1);
                }
            })
            .map_err(system("a worker thread"))?;
    }
    Ok(busy)
}

/// A worker that panics takes the process with it, and so does who accepts for it: the kernel would go on giving its
/// sockets connections that nobody takes. A panic in one connection's task does not come here.
struct DownTogether;

impl Drop for DownTogether {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!("a worker panicked; the sidecar ends so that it can be started anew");
            std::process::exit(1);
        }
    }
}

fn work(index: usize, shared: Shared, busy: Arc<AtomicUsize>, listeners: Listeners) -> io::Result<()> {
    // One queue for all tasks, whoever wakes them: what waits for the end of a turn (`http2::driver`) comes last.
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(async move {
        let worker = Worker::new(index, shared, busy);
        worker.services.start(&worker);
        let here = Rc::clone(&worker);
        spawn_local(async move { here.peers.follow(&here.shared.identity).await });
        for listener in listeners.outbound {
            let (here, open) = (Rc::clone(&worker), worker.outbound_open.clone());
            let listener = Listener::new(listener)?;
            spawn_local(accept(here, listener, Direction::Outbound, open, Phase::Closing, outbound::begin));
        }
        let open = worker.inbound.open.clone();
        let inbound = listen::into_tokio(listeners.inbound)?;
        let begin = |worker, stream, peer, entered| {
            spawn_local(inbound::serve(worker, stream, peer, entered));
            true
        };
        accept(Rc::clone(&worker), inbound, Direction::Inbound, open, Phase::Finishing, begin).await;
        worker.reached(Phase::Closing).await;
        tokio::time::sleep(CLOSING).await;
        Ok(())
    })
}

/// Accepts connections until `until`, then takes those that the kernel has accepted already.
async fn accept<L: Accept>(
    worker: Rc<Worker>,
    listener: L,
    direction: Direction,
    open: Open,
    until: Phase,
    begin: impl Fn(Rc<Worker>, L::Connection, SocketAddr, Entered) -> bool,
) {
    let _down_together = DownTogether;
    let take = |accepted: io::Result<(L::Connection, SocketAddr)>| match accepted {
        Ok((stream, peer)) => {
            let Some(entered) = open.enter() else {
                worker.metrics.error(direction, Reason::Overload.code());
                listen::reset_on_close(&stream);
                return true;
            };
            begin(Rc::clone(&worker), stream, peer, entered)
        }
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            false
        }
    };
    let mut reached = std::pin::pin!(worker.reached(until));
    loop {
        tokio::select! {
            biased;
            () = reached.as_mut() => break,
            accepted = listener.accept() => {
                if !take(accepted) {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    while let Some(accepted) = futures_util::FutureExt::now_or_never(listener.accept()) {
        if !take(accepted) {
            break;
        }
    }
}

async fn told_to_stop(stop: &Notify) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(system("the handler of SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("the handler of SIGINT"))?;
    let why = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = stop.notified() => "POST /drain",
    };
    tracing::info!("{why}: draining");
    Ok(())
}

async fn drain(config: &Config, readiness: &Readiness, phase: &watch::Sender<Phase>, busy: &[Arc<AtomicUsize>]) {
    let end = Instant::now() + config.drain.timeout.get();
    let under_way = || busy.iter().map(|b| b.load(Ordering::Relaxed)).sum::<usize>();
    readiness.draining();
    phase.send_replace(Phase::Draining);
    tokio::time::sleep_until((Instant::now() + config.drain.minimum.get()).min(end)).await;
    phase.send_replace(Phase::Finishing);
    let mut quiet_since = Instant::now();
    while Instant::now() < end && quiet_since.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if under_way() > 0 {
            quiet_since = Instant::now();
        }
    }
    let left = under_way();
    if left > 0 {
        tracing::warn!(left, "drain.timeout is over; what is still under way is cut off");
    }
    phase.send_replace(Phase::Closing);
    let closed = Instant::now() + CLOSING;
    while Instant::now() < closed && under_way() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The goodbyes of idle connections are in the sockets by now.
    tokio::time::sleep(Duration::from_millis(50)).await;
    tracing::info!("drained");
}

/// Each connection takes two descriptors; the soft limit of 1,024 is there for `select`, which we do not use.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, hard, "the limit on open files cannot be raised");
    }
}
