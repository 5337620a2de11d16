//! One stream: what has come for whoever waits for it, and what may be sent.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    task::{Context, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use tokio::task::AbortHandle;

use crate::http::Error;

/// A stream, shared by the connection and those who use it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) state: RefCell<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// The head of the response, on a client.
    pub(super) head: Option<Response<()>>,
    /// Whether the head of the response has come, on a client.
    pub(super) has_head: bool,
    /// The response has no body whatever its fields say: one to HEAD.
    pub(super) no_body: bool,
    pub(super) data: VecDeque<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
    /// The other side has sent its last.
    pub(super) received: bool,
    /// Bytes that the content-length still promises to come.
    pub(super) to_come: Option<u64>,
    /// The same, to be taken by the reader.
    pub(super) to_take: Option<u64>,
    /// What the other side may still send.
    pub(super) receive_window: i64,
    /// What the reader has taken and the other side was not told of.
    pub(super) taken: u32,
    /// Nobody reads any more.
    pub(super) unread: bool,
    /// The client waits for a 100 before it sends the body, on a server.
    pub(super) expects: bool,
    pub(super) reader: Option<Waker>,
    /// We have sent our last.
    pub(super) sent: bool,
    pub(super) send_window: i64,
    pub(super) writer: Option<Waker>,
    /// How much had been said on the connection before its head was, on a client.
    pub(super) begins_at: u64,
    /// Why it ended before its end.
    pub(super) error: Option<Error>,
    /// The request's work, on a server.
    pub(super) work: Option<AbortHandle>,
}

impl Stream {
    pub(super) fn new(id: u32, receive_window: u32, send_window: i64) -> Rc<Self> {
        let state = State { receive_window: i64::from(receive_window), send_window, ..State::default() };
        Rc::new(Self { id, state: RefCell::new(state) })
    }

    /// Ends it with `error`.
    pub(super) fn fail(&self, error: Error) {
        let mut state = self.state.borrow_mut();
        if state.error.is_none() {
            state.error = Some(error);
        }
        if let Some(work) = state.work.take() {
            work.abort();
        }
        state.wake_reader();
        state.wake_writer();
    }
}

impl State {
    pub(super) fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    pub(super) fn wake_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Whether both sides have said all.
    pub(super) fn is_over(&self) -> bool {
        self.received && self.sent
    }

    /// Whether all that came was taken and nothing more comes.
    pub(super) fn is_taken(&self) -> bool {
        self.received && self.data.is_empty() && self.trailers.is_none()
    }
}

/// Remembers whom to wake.
pub(super) fn keep(place: &mut Option<Waker>, cx: &Context<'_>) {
    if !place.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *place = Some(cx.waker().clone());
    }
}
