//! A gRPC service without a schema: messages are plain bytes in the length-prefixed framing of
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, so that what the mesh must carry is in plain sight.
//!
//! `/test.Echo/Unary` answers its message; `/ServerStream` answers as many numbered messages as its message says;
//! `/ClientStream` answers "COUNT BYTES"; `/Bidi` answers every message at once; `/Fail` answers trailers only.
//! Request headers: `x-sleep-ms` waits first, `x-pause-ms` waits before each message of `/ServerStream`, `x-fail-code`
//! chooses the status of `/Fail`. `grpc-timeout` comes back as `x-grpc-timeout`.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::{HeaderMap, Request, Response, body::Incoming, header};
use tokio::sync::mpsc;

use super::{
    body::{Broken, OriginBody},
    routes::bare,
};

/// Where the frames of a [`FrameBody`] come from.
pub type FrameSender = mpsc::Sender<Result<Frame<Bytes>, Broken>>;

/// A body whose frames come from a channel.
pub struct FrameBody(mpsc::Receiver<Result<Frame<Bytes>, Broken>>);

impl FrameBody {
    /// Ends well when the sender is dropped.
    pub fn new(receiver: mpsc::Receiver<Result<Frame<Bytes>, Broken>>) -> Self {
        Self(receiver)
    }
}

impl Body for FrameBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.0.poll_recv(cx)
    }
}

/// Puts the 5-byte prefix before a message.
pub fn frame(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(0);
    out.put_u32(message.len() as u32);
    out.put_slice(message);
    out.freeze()
}

/// Takes one whole message off the front of `buffer`.
pub fn unframe(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = u32::from_be_bytes(buffer.get(1..5)?.try_into().ok()?) as usize;
    if buffer.len() < 5 + length {
        return None;
    }
    buffer.advance(5);
    Some(buffer.split_to(length).freeze())
}

/// Reads messages from a body as they come.
pub struct Messages<B> {
    body: B,
    buffer: BytesMut,
    /// The trailers, once the body ended.
    pub trailers: Option<HeaderMap>,
}

impl<B: Body<Data = Bytes> + Unpin> Messages<B> {
    /// Messages of this body.
    pub fn new(body: B) -> Self {
        Self { body, buffer: BytesMut::new(), trailers: None }
    }

    /// The next message; nothing at the end of the body or when it broke off, which the absence of trailers tells.
    pub async fn next(&mut self) -> Result<Option<Bytes>, B::Error> {
        loop {
            if let Some(message) = unframe(&mut self.buffer) {
                return Ok(Some(message));
            }
            match self.body.frame().await.transpose()? {
                None => return Ok(None),
                Some(frame) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
        }
    }
}

/// Whether this is a gRPC call.
pub fn is_grpc<B>(request: &Request<B>) -> bool {
    request.headers().get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

fn status(code: u32, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.into());
    if let Ok(value) = message.parse() {
        trailers.insert("grpc-message", value);
    }
    trailers
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// The answer to a gRPC call.
pub async fn respond(request: Request<Incoming>) -> Response<OriginBody> {
    let (head, body) = request.into_parts();
    if let Some(ms) = number(&head.headers, "x-sleep-ms") {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    let mut response = bare(hyper::StatusCode::OK);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/grpc"));
    if let Some(timeout) = head.headers.get("grpc-timeout") {
        response.headers_mut().insert("x-grpc-timeout", timeout.clone());
    }
    let pause = Duration::from_millis(number(&head.headers, "x-pause-ms").unwrap_or(0));
    let method = head.uri.path().strip_prefix("/test.Echo/").unwrap_or_default().to_owned();
    match method.as_str() {
        "Unary" | "ServerStream" | "ClientStream" | "Bidi" => {
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(async move {
                // A failed send means that the caller has left; its cancellation is counted by the body's watcher.
                let _ = call(&method, Messages::new(body), pause, sender).await;
            });
            response.map(|_| FrameBody::new(receiver).boxed_unsync())
        }
        "Fail" => {
            let code = number(&head.headers, "x-fail-code").unwrap_or(13) as u32;
            response.headers_mut().extend(status(code, "asked to fail"));
            response
        }
        other => {
            response.headers_mut().extend(status(12, &format!("no method {other}")));
            response
        }
    }
}

async fn call(
    method: &str,
    mut messages: Messages<Incoming>,
    pause: Duration,
    sender: FrameSender,
) -> Result<(), mpsc::error::SendError<Result<Frame<Bytes>, Broken>>> {
    let (mut count, mut bytes) = (0_u64, 0_u64);
    loop {
        let message = match messages.next().await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(_) => return sender.send(Err(Broken)).await,
        };
        count += 1;
        bytes += message.len() as u64;
        match method {
            "Unary" | "Bidi" => sender.send(Ok(Frame::data(frame(&message)))).await?,
            "ServerStream" => {
                let wanted: u64 = std::str::from_utf8(&message).ok().and_then(|s| s.trim().parse().ok()).unwrap_or(0);
                for n in 1..=wanted {
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    sender.send(Ok(Frame::data(frame(n.to_string().as_bytes())))).await?;
                }
            }
            _ => {}
        }
    }
    if method == "ClientStream" {
        sender.send(Ok(Frame::data(frame(format!("{count} {bytes}").as_bytes())))).await?;
    }
    sender.send(Ok(Frame::trailers(status(0, "fine")))).await
}
