//! Wires everything together. For now the admin servers alone.

use std::{io, sync::Arc};

use tokio::sync::watch;

use crate::{
    admin::{self, AdminState, EndpointsView, Face, Readiness},
    config::Config,
    telemetry::Metrics,
};

/// Why the sidecar could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The control runtime or an admin address is not to be had.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs the sidecar until SIGTERM, SIGINT or `POST /drain`.
pub fn run(config: Config) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (stop, mut stopped) = watch::channel(());
        let readiness = Readiness::new();
        let operator = admin::bind(config.admin.address)?;
        let telemetry = admin::bind(config.admin.telemetry_address)?;
        let state = Arc::new(AdminState {
            config: Arc::new(config),
            metrics: Metrics::new(),
            readiness: readiness.clone(),
            endpoints: EndpointsView::default(),
            certs: Box::new(|| serde_json::Value::Null),
            drain: Box::new(move || {
                readiness.draining();
                stop.send_replace(());
            }),
        });
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let (end, ended) = watch::channel(());
        let wait = |mut ended: watch::Receiver<()>| async move { drop(ended.changed().await) };
        let faces = async {
            tokio::join!(
                admin::serve(operator, state.clone(), Face::Operator, wait(ended.clone())),
                admin::serve(telemetry, state.clone(), Face::Telemetry, wait(ended)),
            )
        };
        let signal = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
                _ = stopped.changed() => {}
            }
            drop(end);
        };
        tokio::join!(faces, signal);
        Ok(())
    })
}
