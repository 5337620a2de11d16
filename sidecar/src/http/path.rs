//! The canonical path: made once, and the same string is matched, authorized and forwarded, so that no two of them can
//! read a request differently.
//!
//! RFC 3986 section 6.2.2: percent-encoded unreserved characters are decoded, digits of `%` are upper case, dot segments
//! are gone. What cannot stand in a path is percent-encoded, a `%` that begins no triplet included, so that an
//! application that decodes gets what it would have got; `\` is `/`, as the URL standard and Envoy have it. What RFC 3986
//! leaves open is decided by [`PathNormalization`]: Envoy's `path_with_escaped_slashes_action` comes first, then the
//! normalization, then `merge_slashes`. The canonical form of a canonical path is itself.

use std::borrow::Cow;

use crate::config::{EscapedSlashes, PathNormalization};

/// What the canonical form of a path says about its request.
#[derive(Debug, PartialEq, Eq)]
pub enum Canonical<'a> {
    /// Go on, with this path.
    Path(Cow<'a, str>),
    /// Send the caller to this path.
    Redirect(String),
    /// Refuse the request: an escaped slash is not allowed.
    Refuse,
}

/// The canonical form of `path`, which has no query. Allocates only where it is another one.
pub fn canonical(path: &str, rules: PathNormalization) -> Canonical<'_> {
    // The target of OPTIONS for the server as a whole (RFC 9112 section 3.2.4).
    if path == "*" || is_canonical(path.as_bytes(), rules) {
        return Canonical::Path(Cow::Borrowed(path));
    }
    let mut unescaped = false;
    let mut out = Vec::with_capacity(path.len() + 16);
    if !path.starts_with(['/', '\\']) {
        out.push(b'/');
    }
    let mut rest = path.as_bytes();
    while let [b, after @ ..] = rest {
        rest = after;
        match *b {
            b'/' | b'\\' => end_segment(&mut out, true),
            b'%' => match triplet(after) {
                None => escape(&mut out, b'%'),
                Some(b) => {
                    rest = after.get(2..).unwrap_or_default();
                    match (b, rules.path_with_escaped_slashes_action) {
                        (b'/' | b'\\', EscapedSlashes::RejectRequest) => return Canonical::Refuse,
                        (b'/' | b'\\', EscapedSlashes::UnescapeAndForward | EscapedSlashes::UnescapeAndRedirect) => {
                            unescaped = true;
                            end_segment(&mut out, true);
                        }
                        (b, _) if is_unreserved(b) => out.push(b),
                        (b, _) => escape(&mut out, b),
                    }
                }
            },
            b if is_pchar(b) => out.push(b),
            b => escape(&mut out, b),
        }
    }
    end_segment(&mut out, false);
    if rules.merge_slashes {
        out.dedup_by(|b, before| *b == b'/' && *before == b'/');
    }
    // Nothing but ASCII was written.
    let out = String::from_utf8(out).unwrap_or_else(|_| "/".to_owned());
    if unescaped && rules.path_with_escaped_slashes_action == EscapedSlashes::UnescapeAndRedirect {
        return Canonical::Redirect(out);
    }
    Canonical::Path(if out == path { Cow::Borrowed(path) } else { Cow::Owned(out) })
}

/// Ends the segment at the end of `out`, with a `/` where more follow; a dot segment is removed up to the `/` before it or
/// before its parent (RFC 3986 section 5.2.4).
fn end_segment(out: &mut Vec<u8>, more: bool) {
    let Some(slash) = out.iter().rposition(|b| *b == b'/') else {
        out.push(b'/');
        return;
    };
    match out.get(slash + 1..) {
        Some(b".") => out.truncate(slash + 1),
        Some(b"..") => {
            out.truncate(slash);
            let before = out.iter().rposition(|b| *b == b'/').unwrap_or(0);
            out.truncate(before);
            out.push(b'/');
        }
        _ if more => out.push(b'/'),
        _ => {}
    }
}

/// Whether a path is canonical at a glance: nothing in it asks for a closer look.
fn is_canonical(path: &[u8], rules: PathNormalization) -> bool {
    let mut before = 0;
    path.first() == Some(&b'/')
        && path.iter().all(|b| {
            let plain = is_pchar(*b) && !(*b == b'.' && before == b'/')
                || *b == b'/' && !(rules.merge_slashes && before == b'/');
            before = *b;
            plain
        })
}

/// The byte that two hexadecimal digits at the beginning of `rest` say.
pub fn triplet(rest: &[u8]) -> Option<u8> {
    let [high, low, ..] = rest else { return None };
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some(digit(*high)? << 4 | digit(*low)?)
}

fn escape(out: &mut Vec<u8>, b: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend([b'%', DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]);
}

/// RFC 3986 section 2.3.
const fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 section 3.3, without the `%` of a triplet.
const fn is_pchar(b: u8) -> bool {
    PCHAR[b as usize]
}

const PCHAR: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0_u8;
    loop {
        table[b as usize] = is_unreserved(b)
            || matches!(b, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@');
        if b == u8::MAX {
            break;
        }
        b += 1;
    }
    table
};

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
