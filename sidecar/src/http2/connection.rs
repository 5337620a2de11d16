//! The state of one connection: what was said and what may be said.

mod receive;

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    task::{Context, Waker},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use http::Request;
use rustc_hash::FxHashMap;

use super::{
    CONNECTION_WINDOW, Code, MAX_HEADERS, MAX_STREAMS, STREAM_WINDOW, frame,
    hpack::{DEFAULT_TABLE_SIZE, Decoder, Encoder},
    stream::{State, Stream, keep},
};
use crate::http::Error;

/// A window cannot be larger (RFC 9113 section 6.9.1).
const MAX_WINDOW: i64 = 0x7fff_ffff;
/// What a window is before the SETTINGS.
const FIRST_WINDOW: i64 = 65_535;
/// Bytes that may wait to be written before bodies wait.
pub(super) const HIGH: usize = 64 * 1024;
/// Bytes of answers to PING, SETTINGS and misuse that may wait to be written, because the other side does not take them,
/// before nothing more is read. Messages do not count: two sides that each had much to say would wait for each other.
pub(super) const FULL: usize = 256 * 1024;
/// Compressed bytes of one head, and its frames.
const MAX_BLOCK: usize = 128 * 1024;
const MAX_BLOCK_FRAMES: u32 = 64;
/// Streams that the other side may have broken off, or had us break off, beyond those that it let end (CVE-2023-44487,
/// CVE-2025-8671); so many more a second are forgiven, as nghttp2 has it.
const MAX_RESETS: u32 = 1_000;
const RESETS_A_SECOND: u32 = 33;
/// Settings of one frame (nghttp2's bound).
const MAX_SETTINGS: usize = 32;
/// Pieces below this are collected where their reader is behind; of a larger read they are copied, so that they do not
/// keep the whole of it.
const SMALL_PIECE: usize = 1_024;
const LARGE_READ: usize = 8 * 1_024;
/// Collected pieces are at most this large.
const COLLECTED: usize = 16 * 1_024;
/// Frames without a use in a row: empty DATA, and what needs an answer or does nothing.
const MAX_USELESS: u32 = 1_000;

/// A connection, and all who use it.
pub(super) type Shared = Rc<RefCell<Connection>>;

pub(super) struct Connection {
    pub(super) client: bool,
    pub(super) out: BytesMut,
    /// Bytes that were given to the transport before those in `out`.
    pub(super) written: u64,
    /// Bytes in `out`, about, that the other side made us write.
    pub(super) answers: usize,
    input: Bytes,
    /// Bytes of the last read.
    read_len: usize,
    pub(super) encoder: Encoder,
    decoder: Decoder,
    pub(super) streams: FxHashMap<u32, Rc<Stream>>,
    /// The id of the client's next stream.
    pub(super) next_id: u32,
    /// The highest id of a stream that the other side has opened.
    last_id: u32,
    pub(super) send_window: i64,
    receive_window: i64,
    taken: u32,
    initial_send_window: i64,
    pub(super) max_payload: usize,
    pub(super) max_streams: usize,
    block: Option<Block>,
    data: Option<Data>,
    has_settings: bool,
    has_preface: bool,
    resets: u32,
    resets_since: Option<Instant>,
    useless: u32,
    /// Why it is over.
    pub(super) error: Option<Error>,
    /// The other side takes no new streams.
    pub(super) leaving: bool,
    /// We take no streams above this one.
    pub(super) last_taken: Option<u32>,
    /// The PING before it is known what the last stream is was answered.
    pub(super) finish_heard: bool,
    /// Requests to be worked on, on a server.
    pub(super) accepted: Vec<Accepted>,
    /// Nobody will send requests any more, on a client.
    pub(super) abandoned: bool,
    driver: Option<Waker>,
    /// Bodies that wait for room in the connection's window or in `out`, and those of them that had some the last time.
    writers: Vec<Waker>,
    late_writers: Vec<Waker>,
    /// Requests that wait for a stream.
    openers: VecDeque<Waker>,
    /// Something was given to a task that will want to answer.
    pub(super) woke: bool,
}

/// A request that has come; none where its head is too large.
pub(super) struct Accepted {
    pub(super) request: Option<Request<()>>,
    pub(super) stream: Rc<Stream>,
}

/// A head that comes in several frames.
struct Block {
    id: u32,
    end_stream: bool,
    bytes: BytesMut,
    frames: u32,
}

/// DATA of which not all has come.
struct Data {
    stream: Option<Rc<Stream>>,
    left: usize,
    end_stream: bool,
}

/// What ends a connection.
pub(super) struct Fatal(pub(super) Code, pub(super) &'static str);

type Result<T = ()> = std::result::Result<T, Fatal>;

impl Connection {
    pub(super) fn new(client: bool) -> Shared {
        let mut out = BytesMut::with_capacity(256);
        let streams = if client { (frame::ENABLE_PUSH, 0) } else { (frame::MAX_CONCURRENT_STREAMS, MAX_STREAMS) };
        if client {
            out.extend_from_slice(frame::PREFACE);
        }
        let settings =
            [streams, (frame::INITIAL_WINDOW_SIZE, STREAM_WINDOW), (frame::MAX_HEADER_LIST_SIZE, MAX_HEADERS)];
        frame::settings(&mut out, &settings);
        frame::window_update(&mut out, 0, CONNECTION_WINDOW - FIRST_WINDOW as u32);
        Rc::new(RefCell::new(Self {
            client,
            out,
            written: 0,
            answers: 0,
            input: Bytes::new(),
            read_len: 0,
            encoder: Encoder::new(),
            decoder: Decoder::new(DEFAULT_TABLE_SIZE),
            streams: FxHashMap::default(),
            next_id: 1,
            last_id: 0,
            send_window: FIRST_WINDOW,
            receive_window: i64::from(CONNECTION_WINDOW),
            taken: 0,
            initial_send_window: FIRST_WINDOW,
            max_payload: frame::MAX_PAYLOAD,
            // RFC 9113 section 5.1.2: no limit until it is told; a hundred is what it should be at least.
            max_streams: 100,
            block: None,
            data: None,
            has_settings: false,
            has_preface: client,
            resets: 0,
            resets_since: None,
            useless: 0,
            error: None,
            leaving: false,
            last_taken: None,
            finish_heard: false,
            accepted: Vec::new(),
            abandoned: false,
            driver: None,
            writers: Vec::new(),
            late_writers: Vec::new(),
            openers: VecDeque::new(),
            woke: false,
        }))
    }

    // Those who wait.

    pub(super) fn set_driver(&mut self, cx: &Context<'_>) {
        keep(&mut self.driver, cx);
    }

    /// Something waits to be written, or to be looked at.
    pub(super) fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// `had_some`: of room, since it waited last. Those have their turn after the others.
    pub(super) fn wait_for_room(&mut self, cx: &Context<'_>, had_some: bool) {
        let queue = if had_some { &mut self.late_writers } else { &mut self.writers };
        queue.push(cx.waker().clone());
    }

    pub(super) fn wait_for_stream(&mut self, cx: &Context<'_>) {
        self.openers.push_back(cx.waker().clone());
    }

    pub(super) fn wake_writers(&mut self) {
        self.writers.drain(..).chain(self.late_writers.drain(..)).for_each(Waker::wake);
    }

    pub(super) fn has_writers(&self) -> bool {
        !self.writers.is_empty() || !self.late_writers.is_empty()
    }

    // Streams.

    /// A stream for a request of ours; none where the other side has as many as it takes.
    pub(super) fn open(&mut self) -> Option<Rc<Stream>> {
        if self.streams.len() >= self.max_streams {
            return None;
        }
        let stream = Stream::new(self.next_id, STREAM_WINDOW, self.initial_send_window);
        self.next_id += 2;
        self.streams.insert(stream.id, Rc::clone(&stream));
        Some(stream)
    }

    /// Whether requests may still be sent.
    pub(super) fn is_usable(&self) -> bool {
        self.error.is_none() && !self.leaving && self.next_id < 0x7fff_0000
    }

    /// How many more streams may be opened. None where readers that have stopped hold all of the window.
    pub(super) fn room(&self) -> usize {
        if self.receive_window < i64::from(STREAM_WINDOW) {
            return 0;
        }
        self.max_streams.saturating_sub(self.in_use())
    }

    /// Streams that are open, and requests that wait for one.
    pub(super) fn in_use(&self) -> usize {
        self.streams.len() + self.openers.len()
    }

    /// Lets go of a stream that is over.
    pub(super) fn close_if_over(&mut self, id: u32, state: &State) {
        if state.is_over() {
            self.resets = self.resets.saturating_sub(1);
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u32) {
        if self.streams.remove(&id).is_some() {
            // All of them: the first may have gone meanwhile.
            self.openers.drain(..).for_each(Waker::wake);
            if self.streams.is_empty() && (self.leaving || self.abandoned || self.last_taken.is_some()) {
                self.wake_driver();
            }
        }
    }

    /// Ends a stream before its end.
    pub(super) fn reset(&mut self, stream: &Stream, code: Code, error: Error) {
        if self.streams.contains_key(&stream.id) && self.error.is_none() {
            frame::reset(&mut self.out, stream.id, code);
            self.forget(stream.id);
            self.wake_driver();
        }
        self.discard(stream);
        stream.fail(error);
    }

    /// What nobody will take any more no longer holds a place in the connection's window.
    pub(super) fn discard(&mut self, stream: &Stream) {
        let unread: usize = stream.state.borrow_mut().data.drain(..).map(|data| data.len()).sum();
        self.took(unread);
    }

    /// `n` bytes were taken by a reader or thrown away.
    pub(super) fn took(&mut self, n: usize) {
        self.taken += n as u32;
        if self.taken >= CONNECTION_WINDOW / 2 {
            self.receive_window += i64::from(self.taken);
            frame::window_update(&mut self.out, 0, std::mem::take(&mut self.taken));
            self.wake_driver();
        }
    }

    /// `n` bytes of a stream were taken by its reader.
    pub(super) fn took_of(&mut self, stream: &Stream, state: &mut State, n: usize) {
        self.took(n);
        state.taken += n as u32;
        if !state.received && state.taken >= STREAM_WINDOW / 2 {
            state.receive_window += i64::from(state.taken);
            frame::window_update(&mut self.out, stream.id, std::mem::take(&mut state.taken));
            self.wake_driver();
        }
    }

    /// Ends all streams; nothing more is read or sent.
    pub(super) fn fail(&mut self, error: Error) {
        for (_, stream) in self.streams.drain() {
            // Not a byte of its request has left.
            let unsent = self.client && stream.state.borrow().begins_at >= self.written;
            stream.fail(if unsent { Error::Unprocessed(Code::NO_ERROR) } else { error.clone() });
        }
        self.error.get_or_insert(error);
        self.wake_writers();
        self.openers.drain(..).for_each(Waker::wake);
        self.accepted.clear();
        self.wake_driver();
    }

    // What is said beside the streams.

    /// Says that no stream above `last` will be taken.
    pub(super) fn say_go_away(&mut self, last: u32, code: Code, words: &str) {
        self.last_taken = Some(last);
        frame::go_away(&mut self.out, last, code, words);
    }

    /// Says why the connection ends. What was asked before may have been done: the other side must not try it again.
    pub(super) fn say_fatal(&mut self, fatal: &Fatal) {
        self.say_go_away(self.last_id, fatal.0, fatal.1);
    }

    /// Begins to finish (RFC 9113 section 6.8): requests that are on their way are still taken.
    pub(super) fn begin_to_finish(&mut self) {
        frame::go_away(&mut self.out, 0x7fff_ffff, Code::NO_ERROR, "");
        frame::put(&mut self.out, frame::PING, 0, 0, FINISH);
    }

    /// The last stream is known.
    pub(super) fn finish(&mut self) {
        self.say_go_away(self.last_id, Code::NO_ERROR, "");
    }

    /// Asks whether somebody is there.
    pub(super) fn ask(&mut self) {
        frame::put(&mut self.out, frame::PING, 0, 0, b"outrigge");
    }
}

/// The PING that follows the announcement of the end.
const FINISH: &[u8; 8] = b"finished";
