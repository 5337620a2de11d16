//! Sends requests over a connection that all share.

use std::{future::poll_fn, rc::Rc, task::Poll};

use http::{Method, Response, request::Parts};
use http_body::Body as _;
use tokio::task::spawn_local;

use super::{
    Code, KeepAlive,
    body::incoming,
    connection::{Connection, Shared},
    driver::Driver,
    frame, message,
    sending::Sending,
    stream::{Stream, keep},
};
use crate::{
    http::{Body, Error, Incoming, SendError},
    net::Io,
};

/// Sends requests. When it is gone, the connection ends with its last stream.
pub struct Sender(Shared);

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

/// Starts HTTP/2 on a connection. The second result drives it and ends with it.
pub fn start(
    io: impl Io + 'static,
    keep_alive: Option<KeepAlive>,
) -> (Sender, impl Future<Output = Result<(), Error>>) {
    let connection = Connection::new(true);
    let mut driver = Driver::new(Rc::clone(&connection), Box::new(io), keep_alive);
    let drive = async move { poll_fn(|cx| driver.poll(cx, |_| {})).await };
    (Sender(connection), drive)
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut now = self.0.borrow_mut();
        now.abandoned = true;
        now.wake_driver();
    }
}

impl Sender {
    /// Whether requests can be sent.
    pub fn is_usable(&self) -> bool {
        self.0.borrow().is_usable()
    }

    /// Ends the connection and every request on it at once.
    pub fn cut(&self) {
        Driver::cut(&self.0);
    }

    /// How many requests would not have to wait for a stream.
    pub fn room(&self) -> usize {
        self.0.borrow().room()
    }

    /// Requests whose streams are open, or that wait for one.
    pub fn streams(&self) -> usize {
        self.0.borrow().in_use()
    }

    /// Sends a request and waits for the head of its response. Where the other side has as many streams as it takes,
    /// waits for one.
    pub fn send<'h>(
        &self,
        head: &'h Parts,
        body: Body,
    ) -> impl Future<Output = Result<Response<Incoming>, SendError>> + use<'h> {
        send(Rc::clone(&self.0), head, body)
    }
}

async fn send(connection: Shared, head: &Parts, body: Body) -> Result<Response<Incoming>, SendError> {
    let opened = poll_fn(|cx| {
        let mut now = connection.borrow_mut();
        if !now.is_usable() {
            return Poll::Ready(Err(now.error.clone().unwrap_or(Error::Closed)));
        }
        match now.open() {
            Some(stream) => Poll::Ready(Ok(stream)),
            None => {
                now.wait_for_stream(cx);
                Poll::Pending
            }
        }
    });
    let stream = opened.await.map_err(|error| SendError { error, unsent: true })?;
    let mut call = Call { connection, stream, sending: None, done: false };
    call.begin(head, body);
    poll_fn(|cx| {
        if let Some(sending) = &mut call.sending
            && sending.poll(cx, &call.connection, &call.stream).is_ready()
        {
            // How it ended, the stream knows.
            call.sending = None;
        }
        let mut state = call.stream.state.borrow_mut();
        if let Some(head) = state.head.take() {
            return Poll::Ready(Ok(head));
        }
        if let Some(error) = &state.error {
            return Poll::Ready(Err(SendError { error: error.clone(), unsent: false }));
        }
        keep(&mut state.reader, cx);
        Poll::Pending
    })
    .await
    .map(|head| call.answered(head))
}

/// A request under way. Dropped before its response, it is cancelled.
struct Call {
    connection: Shared,
    stream: Rc<Stream>,
    sending: Option<Sending>,
    done: bool,
}

impl Call {
    fn begin(&mut self, head: &Parts, body: Body) {
        let ends = body.is_end_stream();
        let payload = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
        let length = body.size_hint().exact().filter(|length| *length > 0 || payload);
        {
            let now = &mut *self.connection.borrow_mut();
            self.stream.state.borrow_mut().begins_at = now.written + now.out.len() as u64;
            let at = frame::begin_fields(&mut now.out, ends, self.stream.id);
            message::put_request(&mut now.encoder, head, length, &mut now.out);
            frame::end_fields(&mut now.out, at, now.max_payload);
            now.wake_driver();
        }
        let mut state = self.stream.state.borrow_mut();
        state.sent = ends;
        state.no_body = head.method == Method::HEAD;
        drop(state);
        if !ends {
            self.sending = Some(Sending::new(body));
        }
    }

    fn answered(mut self, head: Response<()>) -> Response<Incoming> {
        self.done = true;
        if let Some(mut sending) = self.sending.take() {
            // An upload that goes on after its early answer.
            let (connection, stream) = (Rc::clone(&self.connection), Rc::clone(&self.stream));
            spawn_local(async move {
                // How it ends, the stream knows.
                let _ = poll_fn(|cx| sending.poll(cx, &connection, &stream)).await;
            });
        }
        let body = incoming(&self.connection, &self.stream);
        head.map(|()| body)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.done {
            self.connection.borrow_mut().reset(&self.stream, Code::CANCEL, Error::Closed);
        }
    }
}
