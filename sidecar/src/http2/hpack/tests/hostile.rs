//! What a broken or a hostile peer can send.

use super::{
    super::{Decoder, Encoder, Error, Field, Scheme},
    appendix_c::coded,
    decode, shown,
};
use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method};

fn error(block: &[u8]) -> Error {
    decode(&mut Decoder::new(4096), block).unwrap_err()
}

/// A literal with incremental indexing.
fn indexed(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0x40, name.len() as u8], name, &[value.len() as u8], value].concat()
}

#[test]
fn random_blocks_never_panic_and_never_grow_the_table_beyond_its_size() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut decoder = Decoder::new(4096);
    for _ in 0..100_000 {
        // Half of them with bytes that lead somewhere.
        let length = random.usize(..64);
        let likely = random.bool();
        let block: Vec<u8> = (0..length)
            .map(|_| {
                if likely {
                    *random.choice(b"\x82\xbe\xbf\x40\x41\x44\x01\x02\x10\x0fab/\x81\x20").unwrap()
                } else {
                    random.u8(..)
                }
            })
            .collect();
        if decode(&mut decoder, &block).is_err() {
            let table = decoder.table();
            let sum: usize = table.entries.iter().map(|entry| entry.size as usize).sum();
            assert!(sum == table.size && sum <= 4096);
        }
    }
}

#[test]
fn a_block_cut_anywhere_is_an_error_or_gives_fewer_fields() {
    let mut block = BytesMut::new();
    let mut encoder = Encoder::new();
    encoder.method(&Method::PUT, &mut block);
    encoder.scheme(&Scheme::Https, &mut block);
    encoder.path("/orders/7", &mut block);
    encoder.header(&HeaderName::from_static("x-long"), &HeaderValue::from_str(&"v".repeat(300)).unwrap(), &mut block);
    block.extend_from_slice(&[0x00, 0x81, 0x1f]);
    block.extend_from_slice(&[0x81, 0xf8]);
    let all = decode(&mut Decoder::new(4096), &block).unwrap().0;
    assert_eq!(all.len(), 5);
    for length in 0..block.len() {
        match decode(&mut Decoder::new(4096), &block[..length]) {
            Ok((fields, _)) => assert!(fields.len() < all.len() && all.starts_with(&fields), "{length}"),
            Err(error) => assert_eq!(error, Error::Truncated, "{length}"),
        }
    }
}

#[test]
fn rfc_7541_section_2_3_3_an_index_outside_of_both_tables_is_an_error() {
    assert_eq!(error(&[0x80]), Error::Index);
    assert_eq!(error(&[0xbe]), Error::Index);
    assert_eq!(error(&[0x7e, 1, b'v']), Error::Index);
    assert_eq!(error(&[0xff, 0xff, 0xff, 0xff, 0x7f]), Error::Index);
}

#[test]
fn rfc_7541_section_5_1_huge_integers_are_errors() {
    assert_eq!(error(&[0xff, 0x80, 0x80, 0x80, 0x80, 0x00]), Error::Integer);
    assert_eq!(error(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), Error::Integer);
    assert_eq!(error(&[0x00, 0x7f, 0xff, 0xff, 0xff, 0x7f, 0]), Error::Truncated, "a string longer than the block");
}

#[test]
fn rfc_7541_section_5_2_bad_padding_and_eos_are_errors() {
    for (string, good) in [
        (&[0x07_u8][..], true),
        (&[0x00], false),
        (&[0x07, 0xff], false),
        (&[0x06], false),
        (&[0xff], false),
        (&[0xff, 0xff, 0xff, 0xff], false),
        (&[0xff, 0xff, 0xff, 0xfc, 0x07], false),
        (&[], true),
    ] {
        let block = [&[0x00, 1, b'a', 0x80 | string.len() as u8], string].concat();
        let outcome = decode(&mut Decoder::new(4096), &block);
        assert_eq!(outcome.is_ok(), good, "{string:x?}: {outcome:?}");
        assert!(good || outcome == Err(Error::Huffman));
    }
}

#[test]
fn rfc_7541_section_4_2_the_table_changes_its_size_at_the_start_only_and_within_the_limit() {
    let mut decoder = Decoder::new(4096);
    assert!(decode(&mut decoder, &[0x20, 0x3f, 0xe1, 0x1f, 0x82]).is_ok(), "first 0, then 4096");
    assert_eq!(error(&[0x82, 0x20]), Error::TableSize);
    assert_eq!(error(&[0x3f, 0xe2, 0x1f]), Error::TableSize, "4097");
}

#[test]
fn rfc_9113_section_4_3_1_a_reduced_table_is_reduced_by_the_next_block() {
    let mut decoder = Decoder::new(100);
    let field = indexed(b"a", &[b'v'; 100]);
    assert!(decode(&mut decoder, &field).is_ok(), "the peer does not know yet");
    assert!(decode(&mut decoder, &[0xbe]).is_ok());
    decoder.acknowledged();
    assert_eq!(decode(&mut decoder, &[0xbe]).unwrap_err(), Error::MissingTableSize);
    decode(&mut decoder, &[0x3f, 69]).unwrap();
    assert_eq!(decode(&mut decoder, &[0xbe]).unwrap_err(), Error::Index);
}

#[test]
fn a_bomb_of_references_is_cut_at_the_bound_and_the_table_stays_in_step() {
    let mut decoder = Decoder::new(4096);
    decode(&mut decoder, &[&[0x40, 1, b'a', 0x7f, 0xd1, 0x1e][..], &[b'v'; 4048]].concat()).unwrap();
    let mut block = vec![0xbe; 50_000];
    // Beyond the bound: a field for the table, and one that is only passed over.
    block.extend(indexed(b"kept", b"1"));
    block.extend_from_slice(&[0x00, 1, b'B', 1, b'\0']);
    let mut count = 0;
    let decoded = decoder.decode(&block, 16 * 1024, &mut |_| count += 1).unwrap();
    assert!(decoded.too_large && !decoded.malformed);
    assert_eq!(count, 4);
    assert!(decoded.size > 50_000 * 4000);
    assert_eq!(shown(&decode(&mut decoder, &[0xbe]).unwrap().0[0]), "kept: 1");
}

#[test]
fn rfc_9113_section_8_2_1_malformed_fields_keep_their_place_and_stay_malformed() {
    let mut names: Vec<&[u8]> = vec![b"", b"Upper", b"a b", b"a:b", b":unknown", b":Path", b"n\x80", b"\"", b"a\0"];
    let long = [b'n'; 100].map(|c: u8| c.to_ascii_uppercase());
    names.push(&long);
    let good: &[u8] = b"v";
    let values: [(&[u8], &[u8]); 24] = [
        (b"x", b" v"),
        (b"x", b"v\t"),
        (b"x", b" "),
        (b"x", b"a\rb"),
        (b"x", b"a\nb"),
        (b"x", b"a\0b"),
        (b"x", b"\x7f"),
        (b":method", b""),
        (b":method", b"G T"),
        (b":scheme", b""),
        (b":scheme", b"1http"),
        (b":scheme", b"ht tp"),
        (b":authority", b""),
        (b":authority", b"user@host"),
        (b":authority", b"ho st"),
        (b":path", b""),
        (b":path", b"a"),
        (b":path", b"?a"),
        (b":path", b"/a#b"),
        (b":path", b"/a b"),
        (b":protocol", b""),
        (b":status", b"20"),
        (b":status", b"099"),
        (b":status", b"2000"),
    ];
    for (name, value) in names.into_iter().map(|name| (name, good)).chain(values) {
        let mut decoder = Decoder::new(4096);
        let case = format!("{:?}: {:?}", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        let block = [indexed(b"before", b"1"), indexed(name, value), indexed(b"after", b"2")].concat();
        let (fields, decoded) = decode(&mut decoder, &block).unwrap();
        assert!(decoded.malformed, "{case}");
        assert_eq!(fields.iter().map(shown).collect::<Vec<_>>(), ["before: 1", "after: 2"], "{case}");
        assert_eq!(decoder.table().entries[1].size as usize, name.len() + value.len() + 32, "{case}");
        let (fields, decoded) = decode(&mut decoder, &[0xbf]).unwrap();
        assert!(decoded.malformed && fields.is_empty(), "{case}");
        let (fields, decoded) = decode(&mut decoder, &[0xc0, 0xbe]).unwrap();
        assert!(!decoded.malformed, "{case}");
        assert_eq!(fields.iter().map(shown).collect::<Vec<_>>(), ["before: 1", "after: 2"], "{case}");
        // Its name with another value is as good as the name.
        let (fields, decoded) = decode(&mut decoder, &[0x0f, 0x30, 3, b'2', b'0', b'0']).unwrap();
        assert_eq!(decoded.malformed, fields.is_empty());
        assert_eq!(decoded.size, name.len() + 3 + 32);
        if name == b"x" || name == b":status" {
            assert_eq!(fields.len(), 1, "{case}");
        } else if value == good {
            assert!(decoded.malformed, "{case}");
        }
    }
    assert!(decode(&mut Decoder::new(4096), &[0x81]).unwrap().1.malformed, "an empty authority by its index");
}

#[test]
fn good_values_are_not_refused() {
    for (name, value) in [
        (&b"x"[..], &b""[..]),
        (b"x", b"a\tb c"),
        (b"x", b"\xc3\xa4\xff"),
        (b":path", b"*"),
        (b":path", b"/?a=b&c"),
        (b":authority", b"[::1]:80"),
        (b":protocol", b"websocket"),
        (b":status", b"999"),
        (b":method", b"A-VERY-LONG-METHOD-INDEED"),
    ] {
        let block = indexed(name, value);
        let (fields, decoded) = decode(&mut Decoder::new(4096), &block).unwrap();
        assert!(fields.len() == 1 && !decoded.malformed, "{value:?}");
        let huffman = [&[0x40, name.len() as u8], name, &[0x80 | coded(value).len() as u8], &coded(value)].concat();
        assert_eq!(decode(&mut Decoder::new(4096), &huffman).unwrap().0, fields);
    }
}

#[test]
fn rfc_7541_section_6_2_3_a_literal_never_to_be_indexed_is_sensitive() {
    let mut decoder = Decoder::new(4096);
    let block = [&[0x10, 1, b'a', 1, b'v'][..], &[0x00, 1, b'a', 1, b'v'], &indexed(b"a", b"v")].concat();
    let (fields, _) = decode(&mut decoder, &block).unwrap();
    let sensitive: Vec<bool> =
        fields.iter().map(|field| matches!(field, Field::Header(_, value) if value.is_sensitive())).collect();
    assert_eq!(sensitive, [true, false, false]);
    assert_eq!(decoder.table().entries.len(), 1);
}

#[test]
fn rfc_7541_section_4_4_an_entry_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new(4096);
    decode(&mut decoder, &[0x3f, 0x21]).unwrap();
    decode(&mut decoder, &indexed(b"a", b"v")).unwrap();
    let (fields, _) = decode(&mut decoder, &[&[0x7e, 100][..], &[b'v'; 100]].concat()).unwrap();
    assert_eq!(shown(&fields[0]), format!("a: {}", "v".repeat(100)), "though its name was evicted by it");
    assert!(decoder.table().entries.is_empty() && decoder.table().size == 0);
}
