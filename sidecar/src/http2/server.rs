//! Serves HTTP/2 on a connection that was accepted, until it ends or is told to finish.

use std::{future::poll_fn, pin::pin, rc::Rc, time::Duration};

use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use tokio::task::spawn_local;

use super::{
    Code, KeepAlive,
    body::incoming,
    connection::{Accepted, Connection, Shared},
    driver::Driver,
    frame, message,
    sending::Sending,
    stream::Stream,
};
use crate::{
    http::{Body, Error, Incoming, reply::reply},
    net::Io,
    reason::Reason,
};

const KEEP_ALIVE: KeepAlive =
    KeepAlive { every: Duration::from_secs(30), timeout: Duration::from_secs(10), idle: true };

/// Serves requests, each in a task of its own. `finish` lets the streams under way end and takes no more of them (RFC
/// 9113 section 6.8).
///
/// # Errors
///
/// Where the connection broke, or the other side does not keep to the protocol; it was told so.
pub async fn serve<H, F>(
    io: impl Io + 'static,
    handler: H,
    finish: impl Future<Output = ()> + 'static,
) -> Result<(), Error>
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>> + 'static,
{
    serve_until(io, handler, finish, std::future::pending()).await
}

/// As [`serve`]; `cut` ends the connection and all its streams at once.
///
/// # Errors
///
/// Those of [`serve`]; to be cut off is none.
pub async fn serve_until<H, F>(
    io: impl Io + 'static,
    handler: H,
    finish: impl Future<Output = ()> + 'static,
    cut: impl Future<Output = ()> + 'static,
) -> Result<(), Error>
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>> + 'static,
{
    let connection = Connection::new(false);
    let mut driver = Driver::new(Rc::clone(&connection), Box::new(io), Some(KEEP_ALIVE));
    // A task of its own: it would be asked each time that the connection's has something to do.
    let finishing = spawn_local({
        let connection = Rc::clone(&connection);
        async move {
            let mut cut = pin!(cut);
            tokio::select! {
                biased;
                () = cut.as_mut() => return Driver::cut(&connection),
                () = finish => Driver::finish(&connection),
            }
            cut.await;
            Driver::cut(&connection);
        }
    });
    let serving = Serving { connection, finishing };
    poll_fn(|cx| {
        driver.poll(cx, |Accepted { request, stream }| match request {
            Some(request) => serving.begin(request, stream, &handler),
            None => serving.refuse(stream),
        })
    })
    .await
}

/// A connection that is served. Its streams end with it.
struct Serving {
    connection: Shared,
    finishing: tokio::task::JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.finishing.abort();
        self.connection.borrow_mut().fail(Error::Closed);
    }
}

impl Serving {
    /// Answers a request whose head is too large.
    fn refuse(&self, stream: Rc<Stream>) {
        let words = "the request head is larger than 64 KiB or has more than 256 fields (RFC 6585 section 5)";
        let mut response = reply(Reason::BadRequest, words, false);
        *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        stream.state.borrow_mut().unread = true;
        // What came behind it in one read.
        self.connection.borrow_mut().discard(&stream);
        spawn_local(respond(Rc::clone(&self.connection), stream, false, std::future::ready(response)));
    }

    fn begin<H, F>(&self, request: Request<()>, stream: Rc<Stream>, handler: &H)
    where
        H: Fn(Request<Incoming>) -> F,
        F: Future<Output = Response<Body>> + 'static,
    {
        if stream.state.borrow().error.is_some() {
            // It was broken off in the same read; what came of its body must not keep its place in the window.
            return self.connection.borrow_mut().discard(&stream);
        }
        let head = *request.method() == Method::HEAD;
        let body = incoming(&self.connection, &stream);
        let work = handler(request.map(|()| body));
        let task = spawn_local(respond(Rc::clone(&self.connection), Rc::clone(&stream), head, work));
        stream.state.borrow_mut().work = Some(task.abort_handle());
    }
}

async fn respond(connection: Shared, stream: Rc<Stream>, head: bool, work: impl Future<Output = Response<Body>>) {
    let (parts, body) = work.await.into_parts();
    let none = head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let ends = none || body.is_end_stream();
    {
        let now = &mut *connection.borrow_mut();
        let mut state = stream.state.borrow_mut();
        if state.error.is_some() || now.error.is_some() {
            return;
        }
        let length = if ends { None } else { body.size_hint().exact() };
        let at = frame::begin_fields(&mut now.out, ends, stream.id);
        message::put_response(&mut now.encoder, &parts, length, &mut now.out);
        frame::end_fields(&mut now.out, at, now.max_payload);
        state.sent = ends;
        state.expects = false;
        now.close_if_over(stream.id, &state);
        now.wake_driver();
    }
    drop(parts);
    if ends {
        drop(body);
    } else {
        let mut sending = Sending::new(body);
        if poll_fn(|cx| sending.poll(cx, &connection, &stream)).await.is_err() {
            return;
        }
    }
    let unwanted = {
        let state = stream.state.borrow();
        state.unread && !state.received
    };
    if unwanted {
        connection.borrow_mut().reset(&stream, Code::NO_ERROR, Error::Closed);
    }
}
