//! What comes: frames, and what they do to the connection and its streams.

use std::{collections::VecDeque, rc::Rc, task::Waker, time::Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header::EXPECT};

use super::{
    Accepted, Block, COLLECTED, Connection, Data, FINISH, Fatal, LARGE_READ, MAX_BLOCK, MAX_BLOCK_FRAMES, MAX_RESETS,
    MAX_SETTINGS, MAX_USELESS, MAX_WINDOW, RESETS_A_SECOND, Result, SMALL_PIECE,
};
use crate::{
    http::Error,
    http2::{
        Code, MAX_HEADERS, MAX_STREAMS, STREAM_WINDOW,
        frame::{self, Head},
        message::Fields,
        stream::Stream,
    },
};

impl Connection {
    /// Whether a message has come in part.
    pub(in crate::http2) fn is_amid(&self) -> bool {
        !self.input.is_empty() || self.block.is_some() || self.data.is_some()
    }

    /// Takes what was read.
    pub(in crate::http2) fn read(&mut self, bytes: Bytes) -> Result {
        self.read_len = bytes.len();
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
                self.end_if_abused()?;
                continue;
            }
            if self.input.len() < frame::HEAD + head.len {
                break;
            }
            let mut payload = self.input.split_to(frame::HEAD + head.len);
            let _ = payload.split_to(frame::HEAD);
            self.frame(head, payload)?;
            self.end_if_abused()?;
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
        if stream.is_none() || (head.len == 0 && !head.has(frame::END_STREAM)) {
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
            self.punish(stream, code, words);
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
                keep_piece(&mut state.data, piece, self.read_len);
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
        let too_large = decoded.too_large || fields.too_many;
        let fields = (!decoded.malformed).then_some(fields);
        if !self.client && id % 2 == 1 && id > self.last_id {
            self.useless = 0;
            self.request(id, end_stream, fields, too_large);
            return Ok(());
        }
        let Some(stream) = self.stream(id)? else { return self.useless() };
        self.useless = 0;
        let wrong = self.more_fields(&stream, end_stream, fields, too_large);
        if let Err((code, words)) = wrong {
            self.punish(&stream, code, words);
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
            return self.refuse(id, Code::REFUSED_STREAM);
        }
        let stream = Stream::new(id, STREAM_WINDOW, self.initial_send_window);
        let message = if too_large { None } else { fields.and_then(Fields::request) };
        let Some((request, length)) = message else {
            if !too_large {
                return self.refuse(id, Code::PROTOCOL_ERROR);
            }
            stream.state.borrow_mut().received = end_stream;
            self.streams.insert(id, Rc::clone(&stream));
            self.accepted.push(Accepted { request: None, stream });
            return;
        };
        if end_stream && length.unwrap_or(0) > 0 {
            return self.refuse(id, Code::PROTOCOL_ERROR);
        }
        {
            let mut state = stream.state.borrow_mut();
            state.received = end_stream;
            (state.to_come, state.to_take) = (length, length);
            state.expects = !end_stream && request.headers().get(EXPECT).is_some_and(is_continue);
        }
        self.streams.insert(id, Rc::clone(&stream));
        self.accepted.push(Accepted { request: Some(request), stream });
    }

    /// Opens no stream for a request.
    fn refuse(&mut self, id: u32, code: Code) {
        self.say(|out| frame::reset(out, id, code));
        self.misbehaved();
    }

    /// Ends a stream on which the other side has done what it may not.
    fn punish(&mut self, stream: &Stream, code: Code, words: &'static str) {
        self.answers += frame::HEAD + 4;
        self.misbehaved();
        self.reset(stream, code, Error::Parse(words));
    }

    /// Writes what the other side makes us write.
    fn say(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let before = self.out.len();
        write(&mut self.out);
        self.answers += self.out.len() - before;
    }

    /// A stream ended before its end, and it was the other side's doing.
    fn misbehaved(&mut self) {
        if self.client {
            return;
        }
        self.resets += 1;
        if self.resets > MAX_RESETS / 2 {
            let since = *self.resets_since.get_or_insert_with(Instant::now);
            let seconds = since.elapsed().as_secs().min(60) as u32;
            if seconds > 0 {
                self.resets = self.resets.saturating_sub(seconds * RESETS_A_SECOND);
                self.resets_since = Some(Instant::now());
            }
        } else {
            self.resets_since = None;
        }
    }

    /// Where the other side has broken off more than can be meant well.
    fn end_if_abused(&self) -> Result {
        if self.resets > MAX_RESETS {
            return Err(Fatal(Code::ENHANCE_YOUR_CALM, "it breaks off its requests without end"));
        }
        Ok(())
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
            return Err((Code::CANCEL, "its head is larger than 64 KiB or has more than 256 fields"));
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
        // One that was answered in full costs nothing more.
        if !stream.state.borrow().sent {
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
        if head.len > 6 * MAX_SETTINGS {
            return Err(Fatal(Code::ENHANCE_YOUR_CALM, "it sent more than 32 settings at once"));
        }
        self.useless()?;
        let first = !std::mem::replace(&mut self.has_settings, true);
        let (mut streams, mut window) = (None, None);
        for setting in payload.chunks_exact(6) {
            let [a, b, c, d, e, f] = *setting else { continue };
            let value = u32::from_be_bytes([c, d, e, f]);
            match u16::from_be_bytes([a, b]) {
                frame::HEADER_TABLE_SIZE => self.encoder.set_max_size(value as usize),
                frame::ENABLE_PUSH if value > 1 || (self.client && value == 1) => {
                    return Err(Fatal(Code::PROTOCOL_ERROR, "its ENABLE_PUSH is not what it may be"));
                }
                frame::MAX_CONCURRENT_STREAMS => streams = Some(value as usize),
                frame::INITIAL_WINDOW_SIZE if i64::from(value) > MAX_WINDOW => {
                    return Err(Fatal(Code::FLOW_CONTROL_ERROR, "its INITIAL_WINDOW_SIZE is out of bounds"));
                }
                frame::INITIAL_WINDOW_SIZE => window = Some(i64::from(value)),
                frame::MAX_FRAME_SIZE if !(16_384..=16_777_215).contains(&value) => {
                    return Err(Fatal(Code::PROTOCOL_ERROR, "its MAX_FRAME_SIZE is out of bounds"));
                }
                // Larger frames would let one stream hold up the others.
                frame::MAX_FRAME_SIZE => self.max_payload = frame::MAX_PAYLOAD,
                _ => {}
            }
        }
        if let Some(window) = window {
            self.initial_window(window)?;
        }
        match streams {
            Some(streams) => self.max_streams = streams,
            None if first => self.max_streams = usize::MAX,
            None => {}
        }
        self.openers.drain(..).for_each(Waker::wake);
        self.say(|out| frame::put(out, frame::SETTINGS, frame::ACK, 0, &[]));
        Ok(())
    }

    fn initial_window(&mut self, window: i64) -> Result {
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
        self.say(|out| frame::put(out, frame::PING, frame::ACK, 0, payload));
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
            if by == 0 {
                return Err(Fatal(Code::PROTOCOL_ERROR, "it widened the connection's window by nothing"));
            }
            self.send_window += by;
            if self.send_window > MAX_WINDOW {
                return Err(Fatal(Code::FLOW_CONTROL_ERROR, "the connection's window of its is out of bounds"));
            }
            self.wake_writers();
            return Ok(());
        }
        let Some(stream) = self.stream(head.id)? else { return self.useless() };
        let is_large = {
            let mut state = stream.state.borrow_mut();
            state.send_window += by;
            state.wake_writer();
            state.send_window > MAX_WINDOW
        };
        if by == 0 {
            self.punish(&stream, Code::PROTOCOL_ERROR, "it widened a stream's window by nothing");
        } else if is_large {
            self.punish(&stream, Code::FLOW_CONTROL_ERROR, "a stream's window of its is out of bounds");
        }
        Ok(())
    }
}

fn is_continue(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"100-continue")
}

/// Puts a piece where its reader takes it. What is bounded is bytes; so small ones must not each keep a large read, nor
/// be many.
fn keep_piece(kept: &mut VecDeque<Bytes>, piece: Bytes, read_len: usize) {
    if piece.len() >= SMALL_PIECE {
        return kept.push_back(piece);
    }
    if let Some(last) = kept.back_mut()
        && last.len() + piece.len() <= COLLECTED
    {
        let mut grown = std::mem::take(last).try_into_mut().unwrap_or_else(|shared| BytesMut::from(&*shared));
        grown.extend_from_slice(&piece);
        *last = grown.freeze();
        return;
    }
    kept.push_back(if read_len >= LARGE_READ { Bytes::copy_from_slice(&piece) } else { piece });
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_keep_neither_what_was_read_with_them_nor_a_place_each() {
        let mut kept = VecDeque::new();
        for i in 0..20_000_u32 {
            let read = Bytes::from(vec![i as u8; 16_384]);
            keep_piece(&mut kept, read.slice(..1), read.len());
            assert!(read.is_unique(), "a piece keeps its read");
        }
        assert!(kept.len() <= 2, "{}", kept.len());
        assert!(kept.iter().flatten().copied().eq((0..20_000_u32).map(|i| i as u8)));
    }
}
