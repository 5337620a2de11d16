//! Upgraded connections (RFC 9110 section 7.8), WebSocket among them, across the mesh.
//!
//! Between sidecars an upgrade is an ordinary HTTP/2 request whose header `outrigger-upgrade` names the protocol; once
//! the other sidecar has answered with the same header, the bodies of the two directions are the connection's bytes.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::{
    Incoming,
    body::{Activity, BodyError},
};
use crate::{
    http1::Upgraded,
    net::copy::{Ended, copy_both},
};

/// Pieces on their way from the socket to the stream; more would only add latency.
const IN_FLIGHT: usize = 4;
const PIECE: usize = 16 * 1024;

/// The sending half of a tunnel, as a body.
#[derive(Debug)]
pub struct TunnelBody(mpsc::Receiver<Result<Bytes, BodyError>>);

/// Feeds a [`TunnelBody`].
#[derive(Debug)]
pub struct TunnelSender(mpsc::Sender<Result<Bytes, BodyError>>);

/// A body whose bytes are sent while it is under way.
pub fn channel() -> (TunnelSender, TunnelBody) {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    (TunnelSender(sender), TunnelBody(receiver))
}

#[cfg(test)]
impl TunnelSender {
    /// Sends a piece.
    pub(crate) async fn send(&self, piece: Bytes) {
        // A body that has gone needs no more.
        let _ = self.0.send(Ok(piece)).await;
    }
}

impl TunnelBody {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|bytes| bytes.map(Frame::data)))
    }
}

/// How an upgraded connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By both of its sides.
    Closed,
    /// One of its sides broke.
    Broke,
    /// Nothing moved for the idle time.
    Idle,
}

/// Carries an upgraded connection's bytes over a stream, each direction until its own end, both no longer than until
/// nothing has moved for `idle`.
pub async fn carry(upgraded: Upgraded, sender: TunnelSender, mut incoming: Incoming, idle: Option<Duration>) -> End {
    let (mut read, mut write) = tokio::io::split(upgraded);
    let activity = Activity::new(idle);
    let up = async {
        let sender = sender;
        let mut buffer = bytes::BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            let read = tokio::select! {
                biased;
                read = read.read_buf(&mut buffer) => read,
                // The stream is gone, and with it who would take more.
                () = sender.0.closed() => return Err(End::Broke),
            };
            match read {
                Ok(n) if n > 0 => {
                    activity.touch();
                    if sender.0.send(Ok(buffer.split().freeze())).await.is_err() {
                        return Ok(());
                    }
                }
                // Dropping the sender ends the stream's direction.
                Ok(_) => return Ok(()),
                Err(e) => {
                    // The other side must not take a broken connection for a finished one. It may be gone, too.
                    let _ = sender.0.send(Err(BodyError::Broke(e.kind()))).await;
                    return Err(End::Broke);
                }
            }
        }
    };
    let down = async {
        while let Some(frame) = poll_fn(|cx| incoming.poll(cx)).await {
            // A stream that broke off is no end: the connection is dropped as it is, in both directions.
            let frame = frame.map_err(|_| End::Broke)?;
            activity.touch();
            if let Ok(data) = frame.into_data()
                && (write.write_all(&data).await.is_err() || write.flush().await.is_err())
            {
                return Err(End::Broke);
            }
        }
        // The peer learns of the end; where it has gone already there is nobody to tell.
        let _ = write.shutdown().await;
        Ok(())
    };
    tokio::select! {
        biased;
        ended = async { tokio::try_join!(up, down) } => ended.map_or_else(|broke| broke, |_| End::Closed),
        _ = activity.stalled() => End::Idle,
    }
}

/// The same between two upgraded connections.
pub async fn join(mut first: Upgraded, mut second: Upgraded, idle: Option<Duration>) -> End {
    let none = bytes::BytesMut::new();
    match copy_both(&mut first, &mut second, none.clone(), none, idle, |_, _| {}).await.1 {
        Ended::Idle => End::Idle,
        Ended::Closed => End::Closed,
        Ended::FirstBroke(_) | Ended::SecondBroke(_) => End::Broke,
    }
}
