//! Bytes from one socket to another without a copy: `splice(2)` through a pipe.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, OwnedFd},
    task::{Context, Poll, ready},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
};
use tokio::{io::Interest, net::TcpStream};

/// What one call may move, and the size that a pipe is wished for: sockets fill 64 KiB faster than we come round.
const SIZE: usize = 256 * 1024;
/// Empty pipes that a thread keeps for the next connection that has something to move.
const SPARE: usize = 8;

thread_local! {
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// A pipe of the kernel's and what it holds.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty pipe: one that another connection has done with, or a new one. None where the system does not splice.
    pub fn take() -> io::Result<Self> {
        if REFUSED.get() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if let Some(pipe) = PIPES.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        // A smaller one, where the user has too many large ones (pipe-user-pages-soft), serves as well.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(SIZE as i32));
        Ok(Self { reader, writer, held: 0 })
    }

    /// Whether `error` is the system's refusal to splice (an emulated kernel, a seccomp filter); then nobody on this
    /// thread tries it again.
    pub fn is_refused(error: &io::Error) -> bool {
        let refused = matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM | Errno::EOPNOTSUPP)
        );
        if refused && !REFUSED.replace(true) {
            tracing::warn!(%error, "this system does not splice: bytes that pass as they are, are copied");
        }
        refused
    }

    /// Gives an empty pipe back; one that holds something is closed.
    pub fn give_back(self) {
        PIPES.with_borrow_mut(|pipes| {
            if self.held == 0 && pipes.len() < SPARE {
                pipes.push(self);
            }
        });
    }

    /// Bytes that it holds.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes bytes from a socket into the empty pipe; 0 at their end.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || move_some(from, &self.writer)) {
                Ok(n) => {
                    self.held += n;
                    return Poll::Ready(Ok(n));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Hands what the pipe holds to a socket, as much as it takes.
    pub fn poll_empty(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || move_some(&self.reader, to)) {
                // The pipe holds something, so this would be asked for again for ever.
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    self.held -= n.min(self.held);
                    return Poll::Ready(Ok(n));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

fn move_some(from: impl AsFd, to: impl AsFd) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, SIZE, flags)?)
}
