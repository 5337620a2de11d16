//! The one task of a connection that reads and writes.

use std::{
    cell::RefCell,
    future::Future as _,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, Sleep, sleep, sleep_until},
};

use super::{
    Code, KeepAlive,
    connection::{Accepted, Connection, FULL, HIGH, Shared},
};
use crate::{
    http::Error,
    net::{Io, pages::clear_of_page},
};

/// Bytes of one read, at most.
const READ: usize = 64 * 1024;
/// What was read is copied out of the buffer that all connections of a worker read into, up to this size; beyond it,
/// the buffer is given away and another one made.
const COPY: usize = 16 * 1024;
/// How long the other side may take to take what is said at the end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Reads in a row, before others have their turn.
const READS: usize = 8;

thread_local! {
    static SCRATCH: RefCell<BytesMut> = RefCell::default();
}

pub(super) struct Driver {
    connection: Shared,
    io: Box<dyn Io>,
    keep_alive: Option<KeepAlive>,
    timer: Option<Pin<Box<Sleep>>>,
    /// When the other side was last heard, and when it was asked.
    heard: Instant,
    asked: Option<Instant>,
    /// Those who were given something have had their turn.
    yielded: bool,
    /// There may be more to read, and nobody will say so.
    unread: bool,
    finishing: bool,
    said_goodbye: bool,
    /// The timer is that of the end.
    ending: bool,
}

impl Driver {
    pub(super) fn new(connection: Shared, io: Box<dyn Io>, keep_alive: Option<KeepAlive>) -> Self {
        Self {
            connection,
            io,
            keep_alive,
            timer: None,
            heard: Instant::now(),
            asked: None,
            yielded: false,
            unread: false,
            finishing: false,
            said_goodbye: false,
            ending: false,
        }
    }

    /// The connection is to end once its streams have.
    pub(super) fn finish(connection: &Shared) {
        let mut now = connection.borrow_mut();
        now.begin_to_finish();
        now.wake_driver();
    }

    /// The connection is to end now, and its streams with it.
    pub(super) fn cut(connection: &Shared) {
        let mut now = connection.borrow_mut();
        now.fail(Error::Closed);
        now.out.clear();
    }

    /// Reads, gives requests to `accept`, and writes.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, mut accept: impl FnMut(Accepted)) -> Poll<Result<(), Error>> {
        let connection = Rc::clone(&self.connection);
        connection.borrow_mut().set_driver(cx);
        if std::mem::take(&mut self.yielded) {
            self.write(cx, &mut connection.borrow_mut());
        }
        // Also after a turn that was given to others: what has come meanwhile will not wake us again.
        let ended = self.read(cx, &mut connection.borrow_mut());
        let (accepted, wait) = {
            let mut now = connection.borrow_mut();
            let accepted = std::mem::take(&mut now.accepted);
            let woke = std::mem::take(&mut now.woke) || !accepted.is_empty();
            (accepted, woke && !now.out.is_empty() && !ended)
        };
        accepted.into_iter().for_each(&mut accept);
        if wait {
            // Their answers and ours leave in one write.
            self.yielded = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut now = connection.borrow_mut();
        self.say_what_is_due(&mut now);
        self.write(cx, &mut now);
        if now.out.is_empty() {
            if let Some(error) = &now.error {
                return Poll::Ready(match error {
                    Error::Closed => Ok(()),
                    error => Err(error.clone()),
                });
            }
            if self.said_goodbye {
                if self.poll_end(cx).is_ready() {
                    now.fail(Error::Closed);
                    return Poll::Ready(Ok(()));
                }
                // It hears our last all the same; what it makes of it is its own affair.
                let _ = ready!(Pin::new(&mut *self.io).poll_shutdown(cx));
                now.fail(Error::Closed);
                return Poll::Ready(Ok(()));
            }
        }
        if self.unread && now.answers < FULL {
            cx.waker().wake_by_ref();
        }
        if now.error.is_some() || self.said_goodbye {
            // Its last words are not taken.
            if self.poll_end(cx).is_ready() {
                now.out.clear();
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        self.poll_time(cx, &mut now);
        Poll::Pending
    }

    /// When a connection that is over has waited long enough for the other side to take what is left.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !std::mem::replace(&mut self.ending, true) {
            self.timer = None;
        }
        self.timer.get_or_insert_with(|| Box::pin(sleep(LAST_WORDS))).as_mut().poll(cx)
    }

    /// Reads what there is. True where nothing more will come.
    fn read(&mut self, cx: &mut Context<'_>, now: &mut Connection) -> bool {
        self.unread = true;
        for _ in 0..READS {
            if now.error.is_some() {
                return true;
            }
            if now.answers >= FULL {
                return false;
            }
            match self.poll_read(cx) {
                Poll::Pending => {
                    self.unread = false;
                    return false;
                }
                Poll::Ready(Ok(bytes)) if bytes.is_empty() => {
                    let clean = now.streams.is_empty() && !now.is_amid();
                    now.fail(if clean { Error::Closed } else { Error::Incomplete });
                    now.out.clear();
                    return true;
                }
                Poll::Ready(Ok(bytes)) => {
                    if self.keep_alive.is_some() {
                        self.heard = Instant::now();
                    }
                    if let Err(fatal) = now.read(bytes) {
                        now.say_fatal(&fatal);
                        now.fail(Error::Parse(fatal.1));
                        return true;
                    }
                }
                Poll::Ready(Err(e)) => {
                    now.fail(Error::Io(Arc::new(e)));
                    now.out.clear();
                    return true;
                }
            }
        }
        false
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.reserve(READ);
            let read = ready!(pin!(self.io.read_buf(scratch)).poll(cx))?;
            Poll::Ready(Ok(if read <= COPY {
                let bytes = Bytes::copy_from_slice(scratch);
                scratch.clear();
                bytes
            } else {
                scratch.split().freeze()
            }))
        })
    }

    /// What has to be said when a connection comes to its end.
    fn say_what_is_due(&mut self, now: &mut Connection) {
        if now.error.is_some() {
            return;
        }
        if now.finish_heard && !std::mem::replace(&mut self.finishing, true) {
            now.finish();
        }
        let over = now.leaving || now.abandoned || (self.finishing && now.last_taken.is_some());
        if over && now.streams.is_empty() && !std::mem::replace(&mut self.said_goodbye, true) && now.client {
            now.say_go_away(0, Code::NO_ERROR, "");
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, now: &mut Connection) {
        if let Poll::Ready(Err(e)) = self.poll_write(cx, now) {
            now.fail(Error::Io(Arc::new(e)));
            now.out.clear();
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, now: &mut Connection) -> Poll<io::Result<()>> {
        let mut wrote = false;
        while !now.out.is_empty() {
            let n = ready!(Pin::new(&mut *self.io).poll_write(cx, clear_of_page(&now.out)))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            wrote = true;
            now.out.advance(n);
            now.written += n as u64;
            if now.out.len() < HIGH && now.has_writers() && now.send_window > 0 {
                now.wake_writers();
            }
        }
        if wrote {
            now.answers = 0;
            if now.streams.is_empty() {
                now.out = BytesMut::new();
            } else {
                now.out.clear();
            }
        }
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    /// Asks whether the other side is still there when it has been silent, and gives it up when it stays so.
    fn poll_time(&mut self, cx: &mut Context<'_>, now: &mut Connection) {
        let Some(keep) = self.keep_alive else { return };
        if self.timer.is_none() && now.streams.is_empty() && !keep.idle {
            return;
        }
        let fresh = self.timer.is_none();
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(keep.every)));
        // Its waker is this task's, so it need not be polled again until it has gone off.
        if !fresh && !timer.is_elapsed() {
            return;
        }
        while timer.as_mut().poll(cx).is_ready() {
            if now.streams.is_empty() && !keep.idle {
                self.timer = None;
                self.asked = None;
                return;
            }
            match self.asked {
                Some(asked) if self.heard < asked => {
                    now.fail(Error::Silent(keep.timeout));
                    now.out.clear();
                    return cx.waker().wake_by_ref();
                }
                _ if self.heard.elapsed() >= keep.every => {
                    self.asked = Some(Instant::now());
                    now.ask();
                    timer.set(sleep(keep.timeout));
                    cx.waker().wake_by_ref();
                }
                _ => {
                    self.asked = None;
                    timer.set(sleep_until(self.heard + keep.every));
                }
            }
        }
    }
}
