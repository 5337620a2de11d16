//! Serves HTTP/2 on a connection that was accepted, until it ends or is told to finish.

use std::{convert::Infallible, future::Future, pin::pin, time::Duration};

use futures_util::FutureExt as _;
use http::{Request, Response};
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Body, Error, Incoming, LocalExec,
    client::{CONNECTION_WINDOW, STREAM_WINDOW},
};
use crate::net::Gathered;

/// Streams that one HTTP/2 connection may have open at once.
const MAX_STREAMS: u32 = 1_024;
/// Bytes of a request head, after decompression.
const MAX_HEADERS: u32 = 64 * 1024;

/// Serves HTTP/2. `finish` sends GOAWAY and lets the streams under way end (RFC 9113 section 6.8).
pub async fn http2<IO, H, F>(io: IO, handler: H, finish: impl Future<Output = ()>) -> Result<(), Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>> + 'static,
{
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        handler(request.map(Incoming::Http2)).map(Ok::<_, Infallible>)
    });
    let connection = http2::Builder::new(LocalExec)
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .serve_connection(TokioIo::new(Gathered::new(io)), service);
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        () = finish => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}
