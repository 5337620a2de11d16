//! The static Huffman code (RFC 7541 section 5.2 and appendix B), read only.
//!
//! We send strings as they are: the legs we write to are loopback or the local network, where a byte costs less than
//! the instructions that save it, and what repeats is one byte from the dynamic table anyway.

use super::Error;

/// The code's end, which no string may hold.
const EOS: usize = 256;

/// Code lengths in bits by symbol. The code is canonical: shorter codes first, then in the order of the symbols, so the
/// lengths say all.
#[rustfmt::skip]
pub(super) const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const MAX_LENGTH: usize = 30;
/// Codes up to this length, which are all that text is made of, are found in one step.
const FAST_BITS: usize = 10;

struct Codes {
    /// By the next ten bits: the length in the high byte and the symbol in the low one; zero where the code is longer.
    fast: [u16; 1 << FAST_BITS],
    /// The first code of each length, how many there are, and where they begin in `symbols`.
    first: [u32; MAX_LENGTH + 1],
    count: [u32; MAX_LENGTH + 1],
    start: [u16; MAX_LENGTH + 1],
    /// In the order of their codes.
    symbols: [u16; 257],
}

static CODES: Codes = codes();

const fn codes() -> Codes {
    let mut codes = Codes {
        fast: [0; 1 << FAST_BITS],
        first: [0; MAX_LENGTH + 1],
        count: [0; MAX_LENGTH + 1],
        start: [0; MAX_LENGTH + 1],
        symbols: [0; 257],
    };
    let (mut code, mut position, mut length) = (0, 0, 1);
    while length <= MAX_LENGTH {
        code <<= 1;
        codes.first[length] = code;
        codes.start[length] = position as u16;
        let mut symbol = 0;
        while symbol <= EOS {
            if LENGTHS[symbol] as usize == length {
                codes.symbols[position] = symbol as u16;
                if length <= FAST_BITS {
                    let spare = FAST_BITS - length;
                    let mut i = 0;
                    while i < 1 << spare {
                        codes.fast[((code as usize) << spare) + i] = ((length as u16) << 8) | symbol as u16;
                        i += 1;
                    }
                }
                code += 1;
                position += 1;
            }
            symbol += 1;
        }
        codes.count[length] = code - codes.first[length];
        length += 1;
    }
    codes
}

/// Decodes `input` into `out`, which is emptied first. It becomes at most 8/5 as long as `input`.
pub(super) fn decode(mut input: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    out.clear();
    out.reserve(input.len() * 8 / 5);
    // The next bits from the highest one down; `have` of them are accounted for.
    let (mut bits, mut have) = (0_u64, 0_usize);
    loop {
        if let Some(word) = input.first_chunk::<8>() {
            bits |= u64::from_be_bytes(*word) >> have;
            input = &input[(63 - have) >> 3..];
            have |= 56;
        } else {
            while let [byte, rest @ ..] = input
                && have <= 56
            {
                bits |= u64::from(*byte) << (56 - have);
                have += 8;
                input = rest;
            }
        }
        // All symbols that are whole in these bits, whatever follows them.
        loop {
            let fast = CODES.fast[(bits >> (64 - FAST_BITS)) as usize];
            let (length, symbol) =
                if fast != 0 { (usize::from(fast >> 8), usize::from(fast & 0xff)) } else { long(bits) };
            if length > have {
                break;
            }
            if symbol == EOS {
                return Err(Error::Huffman);
            }
            out.push(symbol as u8);
            bits <<= length;
            have -= length;
        }
        if input.is_empty() {
            return if have < 8 && (have == 0 || bits >> (64 - have) == (1 << have) - 1) {
                Ok(())
            } else {
                Err(Error::Huffman)
            };
        }
    }
}

/// The length and the symbol of a code of more than ten bits.
#[cold]
fn long(bits: u64) -> (usize, usize) {
    for length in FAST_BITS + 1..=MAX_LENGTH {
        let offset = ((bits >> (64 - length)) as u32).wrapping_sub(CODES.first[length]);
        if offset < CODES.count[length] {
            let position = usize::from(CODES.start[length]) + offset as usize;
            return (length, usize::from(CODES.symbols[position]));
        }
    }
    // Not reached: the code is complete.
    (MAX_LENGTH, EOS)
}
