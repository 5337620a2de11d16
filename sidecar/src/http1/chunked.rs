//! Bodies in chunks (RFC 9112 section 7.1).

use bytes::{Buf, Bytes};
use http::HeaderMap;

use super::head;

/// Bytes of one chunk's size line, extensions included, and of the trailers.
const MAX_LINE: usize = 4 * 1024;
/// Bytes of all extensions of a body: nobody needs them.
const MAX_EXTENSIONS: usize = 16 * 1024;
const MAX_TRAILERS: usize = 16 * 1024;

/// Where in a chunked body the next byte belongs.
#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    /// A line that has not all come, or all trailers so far.
    line: Vec<u8>,
    extensions: usize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Size,
    Data(u64),
    /// The line end after a chunk's data.
    After,
    Trailers,
}

/// What the bytes gave.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    /// The end of the body.
    End(Option<HeaderMap>),
    /// More bytes are needed.
    More,
}

impl Chunked {
    pub(super) fn new() -> Self {
        Self { state: State::Size, line: Vec::new(), extensions: 0 }
    }

    /// Takes the next piece off `input`.
    pub(super) fn next(&mut self, input: &mut Bytes) -> Result<Piece, &'static str> {
        loop {
            if input.is_empty() {
                return Ok(Piece::More);
            }
            match self.state {
                State::Data(left) => {
                    let n = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                    let data = super::connection::take(input, n);
                    self.state = if n as u64 == left { State::After } else { State::Data(left - n as u64) };
                    return Ok(Piece::Data(data));
                }
                State::Size => {
                    if !self.take_line(input, MAX_LINE)? {
                        return Ok(Piece::More);
                    }
                    let (size, extensions) = size(&self.line)?;
                    self.extensions += extensions;
                    if self.extensions > MAX_EXTENSIONS {
                        return Err("the extensions of a chunked body have no end");
                    }
                    self.line.clear();
                    self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                }
                State::After => {
                    if !self.take_line(input, 2)? {
                        return Ok(Piece::More);
                    }
                    if self.line != b"\r\n" {
                        return Err("a chunk is longer than its size");
                    }
                    self.line.clear();
                    self.state = State::Size;
                }
                State::Trailers => {
                    if !self.take_line(input, MAX_TRAILERS)? {
                        return Ok(Piece::More);
                    }
                    if self.line == b"\r\n" || self.line.ends_with(b"\r\n\r\n") {
                        let trailers = (self.line.len() > 2).then(|| head::trailers(&self.line)).transpose()?;
                        return Ok(Piece::End(trailers));
                    }
                }
            }
        }
    }

    /// Adds bytes up to a line's end to `line`; false where it has not come.
    fn take_line(&mut self, input: &mut Bytes, max: usize) -> Result<bool, &'static str> {
        let end = memchr::memchr(b'\n', input);
        let n = end.map_or(input.len(), |at| at + 1);
        if self.line.len() + n > max {
            return Err("a line of a chunked body is too long");
        }
        self.line.extend_from_slice(input.get(..n).unwrap_or_default());
        input.advance(n);
        if end.is_some() && !self.line.ends_with(b"\r\n") {
            return Err("a line of a chunked body ends without CR");
        }
        Ok(end.is_some())
    }
}

/// The size of a chunk, and the bytes of its extensions.
fn size(line: &[u8]) -> Result<(u64, usize), &'static str> {
    const BAD: &str = "a chunk's size is not a hexadecimal number";
    let line = line.strip_suffix(b"\r\n").ok_or(BAD)?;
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (number, extensions) = line.split_at(digits);
    if digits == 0 || digits > 15 || extensions.contains(&b'\r') {
        return Err(BAD);
    }
    // RFC 9112 section 7.1.1 lets white space stand before an extension.
    let after = extensions.iter().find(|b| !matches!(b, b' ' | b'\t'));
    if after.is_some_and(|b| *b != b';') {
        return Err(BAD);
    }
    let text = std::str::from_utf8(number).map_err(|_| BAD)?;
    Ok((u64::from_str_radix(text, 16).map_err(|_| BAD)?, extensions.len()))
}
