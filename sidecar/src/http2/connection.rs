//! The state of one connection: what was said, what may be said, and every frame that comes.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    task::{Context, Waker},
};

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode};
use rustc_hash::FxHashMap;

use super::{
    CONNECTION_WINDOW, Code, MAX_HEADERS, MAX_STREAMS, STREAM_WINDOW,
    frame::{self, Head},
    hpack::{DEFAULT_TABLE_SIZE, Decoder, Encoder},
    message::Fields,
    stream::{State, Stream, keep},
};
use crate::http::Error;

/// A window cannot be larger (RFC 9113 section 6.9.1).
const MAX_WINDOW: i64 = 0x7fff_ffff;
/// What a window is before the SETTINGS.
const FIRST_WINDOW: i64 = 65_535;
/// Bytes that may wait to be written before bodies wait.
pub(super) const HIGH: usize = 64 * 1024;
/// Bytes that may wait to be written before nothing more is read: answers to PING and SETTINGS, which the other side
/// does not take.
pub(super) const FULL: usize = 256 * 1024;
/// Compressed bytes of one head, and its frames.
const MAX_BLOCK: usize = 128 * 1024;
const MAX_BLOCK_FRAMES: u32 = 64;
/// Streams that the other side may have broken off beyond those that it let end (CVE-2023-44487).
const MAX_RESETS: i32 = 1_000;
/// Frames without a use in a row: empty DATA, and what needs an answer or does nothing.
const MAX_USELESS: u32 = 1_000;

/// A connection, and all who use it.
pub(super) type Shared = Rc<RefCell<Connection>>;

pub(super) struct Connection {
    pub(super) client: bool,
    pub(super) out: BytesMut,
    input: Bytes,
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
    resets: i32,
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
    /// Bodies that wait for room in the connection's window or in `out`.
    writers: VecDeque<Waker>,
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
            input: Bytes::new(),
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
            useless: 0,
            error: None,
            leaving: false,
            last_taken: None,
            finish_heard: false,
            accepted: Vec::new(),
            abandoned: false,
            driver: None,
            writers: VecDeque::new(),
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

    pub(super) fn wait_for_room(&mut self, cx: &Context<'_>) {
        self.writers.push_back(cx.waker().clone());
    }

    pub(super) fn wait_for_stream(&mut self, cx: &Context<'_>) {
        self.openers.push_back(cx.waker().clone());
    }

    pub(super) fn wake_writers(&mut self) {
        self.writers.drain(..).for_each(Waker::wake);
    }

    pub(super) fn has_writers(&self) -> bool {
        !self.writers.is_empty()
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

    /// Lets go of a stream that is over.
    pub(super) fn close_if_over(&mut self, id: u32, state: &State) {
        if state.is_over() {
            self.resets = (self.resets - 1).max(0);
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
            stream.fail(error.clone());
        }
        self.error.get_or_insert(error);
        self.wake_writers();
        self.openers.drain(..).for_each(Waker::wake);
        self.accepted.clear();
        self.wake_driver();
    }

    // What comes.

    /// Whether a message has come in part.
    pub(super) fn is_amid(&self) -> bool {
        !self.input.is_empty() || self.block.is_some() || self.data.is_some()
    }

    /// Takes what was read.
    pub(super) fn read(&mut self, bytes: Bytes) -> Result {
        self.input = if self.input.is_empty() { bytes } else { [&*self.input, &*bytes].concat().into() };
        if !self.has_preface {
            let n = self.input.len().min(frame::PREFACE.len());
            if self.input.get(..n) != frame::PREFACE.get(..n) {
                return Err(Fatal(Code::PROTOCOL_ERROR, "it does not begin as HTTP/2 begins"));
            }
            if n < frame::PREFACE.len() {
                return Ok(());
            }
            let _ = self.input.split_to(n);
            self.has_preface = true;
        }
        loop {
            if self.data.is_some() {
                if !self.more_data()? {
                    return Ok(());
                }
                continue;
            }
            let Some(head) = Head::read(&self.input) else { break };
            if head.len > frame::MAX_PAYLOAD {
                return Err(Fatal(Code::FRAME_SIZE_ERROR, "it sent a frame of more than 16 KiB"));
            }
            if !self.has_settings && (head.kind != frame::SETTINGS || head.has(frame::ACK)) {
                return Err(Fatal(Code::PROTOCOL_ERROR, "its first frame is not SETTINGS"));
            }
            if self.block.as_ref().is_some_and(|block| head.kind != frame::CONTINUATION || head.id != block.id) {
                return Err(Fatal(Code::PROTOCOL_ERROR, "it broke off a head for another frame"));
            }
            if head.kind == frame::DATA && !head.has(frame::PADDED) {
                let _ = self.input.split_to(frame::HEAD);
                self.begin_data(head, head.len)?;
                continue;
            }
            if self.input.len() < frame::HEAD + head.len {
                break;
            }
            let mut payload = self.input.split_to(frame::HEAD + head.len);
            let _ = payload.split_to(frame::HEAD);
            self.frame(head, payload)?;
        }
        // What is left of a larger piece must not keep that alive.
        self.input = if self.input.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(&self.input) };
        Ok(())
    }

    fn frame(&mut self, head: Head, payload: Bytes) -> Result {
        match head.kind {
            frame::DATA => {
                let whole = payload.len();
                let payload = unpadded(head, payload)?;
                // Padding is taken by nobody.
                self.begin_data(Head { len: payload.len(), ..head }, whole)?;
                let rest = std::mem::replace(&mut self.input, payload);
                self.more_data()?;
                self.input = rest;
                Ok(())
            }
            frame::HEADERS => self.headers(head, payload),
            frame::CONTINUATION => self.continuation(head, &payload),
            frame::RST_STREAM => self.reset_received(head, &payload),
            frame::SETTINGS => self.settings(head, &payload),
            frame::PING => self.ping(head, &payload),
            frame::GOAWAY => self.go_away(head, &payload),
            frame::WINDOW_UPDATE => self.window_update(head, &payload),
            frame::PUSH_PROMISE => Err(Fatal(Code::PROTOCOL_ERROR, "it sent PUSH_PROMISE, which nobody may")),
            frame::PRIORITY if head.len != 5 => Err(Fatal(Code::FRAME_SIZE_ERROR, "its PRIORITY is not 5 bytes long")),
            _ => self.useless(),
        }
    }

    fn useless(&mut self) -> Result {
        self.useless += 1;
        if self.useless > MAX_USELESS {
            return Err(Fatal(Code::ENHANCE_YOUR_CALM, "it sent frames without end that do nothing"));
        }
        Ok(())
    }

    /// The stream of a frame; none where it has ended already.
    fn stream(&self, id: u32) -> Result<Option<Rc<Stream>>> {
        if let Some(stream) = self.streams.get(&id) {
            return Ok(Some(Rc::clone(stream)));
        }
        let opened = if self.client { id < self.next_id } else { id <= self.last_id };
        if id.is_multiple_of(2) || !opened {
            return Err(Fatal(Code::PROTOCOL_ERROR, "it sent a frame on a stream that was never opened"));
        }
        Ok(None)
    }

    fn begin_data(&mut self, head: Head, whole: usize) -> Result {
        let stream = self.stream(head.id)?;
        self.receive_window -= whole as i64;
        if self.receive_window < 0 {
            return Err(Fatal(Code::FLOW_CONTROL_ERROR, "it sent more than the connection's window allows"));
        }
        self.took(whole - head.len);
        if head.len == 0 && !head.has(frame::END_STREAM) {
            self.useless()?;
        } else {
            self.useless = 0;
        }
        let stream = stream.filter(|stream| self.takes_data(stream, whole, head));
        self.data = Some(Data { stream, left: head.len, end_stream: head.has(frame::END_STREAM) });
        Ok(())
    }

    /// Whether a stream may get this DATA; where it may not, it ends.
    fn takes_data(&mut self, stream: &Stream, whole: usize, head: Head) -> bool {
        let wrong = {
            let mut state = stream.state.borrow_mut();
            state.receive_window -= whole as i64;
            state.taken += (whole - head.len) as u32;
            let promised = state.to_come.map(|left| left.checked_sub(head.len as u64));
            if state.received {
                Some((Code::STREAM_CLOSED, "it sent a body after the body's end"))
            } else if state.receive_window < 0 {
                Some((Code::FLOW_CONTROL_ERROR, "it sent more than the stream's window allows"))
            } else if self.client && !state.has_head {
                Some((Code::PROTOCOL_ERROR, "it sent a body before its head"))
            } else if promised == Some(None) || (head.has(frame::END_STREAM) && promised.flatten().unwrap_or(0) > 0) {
                Some((Code::PROTOCOL_ERROR, "its body is not as long as its content-length says"))
            } else {
                state.to_come = promised.flatten();
                None
            }
        };
        if let Some((code, words)) = wrong {
            self.reset(stream, code, Error::Parse(words));
        }
        wrong.is_none()
    }

    /// Hands on what has come of a DATA frame; false where more is to come.
    fn more_data(&mut self) -> Result<bool> {
        let Some(data) = &mut self.data else { return Ok(true) };
        let n = data.left.min(self.input.len());
        data.left -= n;
        let piece = if n == self.input.len() { std::mem::take(&mut self.input) } else { self.input.split_to(n) };
        let over = data.left == 0;
        let end = over && data.end_stream;
        let stream = data.stream.clone();
        if over {
            self.data = None;
        }
        let Some(stream) = stream else {
            self.took(n);
            return Ok(over);
        };
        let mut state = stream.state.borrow_mut();
        if n > 0 {
            if state.unread || state.error.is_some() {
                self.took_of(&stream, &mut state, n);
            } else {
                state.data.push_back(piece);
            }
        }
        if end {
            state.received = true;
            self.close_if_over(stream.id, &state);
        }
        if n > 0 || end {
            self.woke |= state.reader.is_some();
            state.wake_reader();
        }
        Ok(over)
    }

    fn headers(&mut self, head: Head, payload: Bytes) -> Result {
        self.useless = 0;
        let mut payload = unpadded(head, payload)?;
        if head.has(frame::WITH_PRIORITY) {
            if payload.len() < 5 {
                return Err(Fatal(Code::FRAME_SIZE_ERROR, "its HEADERS has no room for its priority"));
            }
            let _ = payload.split_to(5);
        }
        let end_stream = head.has(frame::END_STREAM);
        if head.has(frame::END_HEADERS) {
            return self.fields(head.id, end_stream, &payload);
        }
        self.block = Some(Block { id: head.id, end_stream, bytes: BytesMut::from(&*payload), frames: 1 });
        Ok(())
    }

    fn continuation(&mut self, head: Head, payload: &[u8]) -> Result {
        let Some(mut block) = self.block.take() else {
            return Err(Fatal(Code::PROTOCOL_ERROR, "it sent CONTINUATION of nothing"));
        };
        block.frames += 1;
        if block.bytes.len() + payload.len() > MAX_BLOCK || block.frames > MAX_BLOCK_FRAMES {
            return Err(Fatal(Code::ENHANCE_YOUR_CALM, "it sent a head without end"));
        }
        block.bytes.extend_from_slice(payload);
        if head.has(frame::END_HEADERS) {
            return self.fields(block.id, block.end_stream, &block.bytes);
        }
        self.block = Some(block);
        Ok(())
    }

    /// A head or trailers have come whole.
    fn fields(&mut self, id: u32, end_stream: bool, block: &[u8]) -> Result {
        let mut fields = Fields::new();
        let decoded = self.decoder.decode(block, MAX_HEADERS as usize, &mut fields);
        let Ok(decoded) = decoded else {
            return Err(Fatal(Code::COMPRESSION_ERROR, "its compressed fields cannot be read"));
        };
        let fields = (!decoded.malformed).then_some(fields);
        if !self.client && id % 2 == 1 && id > self.last_id {
            self.request(id, end_stream, fields, decoded.too_large);
            return Ok(());
        }
        let Some(stream) = self.stream(id)? else { return Ok(()) };
        let wrong = self.more_fields(&stream, end_stream, fields, decoded.too_large);
        if let Err((code, words)) = wrong {
            self.reset(&stream, code, Error::Parse(words));
        }
        Ok(())
    }

    /// A client opens a stream.
    fn request(&mut self, id: u32, end_stream: bool, fields: Option<Fields>, too_large: bool) {
        self.last_id = id;
        if self.last_taken.is_some_and(|last| id > last) {
            return;
        }
        if self.streams.len() >= MAX_STREAMS as usize {
            frame::reset(&mut self.out, id, Code::REFUSED_STREAM);
            return self.misbehaved();
        }
        let stream = Stream::new(id, STREAM_WINDOW, self.initial_send_window);
        let message = if too_large { None } else { fields.and_then(Fields::request) };
        let Some((request, length)) = message else {
            if !too_large {
                frame::reset(&mut self.out, id, Code::PROTOCOL_ERROR);
                return self.misbehaved();
            }
            stream.state.borrow_mut().received = end_stream;
            self.streams.insert(id, Rc::clone(&stream));
            self.accepted.push(Accepted { request: None, stream });
            return;
        };
        if end_stream && length.unwrap_or(0) > 0 {
            frame::reset(&mut self.out, id, Code::PROTOCOL_ERROR);
            return self.misbehaved();
        }
        {
            let mut state = stream.state.borrow_mut();
            state.received = end_stream;
            (state.to_come, state.to_take) = (length, length);
        }
        self.streams.insert(id, Rc::clone(&stream));
        self.accepted.push(Accepted { request: Some(request), stream });
    }

    /// A stream ended before its end, and not by us.
    fn misbehaved(&mut self) {
        self.resets += 1;
    }

    /// Whether the other side has broken off more than can be meant well.
    pub(super) fn is_abused(&self) -> bool {
        self.resets > MAX_RESETS
    }

    /// The head of a response, or trailers.
    fn more_fields(
        &mut self,
        stream: &Stream,
        end_stream: bool,
        fields: Option<Fields>,
        too_large: bool,
    ) -> std::result::Result<(), (Code, &'static str)> {
        const PROTOCOL: Code = Code::PROTOCOL_ERROR;
        let mut state = stream.state.borrow_mut();
        if state.received {
            return Err((Code::STREAM_CLOSED, "it sent fields after the message's end"));
        }
        if too_large {
            return Err((Code::CANCEL, "its head is larger than 64 KiB"));
        }
        let fields = fields.ok_or((PROTOCOL, "its fields are malformed"))?;
        if self.client && !state.has_head {
            let (response, length) = fields.response().ok_or((PROTOCOL, "its response is malformed"))?;
            if response.status().is_informational() {
                // RFC 9110 section 15.2: read over.
                return if end_stream { Err((PROTOCOL, "it ended with an interim response")) } else { Ok(()) };
            }
            let none = state.no_body || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
            if !none {
                if end_stream && length.unwrap_or(0) > 0 {
                    return Err((PROTOCOL, "its body is not as long as its content-length says"));
                }
                (state.to_come, state.to_take) = (length, length);
            }
            state.has_head = true;
            state.head = Some(response);
        } else {
            if !end_stream {
                return Err((PROTOCOL, "it sent a second head"));
            }
            if state.to_come.unwrap_or(0) > 0 {
                return Err((PROTOCOL, "its body is not as long as its content-length says"));
            }
            let trailers = fields.trailers().ok_or((PROTOCOL, "its trailers are malformed"))?;
            if !state.unread {
                state.trailers = Some(trailers);
            }
        }
        if end_stream {
            state.received = true;
            self.close_if_over(stream.id, &state);
        }
        self.woke |= state.reader.is_some();
        state.wake_reader();
        Ok(())
    }

    fn reset_received(&mut self, head: Head, payload: &[u8]) -> Result {
        let Some(code) = payload.first_chunk().filter(|_| head.len == 4) else {
            return Err(Fatal(Code::FRAME_SIZE_ERROR, "its RST_STREAM is not 4 bytes long"));
        };
        let code = Code(u32::from_be_bytes(*code));
        let Some(stream) = self.stream(head.id)? else { return self.useless() };
        if !self.client {
            self.misbehaved();
        }
        self.forget(stream.id);
        let done = {
            let mut state = stream.state.borrow_mut();
            // RFC 9113 section 8.1: the answer is complete, and the rest of the request is not wanted.
            let done = self.client && state.received && code == Code::NO_ERROR;
            if done {
                state.sent = true;
                state.wake_writer();
            }
            done
        };
        if !done {
            stream.fail(Error::Reset(code));
        }
        if self.is_abused() {
            return Err(Fatal(Code::ENHANCE_YOUR_CALM, "it breaks off its requests without end"));
        }
        Ok(())
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result {
        if head.id != 0 {
            return Err(Fatal(Code::PROTOCOL_ERROR, "its SETTINGS are on a stream"));
        }
        if head.has(frame::ACK) {
            self.decoder.acknowledged();
            return if head.len == 0 {
                self.useless()
            } else {
                Err(Fatal(Code::FRAME_SIZE_ERROR, "its SETTINGS acknowledgement is not empty"))
            };
        }
        if !head.len.is_multiple_of(6) {
            return Err(Fatal(Code::FRAME_SIZE_ERROR, "its SETTINGS are not 6 bytes each"));
        }
        self.useless()?;
        let first = !std::mem::replace(&mut self.has_settings, true);
        let mut streams = None;
        for setting in payload.chunks_exact(6) {
            let [a, b, c, d, e, f] = *setting else { continue };
            let value = u32::from_be_bytes([c, d, e, f]);
            match u16::from_be_bytes([a, b]) {
                frame::HEADER_TABLE_SIZE => self.encoder.set_max_size(value as usize),
                frame::ENABLE_PUSH if value > 1 || (self.client && value == 1) => {
                    return Err(Fatal(Code::PROTOCOL_ERROR, "its ENABLE_PUSH is not what it may be"));
                }
                frame::MAX_CONCURRENT_STREAMS => streams = Some(value as usize),
                frame::INITIAL_WINDOW_SIZE => self.initial_window(i64::from(value))?,
                frame::MAX_FRAME_SIZE if !(16_384..=16_777_215).contains(&value) => {
                    return Err(Fatal(Code::PROTOCOL_ERROR, "its MAX_FRAME_SIZE is out of bounds"));
                }
                // Larger frames would let one stream hold up the others.
                frame::MAX_FRAME_SIZE => self.max_payload = frame::MAX_PAYLOAD,
                _ => {}
            }
        }
        match streams {
            Some(streams) => self.max_streams = streams,
            None if first => self.max_streams = usize::MAX,
            None => {}
        }
        self.openers.drain(..).for_each(Waker::wake);
        frame::put(&mut self.out, frame::SETTINGS, frame::ACK, 0, &[]);
        Ok(())
    }

    fn initial_window(&mut self, window: i64) -> Result {
        if window > MAX_WINDOW {
            return Err(Fatal(Code::FLOW_CONTROL_ERROR, "its INITIAL_WINDOW_SIZE is out of bounds"));
        }
        let change = window - self.initial_send_window;
        self.initial_send_window = window;
        for stream in self.streams.values() {
            let mut state = stream.state.borrow_mut();
            state.send_window += change;
            if state.send_window > MAX_WINDOW {
                return Err(Fatal(Code::FLOW_CONTROL_ERROR, "a window of its is out of bounds"));
            }
            state.wake_writer();
        }
        Ok(())
    }

    fn ping(&mut self, head: Head, payload: &[u8]) -> Result {
        if head.len != 8 {
            return Err(Fatal(Code::FRAME_SIZE_ERROR, "its PING is not 8 bytes long"));
        }
        if head.id != 0 {
            return Err(Fatal(Code::PROTOCOL_ERROR, "its PING is on a stream"));
        }
        self.useless()?;
        if head.has(frame::ACK) {
            self.finish_heard |= payload == FINISH;
            return Ok(());
        }
        frame::put(&mut self.out, frame::PING, frame::ACK, 0, payload);
        Ok(())
    }

    fn go_away(&mut self, head: Head, payload: &[u8]) -> Result {
        let (Some(last), Some(code)) = (payload.first_chunk(), payload.get(4..).and_then(<[u8]>::first_chunk)) else {
            return Err(Fatal(Code::FRAME_SIZE_ERROR, "its GOAWAY is shorter than 8 bytes"));
        };
        if head.id != 0 {
            return Err(Fatal(Code::PROTOCOL_ERROR, "its GOAWAY is on a stream"));
        }
        self.useless()?;
        let last = u32::from_be_bytes(*last) & 0x7fff_ffff;
        let code = Code(u32::from_be_bytes(*code));
        self.leaving = true;
        if self.client {
            // RFC 9113 section 6.8: it has done nothing with those, and never will.
            let mut gone = Vec::new();
            self.streams.retain(|id, stream| {
                let stays = *id <= last;
                if !stays {
                    gone.push(Rc::clone(stream));
                }
                stays
            });
            gone.iter().for_each(|stream| stream.fail(Error::Unprocessed(code)));
            self.openers.drain(..).for_each(Waker::wake);
        }
        if code != Code::NO_ERROR {
            self.fail(Error::GoAway(code));
        }
        self.wake_driver();
        Ok(())
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Result {
        let Some(by) = payload.first_chunk().filter(|_| head.len == 4) else {
            return Err(Fatal(Code::FRAME_SIZE_ERROR, "its WINDOW_UPDATE is not 4 bytes long"));
        };
        let by = i64::from(u32::from_be_bytes(*by) & 0x7fff_ffff);
        if head.id == 0 {
            self.send_window += by;
            if by == 0 || self.send_window > MAX_WINDOW {
                return Err(Fatal(Code::FLOW_CONTROL_ERROR, "the connection's window of its is out of bounds"));
            }
            self.wake_writers();
            return Ok(());
        }
        let Some(stream) = self.stream(head.id)? else { return self.useless() };
        let bad = {
            let mut state = stream.state.borrow_mut();
            state.send_window += by;
            state.wake_writer();
            by == 0 || state.send_window > MAX_WINDOW
        };
        if bad {
            let error = Error::Parse("a stream's window of its is out of bounds");
            self.reset(&stream, Code::FLOW_CONTROL_ERROR, error);
        }
        Ok(())
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

fn unpadded(head: Head, mut payload: Bytes) -> Result<Bytes> {
    if !head.has(frame::PADDED) {
        return Ok(payload);
    }
    let pad = payload.first().copied().map(usize::from);
    match pad {
        Some(pad) if pad < payload.len() => {
            payload.truncate(payload.len() - pad);
            let _ = payload.split_to(1);
            Ok(payload)
        }
        _ => Err(Fatal(Code::PROTOCOL_ERROR, "a frame of its has more padding than room")),
    }
}
