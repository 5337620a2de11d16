//! Integers of a prefix and continuation bytes (RFC 7541 section 5.1).

use bytes::{BufMut, BytesMut};

use super::Error;

/// Bits of the continuation bytes read at most. No block is that long, and every sum of a few of them fits 32 bits.
const MAX_SHIFT: u32 = 28;

/// Reads the integer whose prefix is the low `bits` of `first`.
#[inline]
pub(super) fn read(first: u8, bits: u32, rest: &mut &[u8]) -> Result<usize, Error> {
    let mask = (1 << bits) - 1;
    let prefix = first & mask;
    if prefix < mask { Ok(usize::from(prefix)) } else { read_on(usize::from(mask), rest) }
}

fn read_on(prefix: usize, rest: &mut &[u8]) -> Result<usize, Error> {
    let mut value = prefix;
    for shift in (0..MAX_SHIFT).step_by(7) {
        let [byte, after @ ..] = *rest else { return Err(Error::Truncated) };
        *rest = after;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::Integer)
}

/// Writes `value` with a prefix of `bits`; `pattern` holds what stands before the prefix.
#[inline]
pub(super) fn write(value: usize, bits: u32, pattern: u8, out: &mut BytesMut) {
    let mask = (1 << bits) - 1;
    if value < usize::from(mask) {
        out.put_u8(pattern | value as u8);
    } else {
        out.put_u8(pattern | mask);
        write_on(value - usize::from(mask), out);
    }
}

fn write_on(mut value: usize, out: &mut BytesMut) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}
