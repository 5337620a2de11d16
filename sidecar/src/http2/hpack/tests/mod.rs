//! What the codec promises.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unused_must_use)]

mod appendix_c;
mod hostile;
mod rounds;

use super::{Decoded, Decoder, Error, Field, Scheme};

/// A list that no bound cuts.
fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<(Vec<Field>, Decoded), Error> {
    let mut fields = Vec::new();
    let decoded = decoder.decode(block, usize::MAX, &mut |field| fields.push(field))?;
    Ok((fields, decoded))
}

/// As a message shows it.
fn shown(field: &Field) -> String {
    match field {
        Field::Method(method) => format!(":method: {method}"),
        Field::Scheme(scheme) => format!(":scheme: {}", String::from_utf8_lossy(scheme.as_bytes())),
        Field::Authority(authority) => format!(":authority: {authority}"),
        Field::Path(path) => format!(":path: {path}"),
        Field::Protocol(protocol) => format!(":protocol: {}", String::from_utf8_lossy(protocol)),
        Field::Status(status) => format!(":status: {}", status.as_str()),
        Field::Header(name, value) => format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())),
    }
}

#[test]
fn a_scheme_is_written_as_it_was_read() {
    let mut decoder = Decoder::new(4096);
    for scheme in ["http", "https", "HTTP", "coap+tcp"] {
        let block = [&[0x06, scheme.len() as u8], scheme.as_bytes()].concat();
        let (fields, _) = decode(&mut decoder, &block).unwrap();
        let [Field::Scheme(read)] = &fields[..] else { panic!("{fields:?}") };
        assert_eq!(read.as_bytes(), scheme.as_bytes());
    }
    assert_eq!(Scheme::Http.as_bytes(), b"http");
}
