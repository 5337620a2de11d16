use std::{
    io::{self, Write},
    net::SocketAddr,
    path::Path,
    sync::Arc,
};

use outrigger_ca::{
    authority::{Authority, Password, ServerNameText},
    server::{self, ServeError, ServerCertificate},
    store::{Database, Store},
};
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{Outcome, Output};

pub(crate) struct Serve {
    pub(crate) listen: SocketAddr,
    pub(crate) names: Vec<ServerNameText>,
    pub(crate) password: Option<Password>,
}

pub(crate) fn serve(dir: &Path, wish: Serve, output: Output) -> Outcome {
    let mut authority = Authority::open(dir, wish.password.as_ref())?;
    // It has done its work; a server runs for long.
    drop(wish.password);
    authority.add_server_names(wish.names);
    let authority = Arc::new(authority);
    let database = Database::of(&authority)?;
    let (store, thread) = Store::spawn(database).map_err(|e| ServeError::System("start the database's thread", e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| ServeError::System("start the runtime", e))?;
    let result = runtime.block_on(run(wish.listen, authority, store, output));
    // Ends every task, and with the last handle the database's thread, which first finishes what it was given.
    drop(runtime);
    if thread.join().is_err() {
        tracing::error!("the database's thread panicked; this is a defect, please report it");
    }
    Ok(result?)
}

async fn run(listen: SocketAddr, authority: Arc<Authority>, store: Store, output: Output) -> Result<(), ServeError> {
    // Before anything is promised, so that no signal is missed.
    let stop = |kind| signal(kind).map_err(|e| ServeError::System("handle signals", e));
    let (mut terminate, mut interrupt) = (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?);
    let (stopping, shutdown) = watch::channel(false);
    let listener = server::listen(listen).await?;
    let address = listener.local_addr().map_err(|source| ServeError::Listen { address: listen, source })?;
    let own = ServerCertificate::issue(&authority, &store).await?;
    let line = if output.json {
        let names = authority.server_names();
        json!({ "listening": address, "server_names": names, "trust_domain": authority.trust_domain() }).to_string()
    } else {
        format!(
            "outrigger-ca listens on {address} as {} for trust domain {}",
            authority.server_names().join(", "),
            authority.trust_domain()
        )
    };
    let mut out = io::stdout();
    // A closed stdout is no reason not to serve.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
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
    server::serve(listener, authority, store, own, shutdown).await
}
