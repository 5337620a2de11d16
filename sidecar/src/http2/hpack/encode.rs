//! Writing a field block (RFC 7541 sections 6 and 7).

use bytes::{BufMut, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority};

use super::{
    DEFAULT_TABLE_SIZE, Pseudo, Scheme, integer,
    sent::{Hashes, Key, Sent},
    static_table,
    table::entry_size,
};

/// The largest table we fill, whatever the peer allows: enough for the fields of a hundred kinds of request.
const MAX_TABLE_SIZE: usize = DEFAULT_TABLE_SIZE;

/// A secret shorter than this could be guessed by somebody who sends guesses over the same connection and watches for
/// the one that becomes short (RFC 7541 section 7.1); nghttp2 draws the line here for cookies.
const GUESSABLE: usize = 20;

/// How many fields are remembered that were not indexed at their first sight.
const SEEN: usize = 32;

/// What a connection remembers of the fields that were sent on it.
///
/// A block is begun with [`Self::begin`], and its fields follow in their order, pseudo-fields first.
///
/// What is worth a place in the table is found out, not listed by name. The first value of a name is indexed at once:
/// most fields have one value for a whole connection. Another value of that name is indexed at its second sight among
/// the latest ones: so `date`, which changes once a second, and the few paths of a small service become one byte, while
/// trace identifiers and numbered paths do not drive the others out.
#[derive(Debug)]
pub struct Encoder {
    sent: Sent,
    /// By the low bits of their hashes, the others of them.
    seen: [u32; SEEN],
    /// The smallest size set since the last block, which the peer must be told (RFC 7541 section 4.2).
    smallest: Option<usize>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An encoder for a peer whose SETTINGS are not known yet.
    pub fn new() -> Self {
        Self { sent: Sent::new(DEFAULT_TABLE_SIZE), seen: [0; SEEN], smallest: None }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE: obeyed from the next block on, up to 4096.
    pub fn set_max_size(&mut self, size: usize) {
        let size = size.min(MAX_TABLE_SIZE);
        if size != self.sent.max() {
            self.smallest = Some(self.smallest.map_or(size, |smallest| smallest.min(size)));
            self.sent.set_max(size);
        }
    }

    /// Begins a block.
    #[inline]
    pub fn begin(&mut self, out: &mut BytesMut) {
        self.sent.begin();
        if let Some(smallest) = self.smallest.take() {
            let last = self.sent.max();
            if smallest < last {
                integer::write(smallest, 5, 0x20, out);
            }
            integer::write(last, 5, 0x20, out);
        }
    }

    /// Writes `:method`.
    #[inline]
    pub fn method(&mut self, method: &Method, out: &mut BytesMut) {
        match *method {
            Method::GET => out.put_u8(0x82),
            Method::POST => out.put_u8(0x83),
            _ => self.field(Key::Pseudo(Pseudo::Method), method.as_str().as_bytes(), out),
        }
    }

    /// Writes `:scheme`.
    #[inline]
    pub fn scheme(&mut self, scheme: &Scheme, out: &mut BytesMut) {
        match scheme {
            Scheme::Http => out.put_u8(0x86),
            Scheme::Https => out.put_u8(0x87),
            Scheme::Other(other) => self.field(Key::Pseudo(Pseudo::Scheme), other, out),
        }
    }

    /// Writes `:authority`.
    #[inline]
    pub fn authority(&mut self, authority: &Authority, out: &mut BytesMut) {
        self.field(Key::Pseudo(Pseudo::Authority), authority.as_str().as_bytes(), out);
    }

    /// Writes `:path`: the path and the query as they stand in the message.
    #[inline]
    pub fn path(&mut self, path: &str, out: &mut BytesMut) {
        match path {
            "/" => out.put_u8(0x84),
            _ => self.field(Key::Pseudo(Pseudo::Path), path.as_bytes(), out),
        }
    }

    /// Writes `:protocol` (RFC 8441 section 4).
    pub fn protocol(&mut self, protocol: &str, out: &mut BytesMut) {
        self.field(Key::Pseudo(Pseudo::Protocol), protocol.as_bytes(), out);
    }

    /// Writes `:status`.
    #[inline]
    pub fn status(&mut self, status: StatusCode, out: &mut BytesMut) {
        match status.as_u16() {
            200 => out.put_u8(0x88),
            204 => out.put_u8(0x89),
            206 => out.put_u8(0x8a),
            304 => out.put_u8(0x8b),
            400 => out.put_u8(0x8c),
            404 => out.put_u8(0x8d),
            500 => out.put_u8(0x8e),
            _ => self.field(Key::Pseudo(Pseudo::Status), status.as_str().as_bytes(), out),
        }
    }

    /// Writes a header. A sensitive value is marked as never to be indexed, by anyone (RFC 7541 section 7.1.3).
    #[inline]
    pub fn header(&mut self, name: &HeaderName, value: &HeaderValue, out: &mut BytesMut) {
        let key = Key::Header(name);
        if value.is_sensitive() {
            self.never_indexed(key, value.as_bytes(), out);
        } else {
            self.field(key, value.as_bytes(), out);
        }
    }

    #[inline]
    fn field(&mut self, key: Key<'_>, value: &[u8], out: &mut BytesMut) {
        match self.sent.expect(key, value) {
            Some(index) => integer::write(index, 7, 0x80, out),
            None => self.unexpected(key, value, out),
        }
    }

    /// A field that did not come in this place the last time.
    #[inline(never)]
    fn unexpected(&mut self, key: Key<'_>, value: &[u8], out: &mut BytesMut) {
        let hashes = Hashes::of(key, value);
        if let Some(index) = self.sent.find(key, value, hashes) {
            return integer::write(index, 7, 0x80, out);
        }
        if let Key::Header(name) = key {
            if let Some(index) = static_table::header_index(name, value) {
                return integer::write(index, 7, 0x80, out);
            }
            if value.len() < GUESSABLE && is_secret(name) {
                return self.never_indexed(key, value, out);
            }
        }
        let known = self.sent.find_name(key, hashes);
        let index = key.static_index().or(known).unwrap_or(0);
        // A field that takes most of the table would drive out more than it saves.
        let fits = entry_size(key.as_str().len(), value.len()) <= self.sent.max() / 4 * 3;
        if fits && (known.is_none() || self.seen_before(hashes)) {
            literal(index, 6, 0x40, key, value, out);
            self.sent.insert(key, value, hashes);
        } else {
            literal(index, 4, 0, key, value, out);
        }
    }

    fn never_indexed(&mut self, key: Key<'_>, value: &[u8], out: &mut BytesMut) {
        let index = key.static_index().or_else(|| self.sent.find_name(key, Hashes::of(key, &[])));
        literal(index.unwrap_or(0), 4, 0x10, key, value, out);
    }

    /// The sizes of the entries that the peer should hold, the newest first.
    #[cfg(test)]
    pub(super) fn table(&self) -> Vec<usize> {
        self.sent.sizes()
    }

    /// Whether a field was here lately; it is from now on.
    fn seen_before(&mut self, hashes: Hashes) -> bool {
        let rest = (hashes.field >> 32) as u32;
        let slot = &mut self.seen[hashes.field as usize % SEEN];
        std::mem::replace(slot, rest) == rest
    }
}

fn is_secret(name: &HeaderName) -> bool {
    matches!(*name, header::AUTHORIZATION | header::COOKIE | header::PROXY_AUTHORIZATION | header::SET_COOKIE)
}

/// A literal (RFC 7541 section 6.2), its name by `index` unless that is zero.
fn literal(index: usize, bits: u32, pattern: u8, key: Key<'_>, value: &[u8], out: &mut BytesMut) {
    integer::write(index, bits, pattern, out);
    if index == 0 {
        string(key.as_str().as_bytes(), out);
    }
    string(value, out);
}

fn string(string: &[u8], out: &mut BytesMut) {
    integer::write(string.len(), 7, 0, out);
    out.put_slice(string);
}
