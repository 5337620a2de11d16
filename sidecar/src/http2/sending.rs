//! A body on its way out.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Body as _;

use super::{
    Code,
    connection::{HIGH, Shared},
    frame, message,
    stream::{Stream, keep},
};
use crate::http::{Body, Error};

/// The body of a message whose head was sent.
pub(super) struct Sending {
    body: Body,
    /// Of the last piece, what had no room.
    left: Bytes,
    /// There was room since it was waited for.
    had_room: bool,
    /// It was waited for since the body was last asked.
    waited: bool,
}

impl Sending {
    pub(super) fn new(body: Body) -> Self {
        Self { body, left: Bytes::new(), had_room: false, waited: false }
    }

    /// Sends what the body has and the windows allow. Ends when all was sent, or the stream has ended.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &Shared,
        stream: &Stream,
    ) -> Poll<Result<(), Error>> {
        loop {
            {
                let state = stream.state.borrow();
                if let Some(error) = &state.error {
                    return Poll::Ready(Err(error.clone()));
                }
                if state.sent {
                    return Poll::Ready(Ok(()));
                }
            }
            if self.left.is_empty() {
                // The body may come from this very connection: nothing is borrowed while it is asked.
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => self.left = data,
                        Err(frame) => {
                            end(connection, stream, frame.trailers_ref());
                            return Poll::Ready(Ok(()));
                        }
                    },
                    Poll::Ready(Some(Err(e))) => {
                        let error = Error::Body(e.to_string().into());
                        let mut now = connection.borrow_mut();
                        let code = if now.client { Code::CANCEL } else { Code::INTERNAL_ERROR };
                        now.reset(stream, code, error.clone());
                        return Poll::Ready(Err(error));
                    }
                    Poll::Ready(None) => {
                        end(connection, stream, None);
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Pending => {
                        // Whoever ends the stream wakes us.
                        keep(&mut stream.state.borrow_mut().writer, cx);
                        return Poll::Pending;
                    }
                }
                if self.left.is_empty() {
                    continue;
                }
            }
            let Poll::Ready(room) = poll_room(cx, connection, stream, self.had_room) else {
                (self.had_room, self.waited) = (false, true);
                // Who does not take anything must not hold all that belongs to the request for ever.
                let Poll::Ready(error) = self.body.poll_stalled(cx) else { return Poll::Pending };
                let error = Error::Body(error.to_string().into());
                connection.borrow_mut().reset(stream, Code::CANCEL, error.clone());
                return Poll::Ready(Err(error));
            };
            self.had_room = true;
            if std::mem::take(&mut self.waited) {
                self.body.moved();
            }
            let n = room.min(self.left.len());
            let data = self.left.split_to(n);
            let last = self.left.is_empty() && self.body.is_end_stream();
            let connection = &mut *connection.borrow_mut();
            let mut state = stream.state.borrow_mut();
            state.send_window -= n as i64;
            connection.send_window -= n as i64;
            frame::put(&mut connection.out, frame::DATA, if last { frame::END_STREAM } else { 0 }, stream.id, &data);
            if last {
                state.sent = true;
                connection.close_if_over(stream.id, &state);
            }
            connection.wake_driver();
        }
    }
}

/// Bytes that may be sent in one frame.
fn poll_room(cx: &Context<'_>, connection: &Shared, stream: &Stream, had_some: bool) -> Poll<usize> {
    let mut connection = connection.borrow_mut();
    let mut state = stream.state.borrow_mut();
    keep(&mut state.writer, cx);
    if state.send_window <= 0 {
        return Poll::Pending;
    }
    if connection.send_window <= 0 || connection.out.len() >= HIGH {
        connection.wait_for_room(cx, had_some);
        return Poll::Pending;
    }
    let window = state.send_window.min(connection.send_window);
    Poll::Ready(usize::try_from(window).unwrap_or(0).min(connection.max_payload))
}

/// Ends what we send, with trailers where there are some.
fn end(connection: &Shared, stream: &Stream, trailers: Option<&http::HeaderMap>) {
    let connection = &mut *connection.borrow_mut();
    let out = &mut connection.out;
    match trailers {
        Some(trailers) => {
            let at = frame::begin_fields(out, true, stream.id);
            message::put_trailers(&mut connection.encoder, trailers, out);
            frame::end_fields(out, at, connection.max_payload);
        }
        None => frame::put(out, frame::DATA, frame::END_STREAM, stream.id, &[]),
    }
    let mut state = stream.state.borrow_mut();
    state.sent = true;
    connection.close_if_over(stream.id, &state);
    connection.wake_driver();
}
