//! Bytes whose every position is known, so that a receiver can tell lost, doubled and reordered ones without a copy.

use std::sync::OnceLock;

use bytes::Bytes;

/// The period. A prime, so that no buffer size of the path under test divides it: a lost or doubled buffer shows.
const PERIOD: usize = 65_521;
/// The longest slice that [`slice`] gives.
pub const MAX_SLICE: usize = 64 * 1024;

fn table() -> &'static Bytes {
    static TABLE: OnceLock<Bytes> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let period: Vec<u8> = (0..PERIOD)
            .map(|_| {
                // xorshift64: any fixed sequence without short repeats will do.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        period.iter().copied().cycle().take(PERIOD + MAX_SLICE).collect::<Vec<u8>>().into()
    })
}

/// The bytes from `offset`, at most `len` and at most [`MAX_SLICE`] of them; no copy.
pub fn slice(offset: u64, len: u64) -> Bytes {
    let start = (offset % PERIOD as u64) as usize;
    let len = len.min(MAX_SLICE as u64) as usize;
    table().slice(start..start + len)
}

/// Whether `data` is what stands at `offset`.
pub fn matches(mut offset: u64, mut data: &[u8]) -> bool {
    while !data.is_empty() {
        let want = slice(offset, data.len() as u64);
        let (head, rest) = data.split_at(want.len());
        if head != want {
            return false;
        }
        offset += want.len() as u64;
        data = rest;
    }
    true
}

/// `len` bytes from the beginning, in memory.
pub fn bytes(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        let part = slice(out.len() as u64, (len - out.len()) as u64);
        out.extend_from_slice(&part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_recognised_and_a_lost_byte_is_not() {
        let made = bytes(300_000);
        assert!(matches(0, &made));
        assert!(matches(1_000, &made[1_000..]));
        assert!(!matches(0, &made[1..]));
        let mut holed = made.clone();
        holed.drain(100_000..100_000 + 16_384);
        assert!(!matches(0, &holed));
    }
}
