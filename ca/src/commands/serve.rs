use std::{
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use outrigger_ca::{
    admin,
    attest::Attestation,
    authority::{Authority, Directory, Password, ServerNameText},
    limits::Limits,
    server::{self, Listeners, Live, ServeError, ServerCertificate},
    store::{Database, Store},
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{Failure, Kind, Outcome, Output, PruneAfter};
use crate::cli::AttestationArgs;

pub(crate) struct Serve {
    pub(crate) listen: SocketAddr,
    pub(crate) names: Vec<ServerNameText>,
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// `None`: in the CA's folder. "off": none.
    pub(crate) admin_socket: Option<PathBuf>,
    pub(crate) attestation: AttestationArgs,
    pub(crate) limits: Limits,
    pub(crate) prune_after: PruneAfter,
    pub(crate) password: Option<Password>,
}

/// What is left of the wish once its secrets have done their work.
struct Plan {
    listen: SocketAddr,
    metrics_listen: Option<SocketAddr>,
    admin_socket: Option<PathBuf>,
    attestation: Attestation,
    limits: Limits,
    prune_after: PruneAfter,
}

/// File descriptors that are not callers' connections: database, log, sockets, those of the metrics port.
const OTHER_FILES: u64 = 128;

pub(crate) fn serve(dir: &Path, wish: Serve, output: Output) -> Outcome {
    let Serve { listen, names, metrics_listen, admin_socket, attestation, mut limits, prune_after, password } = wish;
    let _held = Directory::hold(dir)?.ok_or_else(|| {
        let message = format!("\"outrigger-ca init --force\" is replacing the CA in {}; start again", dir.display());
        Failure::new(Kind::Refused, "ca_replaced", message)
    })?;
    let mut authority = Authority::open(dir, password.as_ref())?;
    authority.add_server_names(names);
    let (attestation, told) = super::attestation::attestation(attestation)?;
    if let Some(told) = told {
        tracing::info!("{told}");
    }
    limits.connections = within_file_limit(limits.connections);
    let plan = Plan { listen, metrics_listen, admin_socket, attestation, limits, prune_after };
    let database = Database::of(&authority)?;
    let upkeep = Database::of(&authority)?;
    let live = Live::new(authority, upkeep, password);
    let (store, thread) = Store::spawn(database).map_err(|e| ServeError::System("start the database's thread", e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| ServeError::System("start the runtime", e))?;
    let result = runtime.block_on(run(plan, Arc::clone(&live), store, output));
    // Ends every task, and with the last handle the database's thread, which first finishes what it was given.
    drop(runtime);
    // A database's client may not end within a runtime.
    drop(live);
    if thread.join().is_err() {
        tracing::error!("the database's thread panicked; this is a defect, please report it");
    }
    Ok(result?)
}

/// As many connections as this process may have files; the soft limit is raised first.
fn within_file_limit(connections: u32) -> u32 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return connections };
    let wished = u64::from(connections) + OTHER_FILES;
    let limit = if soft < wished && setrlimit(Resource::RLIMIT_NOFILE, wished.min(hard), hard).is_ok() {
        wished.min(hard)
    } else {
        soft
    };
    let most = u32::try_from(limit.saturating_sub(OTHER_FILES)).unwrap_or(u32::MAX).max(1);
    if most < connections {
        tracing::warn!(
            "this process may open {limit} files, so it takes {most} connections and not {connections}; raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
    connections.min(most)
}

async fn run(plan: Plan, live: Arc<Live>, store: Store, output: Output) -> Result<(), ServeError> {
    // Before anything is promised, so that no signal is missed.
    let stop = |kind| signal(kind).map_err(|e| ServeError::System("handle signals", e));
    let (mut terminate, mut interrupt) = (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?);
    let mut hang_up = stop(SignalKind::hangup())?;
    let (stopping, shutdown) = watch::channel(false);
    let authority = live.get();
    if let Err(why) = plan.attestation.warm_up().await {
        tracing::warn!(%why, "tokens of Kubernetes cannot be examined yet");
    }
    let enrolment = server::listen(plan.listen, "--listen").await?;
    let metrics = match plan.metrics_listen {
        Some(address) => Some(server::listen(address, "--metrics-listen").await?),
        None => None,
    };
    let admin = match plan.admin_socket.as_deref() {
        Some(path) if path == Path::new("off") => None,
        Some(path) => Some(admin::listen(path)?),
        // Nobody has asked for it, so that it cannot be had is no reason not to serve.
        None => admin::listen(&authority.path().join(admin::SOCKET))
            .inspect_err(|error| tracing::warn!(%error, "serving without the admin socket"))
            .ok(),
    };
    let bound =
        |listener: &TcpListener| listener.local_addr().map_err(|e| ServeError::System("read an own address", e));
    let address = bound(&enrolment)?;
    let metrics_address = metrics.as_ref().map(bound).transpose()?;
    let own = ServerCertificate::issue(&live, &store).await?;
    let line = if output.json {
        let names = authority.server_names();
        json!({
            "listening": address,
            "metrics": metrics_address,
            "server_names": names,
            "trust_domain": authority.trust_domain(),
        })
        .to_string()
    } else {
        let metrics = metrics_address.map_or("off".to_owned(), |address| format!("on {address}"));
        format!(
            "outrigger-ca listens on {address} as {} for trust domain {}; metrics are {metrics}",
            authority.server_names().join(", "),
            authority.trust_domain()
        )
    };
    let mut out = io::stdout();
    // A closed stdout is no reason not to serve.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    let looker = Arc::clone(&live);
    tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            looker.look();
        }
    });
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to stop; finishing what is under way");
        // The receiver lives as long as the server.
        let _ = stopping.send(true);
        // A second signal does not wait.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
    if let PruneAfter::Age(age) = plan.prune_after {
        tokio::spawn(server::keep_forgetting(store.clone(), age));
    }
    let listeners = Listeners { enrolment, metrics, admin };
    server::serve(listeners, live, store, own, plan.attestation, plan.limits, shutdown).await
}
