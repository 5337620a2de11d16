//! A body on its way out.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http_body::Body as _;

use super::{connection::Shared, out::Framing};
use crate::http::{Body, Error};

/// Bytes that may wait to be written before more of a body is asked for.
const HIGH: usize = 64 * 1024;

/// The body of a message whose head was written.
pub(super) struct Sending {
    body: Body,
    framing: Framing,
    ended: bool,
}

impl Sending {
    pub(super) fn new(body: Body, framing: Framing) -> Self {
        Self { body, ended: framing == Framing::None, framing }
    }

    /// Puts what the body has into the connection's out, and says whether that was the last of it.
    pub(super) fn gather(&mut self, cx: &mut Context<'_>, connection: &Shared) -> Result<bool, Error> {
        // The body may come from this very connection: it is not borrowed while the body is asked.
        while !self.ended && connection.borrow().out.len() < HIGH {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let out = &mut connection.borrow_mut().out;
                    match frame.into_data() {
                        Ok(data) => out.body(&mut self.framing, data).map_err(Error::Length)?,
                        Err(frame) => {
                            out.end(self.framing, frame.trailers_ref()).map_err(Error::Length)?;
                            self.ended = true;
                        }
                    }
                }
                Poll::Ready(Some(Err(e))) => return Err(Error::Body(e.to_string().into())),
                Poll::Ready(None) => {
                    connection.borrow_mut().out.end(self.framing, None).map_err(Error::Length)?;
                    self.ended = true;
                }
                // Who said how long it is has said all.
                Poll::Pending if self.framing == Framing::Length(0) => self.ended = true,
                Poll::Pending => break,
            }
            if !self.ended && self.body.is_end_stream() {
                connection.borrow_mut().out.end(self.framing, None).map_err(Error::Length)?;
                self.ended = true;
            }
        }
        Ok(self.ended)
    }

    /// When the other side has taken nothing for too long: of what was put into out, `left` has stayed.
    pub(super) fn poll_stalled(&mut self, cx: &mut Context<'_>, left: usize, moved: bool) -> Poll<Error> {
        if self.ended || left == 0 {
            return Poll::Pending;
        }
        if moved {
            self.body.moved();
        }
        self.body.poll_stalled(cx).map(|error| Error::Body(error.to_string().into()))
    }

    /// Whether all has left.
    pub(super) fn is_sent(&self, connection: &Shared) -> bool {
        self.ended && connection.borrow().out.len() == 0
    }
}
