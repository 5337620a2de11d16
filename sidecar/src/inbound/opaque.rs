//! Opaque bytes of a peer, handed to the application.

use std::rc::Rc;

use bytes::BytesMut;
use tokio::net::TcpStream;

use super::application::Leg;
use crate::{
    http::client::ConnectError,
    net::{copy, listen},
    reason::Reason,
    telemetry::{Direction, Transport},
    worker::{Phase, Worker},
};

/// Carries bytes both ways until both sides have ended. `socket` gives the peer's socket; `application` is the
/// connection to the application where there is one already, and what it has said. `refused` ends it, with the reason.
pub(super) async fn carry<IO>(
    worker: &Rc<Worker>,
    mut io: IO,
    socket: impl Fn(&IO) -> &TcpStream,
    application: Option<(TcpStream, BytesMut)>,
    transport: Transport,
    leg: Leg,
    refused: impl Future<Output = ConnectError>,
) -> Result<(), ConnectError>
where
    IO: copy::Side,
{
    let dialled = match application {
        Some(application) => Ok(application),
        None => worker.inbound.applications.dial(leg).await.map(|application| (application, BytesMut::new())),
    };
    let (mut application, said) = match dialled {
        Ok(application) => application,
        Err(e) => {
            // What the workload sees is what it would see without sidecars: a connection that breaks.
            listen::reset_on_close(socket(&io));
            return Err(e);
        }
    };
    let metrics = worker.metrics.connections(Direction::Inbound, transport);
    let workload = worker.metrics.connections(Direction::Inbound, Transport::Workload);
    let _busy = worker.busy();
    metrics.opened();
    workload.opened();
    let copying = copy::copy_both(&mut io, &mut application, BytesMut::new(), said, None, |forth, back| {
        metrics.bytes(forth, back);
        workload.bytes(back, forth);
    });
    let ended = tokio::select! {
        biased;
        (_, ended) = copying => Ok(ended),
        () = worker.reached(Phase::Closing) => {
            let text = "an opaque connection was still open at the end of the drain time";
            Err(ConnectError::new(Reason::Draining, text))
        }
        refused = refused => Err(refused),
    };
    metrics.closed();
    workload.closed();
    match ended {
        Ok(copy::Ended::Closed) => Ok(()),
        Ok(copy::Ended::FirstBroke(error)) => {
            tracing::debug!(%error, "the peer's connection broke");
            listen::reset_on_close(&application);
            Ok(())
        }
        Ok(copy::Ended::SecondBroke(error)) => {
            listen::reset_on_close(socket(&io));
            Err(ConnectError::new(
                Reason::ApplicationReset,
                format_args!("the application broke a connection: {error}"),
            ))
        }
        Ok(copy::Ended::Idle) => {
            listen::reset_on_close(socket(&io));
            Err(ConnectError::new(Reason::IdleTimeout, "an opaque connection was idle for too long"))
        }
        Err(error) => {
            listen::reset_on_close(socket(&io));
            if error.reason == Reason::TlsFailed {
                // The application must not take what was cut off for a finished one.
                listen::reset_on_close(&application);
            }
            Err(error)
        }
    }
}
