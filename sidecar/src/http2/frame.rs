//! Frames as they are on the wire (RFC 9113 sections 4 and 6).

use bytes::BytesMut;

use super::Code;

/// Bytes before a frame's payload.
pub(super) const HEAD: usize = 9;
/// Payload of one frame that both sides take without having been asked (RFC 9113 section 4.2).
pub(super) const MAX_PAYLOAD: usize = 16 * 1024;
/// What a client says first.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const WITH_PRIORITY: u8 = 32;

pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_FRAME_SIZE: u16 = 5;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// What stands before a payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) len: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) id: u32,
}

impl Head {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, i, j, k, l] = *bytes.first_chunk::<HEAD>()?;
        Some(Self {
            len: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            id: u32::from_be_bytes([i, j, k, l]) & 0x7fff_ffff,
        })
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn bytes(self) -> [u8; HEAD] {
        let [_, a, b, c] = (self.len as u32).to_be_bytes();
        let [i, j, k, l] = self.id.to_be_bytes();
        [a, b, c, self.kind, self.flags, i, j, k, l]
    }
}

pub(super) fn put(out: &mut BytesMut, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    out.extend_from_slice(&Head { len: payload.len(), kind, flags, id }.bytes());
    out.extend_from_slice(payload);
}

pub(super) fn settings(out: &mut BytesMut, settings: &[(u16, u32)]) {
    out.extend_from_slice(&Head { len: settings.len() * 6, kind: SETTINGS, flags: 0, id: 0 }.bytes());
    for (name, value) in settings {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

pub(super) fn reset(out: &mut BytesMut, id: u32, code: Code) {
    put(out, RST_STREAM, 0, id, &code.0.to_be_bytes());
}

pub(super) fn window_update(out: &mut BytesMut, id: u32, by: u32) {
    put(out, WINDOW_UPDATE, 0, id, &by.to_be_bytes());
}

pub(super) fn go_away(out: &mut BytesMut, last: u32, code: Code, words: &str) {
    let payload = [&last.to_be_bytes()[..], &code.0.to_be_bytes()[..], words.as_bytes()].concat();
    put(out, GOAWAY, 0, 0, &payload);
}

/// Begins a frame of fields whose length [`end_fields`] fills in; says where it begins.
pub(super) fn begin_fields(out: &mut BytesMut, end_stream: bool, id: u32) -> usize {
    let at = out.len();
    let flags = END_HEADERS | if end_stream { END_STREAM } else { 0 };
    out.extend_from_slice(&Head { len: 0, kind: HEADERS, flags, id }.bytes());
    at
}

/// Ends a frame of fields, in as many frames as the other side's `max` makes necessary.
pub(super) fn end_fields(out: &mut BytesMut, at: usize, max: usize) {
    let len = out.len() - at - HEAD;
    if len <= max {
        let [_, a, b, c] = (len as u32).to_be_bytes();
        if let Some(place) = out.get_mut(at..at + 3) {
            place.copy_from_slice(&[a, b, c]);
        }
        return;
    }
    let all = out.split_off(at);
    let Some(head) = Head::read(&all) else { return };
    let mut pieces = all.get(HEAD..).unwrap_or_default().chunks(max).peekable();
    let (mut kind, mut flags) = (HEADERS, head.flags & !END_HEADERS);
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        put(out, kind, flags | last, head.id, piece);
        (kind, flags) = (CONTINUATION, 0);
    }
}
