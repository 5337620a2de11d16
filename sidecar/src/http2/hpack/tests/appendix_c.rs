//! The examples of RFC 7541 appendix C.

use super::{
    super::{Decoder, huffman, table::Content},
    decode, shown,
};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Decodes a block and checks its fields and the dynamic table after it, the newest entry first, and its size.
fn check(decoder: &mut Decoder, block: &str, fields: &[&str], table: &[&str], size: usize) {
    let (decoded, outcome) = decode(decoder, &bytes(block)).unwrap();
    assert!(!outcome.malformed && !outcome.too_large);
    assert_eq!(decoded.iter().map(shown).collect::<Vec<_>>(), fields);
    let entries = decoder.table().entries.iter().map(|entry| match &entry.content {
        Content::Field(field) => shown(field),
        Content::Malformed(name) => panic!("malformed: {name:?}"),
    });
    assert_eq!(entries.collect::<Vec<_>>(), table);
    assert_eq!(decoder.table().size, size);
}

/// A decoder whose peer uses a table of 256 bytes, as the responses of the appendix do.
fn small() -> Decoder {
    let mut decoder = Decoder::new(4096);
    decode(&mut decoder, &bytes("3fe101")).unwrap();
    decoder
}

#[test]
fn c2_each_representation() {
    let header = "custom-key: custom-header";
    let literal = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    check(&mut Decoder::new(4096), literal, &[header], &[header], 55);
    let path = ":path: /sample/path";
    check(&mut Decoder::new(4096), "040c 2f73 616d 706c 652f 7061 7468", &[path], &[], 0);
    let mut decoder = Decoder::new(4096);
    check(&mut decoder, "1008 7061 7373 776f 7264 0673 6563 7265 74", &["password: secret"], &[], 0);
    check(&mut decoder, "82", &[":method: GET"], &[], 0);
}

#[test]
fn c3_and_c4_requests_without_and_with_huffman_codes() {
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let coded = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    let (authority, cache, custom) =
        (":authority: www.example.com", "cache-control: no-cache", "custom-key: custom-value");
    for blocks in [plain, coded] {
        let mut decoder = Decoder::new(4096);
        let fields = [":method: GET", ":scheme: http", ":path: /", authority];
        check(&mut decoder, blocks[0], &fields, &[authority], 57);
        let fields = [":method: GET", ":scheme: http", ":path: /", authority, cache];
        check(&mut decoder, blocks[1], &fields, &[cache, authority], 110);
        let fields = [":method: GET", ":scheme: https", ":path: /index.html", authority, custom];
        check(&mut decoder, blocks[2], &fields, &[custom, cache, authority], 164);
    }
}

#[test]
fn c5_and_c6_responses_that_evict_without_and_with_huffman_codes() {
    let plain = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d
         546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f
         6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b
         2076 6572 7369 6f6e 3d31",
    ];
    let coded = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7
         8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335
         dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    let (private, location) = ("cache-control: private", "location: https://www.example.com");
    let (early, late) = ("date: Mon, 21 Oct 2013 20:13:21 GMT", "date: Mon, 21 Oct 2013 20:13:22 GMT");
    let (gzip, cookie) =
        ("content-encoding: gzip", "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
    for blocks in [plain, coded] {
        let mut decoder = small();
        let fields = [":status: 302", private, early, location];
        check(&mut decoder, blocks[0], &fields, &[location, early, private, ":status: 302"], 222);
        let fields = [":status: 307", private, early, location];
        check(&mut decoder, blocks[1], &fields, &[":status: 307", location, early, private], 222);
        let fields = [":status: 200", private, late, location, gzip, cookie];
        check(&mut decoder, blocks[2], &fields, &[cookie, gzip, late], 215);
    }
}

#[test]
fn appendix_b_every_symbol_alone_and_among_others() {
    let all: Vec<u8> = (0..=255).collect();
    let mut out = Vec::new();
    for symbol in &all {
        huffman::decode(&coded(&[*symbol]), &mut out).unwrap();
        assert_eq!(out, [*symbol]);
    }
    for cut in 0..all.len() {
        huffman::decode(&coded(&all[cut..]), &mut out).unwrap();
        assert_eq!(out, all[cut..]);
    }
    // Samples of the appendix itself: the code is canonical, so the lengths could hide a slip.
    for (symbol, code) in
        [(b'0', "07"), (b'&', "f8"), (b'X', "fc"), (b'!', "fe3f"), (b'\\', "fffe1f"), (b'\n', "fffffff3")]
    {
        assert_eq!(coded(&[symbol]), bytes(code), "{symbol}");
    }
}

/// A Huffman encoder as plain as can be.
pub(super) fn coded(string: &[u8]) -> Vec<u8> {
    let mut codes = [0_u32; 257];
    let mut next = 0;
    for length in 1..=30 {
        next <<= 1;
        for symbol in (0..257).filter(|symbol| huffman::LENGTHS[*symbol] == length) {
            codes[symbol] = next;
            next += 1;
        }
    }
    let bits: Vec<u8> = string
        .iter()
        .flat_map(|symbol| {
            let symbol = usize::from(*symbol);
            (0..huffman::LENGTHS[symbol]).rev().map(move |bit| (codes[symbol] >> bit & 1) as u8)
        })
        .collect();
    bits.chunks(8).map(|chunk| (0..8).fold(0, |byte, bit| byte << 1 | chunk.get(bit).copied().unwrap_or(1))).collect()
}
