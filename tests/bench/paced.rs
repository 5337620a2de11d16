//! Requests at a fixed rate, each timed from the moment at which it was due: a server that stalls is charged for all
//! the requests that it kept waiting (no coordinated omission).

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

/// What was asked for.
pub(crate) struct Load {
    pub(crate) to: SocketAddr,
    /// The whole request.
    pub(crate) request: Vec<u8>,
    /// Requests a second.
    pub(crate) rate: f64,
    /// Connections that share them; a request takes the first that is free.
    pub(crate) connections: usize,
    /// Answers of this long at the beginning are not counted.
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
}

/// Latencies in µs, sorted.
pub(crate) struct Latencies(Vec<u32>);

impl Latencies {
    /// The latency in ms that this share of the requests stayed within.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let at = ((self.0.len() as f64 * share) as usize).min(self.0.len().saturating_sub(1));
        f64::from(self.0.get(at).copied().unwrap_or(0)) / 1_000.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

const TIMER: u64 = u64::MAX;

struct Connection {
    stream: TcpStream,
    due: Instant,
    head: Vec<u8>,
    /// Bytes of the body that are still to come, once the head is there.
    left: Option<usize>,
}

/// Runs the load on this thread.
pub(crate) fn run(load: &Load) -> io::Result<Latencies> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
    epoll.add(timer.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
    let mut connections = Vec::new();
    for index in 0..load.connections {
        let stream = TcpStream::connect(load.to)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll.add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        connections.push(Connection { stream, due: Instant::now(), head: Vec::new(), left: None });
    }
    let interval = Duration::from_secs_f64(1.0 / load.rate);
    timer.set(Expiration::Interval(TimeSpec::from(interval)), TimerSetTimeFlags::empty())?;
    let begun = Instant::now();
    let end = begun + load.warm_up + load.duration;
    let counted_from = begun + load.warm_up;
    let mut idle: VecDeque<usize> = (0..load.connections).collect();
    let mut waiting = VecDeque::new();
    let mut next = begun + interval;
    let mut latencies = Vec::new();
    let mut events = [EpollEvent::empty(); 64];
    let give_up = end + Duration::from_secs(10);
    loop {
        let now = Instant::now();
        while next <= now && next < end {
            waiting.push_back(next);
            next += interval;
        }
        while let (Some(&due), Some(&index)) = (waiting.front(), idle.front()) {
            waiting.pop_front();
            idle.pop_front();
            let connection = &mut connections[index];
            connection.due = due;
            connection.stream.write_all(&load.request)?;
        }
        if now >= end && waiting.is_empty() && idle.len() == connections.len() {
            break;
        }
        if now >= give_up {
            return Err(io::Error::new(ErrorKind::TimedOut, "answers are missing 10 s after the end"));
        }
        let ready = epoll.wait(&mut events, EpollTimeout::from(1_000_u16))?;
        for event in &events[..ready] {
            if event.data() == TIMER {
                let _ = nix::unistd::read(timer.as_fd(), &mut [0; 8]);
                continue;
            }
            let index = event.data() as usize;
            let connection = &mut connections[index];
            if connection.answered()? {
                if connection.due >= counted_from {
                    latencies.push(connection.due.elapsed().as_micros().try_into().unwrap_or(u32::MAX));
                }
                idle.push_back(index);
            }
        }
    }
    latencies.sort_unstable();
    Ok(Latencies(latencies))
}

impl Connection {
    /// Reads what there is; true when the answer is whole.
    fn answered(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let read = match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "a connection was closed")),
                Ok(read) => &buffer[..read],
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            };
            let left = match self.left {
                Some(left) => left.saturating_sub(read.len()),
                None => {
                    self.head.extend_from_slice(read);
                    let Some(body) = self.head.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&self.head[..body]).to_ascii_lowercase();
                    if !head.starts_with("http/1.1 200") {
                        return Err(io::Error::other(format!("not 200 but: {head}")));
                    }
                    let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
                    let length = length.and_then(|l| l.trim().parse::<usize>().ok());
                    let length = length.ok_or_else(|| io::Error::other(format!("no content-length: {head}")))?;
                    length.saturating_sub(self.head.len() - body - 4)
                }
            };
            self.left = Some(left);
            if left == 0 {
                self.left = None;
                self.head.clear();
                return Ok(true);
            }
        }
    }
}
