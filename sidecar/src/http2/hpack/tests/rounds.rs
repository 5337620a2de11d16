//! An encoder and a decoder over a long connection.

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use http::{
    HeaderName, HeaderValue, Method, StatusCode, header,
    uri::{Authority, PathAndQuery},
};

use super::{
    super::{Decoder, Encoder, Field, Scheme},
    decode,
};

fn write(encoder: &mut Encoder, fields: &[Field]) -> BytesMut {
    let mut out = BytesMut::new();
    encoder.begin(&mut out);
    for field in fields {
        match field {
            Field::Method(method) => encoder.method(method, &mut out),
            Field::Scheme(scheme) => encoder.scheme(scheme, &mut out),
            Field::Authority(authority) => encoder.authority(authority, &mut out),
            Field::Path(path) => encoder.path(path.as_str(), &mut out),
            Field::Protocol(protocol) => encoder.protocol(std::str::from_utf8(protocol).unwrap(), &mut out),
            Field::Status(status) => encoder.status(*status, &mut out),
            Field::Header(name, value) => encoder.header(name, value, &mut out),
        }
    }
    out
}

fn header(name: &'static str, value: &str) -> Field {
    Field::Header(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
}

fn path(path: &str) -> Field {
    Field::Path(path.parse::<PathAndQuery>().unwrap())
}

/// A field of any kind; a small `variety` makes it repeat.
fn any_field(random: &mut Rng, variety: u32) -> Field {
    const NAMES: [&str; 12] = [
        "accept",
        "accept-encoding",
        "age",
        "authorization",
        "content-length",
        "content-type",
        "cookie",
        "date",
        "set-cookie",
        "user-agent",
        "x-request-id",
        "x-mesh-hop",
    ];
    let n = random.u32(..variety);
    match random.u8(..16) {
        0 => Field::Method(random.choice([Method::GET, Method::POST, Method::PUT, Method::DELETE]).unwrap()),
        1 => Field::Scheme(match n % 3 {
            0 => Scheme::Http,
            1 => Scheme::Https,
            _ => Scheme::Other(Bytes::from(format!("s{n}"))),
        }),
        2 => Field::Authority(format!("host-{n}.mesh:80").parse::<Authority>().unwrap()),
        3 | 4 => path(&if n == 0 { "/".into() } else { format!("/orders/{n}") }),
        5 => Field::Protocol(Bytes::from(format!("p{n}"))),
        6 => Field::Status(StatusCode::from_u16(100 + (n % 900) as u16).unwrap()),
        7 => {
            let name = HeaderName::try_from(format!("x-{n}")).unwrap();
            let length = [0, 1, 19, 20, 300, 3050, 5000][random.usize(..7)];
            Field::Header(name, HeaderValue::try_from("v".repeat(length)).unwrap())
        }
        _ => {
            let text = match n % 4 {
                0 => String::new(),
                1 => "gzip, deflate".into(),
                2 => format!("{n}"),
                _ => format!("a longer value that has the number {n} in it"),
            };
            let mut value = HeaderValue::try_from(text).unwrap();
            value.set_sensitive(random.u8(..8) == 0);
            Field::Header(HeaderName::from_static(random.choice(NAMES).unwrap()), value)
        }
    }
}

#[test]
fn whatever_is_written_is_read_through_evictions_and_changes_of_the_table_size() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    for variety in [3, 30, 300, 30_000] {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(16 * 1024));
        for _ in 0..5_000 {
            for _ in 0..random.u8(..40).saturating_sub(37) {
                encoder.set_max_size(random.choice([0, 33, 100, 500, 4096, 4096, 4096, 65_536]).unwrap());
            }
            let fields: Vec<Field> = (0..random.usize(..20)).map(|_| any_field(&mut random, variety)).collect();
            let block = write(&mut encoder, &fields);
            let (read, decoded) = decode(&mut decoder, &block).unwrap();
            assert_eq!(read, fields);
            assert!(!decoded.malformed);
            for (read, written) in read.iter().zip(&fields) {
                if let (Field::Header(name, read), Field::Header(_, written)) = (read, written) {
                    let guessable = read.len() < 20
                        && !read.is_empty()
                        && ["authorization", "cookie", "set-cookie"].contains(&name.as_str());
                    assert_eq!(read.is_sensitive(), written.is_sensitive() || guessable);
                }
            }
            assert_eq!(encoder.table(), decoder.table().entries.iter().map(|e| e.size as usize).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_list_that_repeats_is_one_byte_a_field() {
    let mut encoder = Encoder::new();
    let request = [
        Field::Method(Method::GET),
        Field::Scheme(Scheme::Http),
        Field::Authority(Authority::from_static("orders.mesh:8080")),
        path("/bytes/1024"),
        header("user-agent", "curl/8"),
        header("accept", "*/*"),
        header("accept-encoding", "gzip, deflate"),
        header("traceparent", "00-1"),
    ];
    assert!(write(&mut encoder, &request).len() > 50);
    assert_eq!(write(&mut encoder, &request).len(), request.len());
}

#[test]
fn kinds_of_lists_that_take_turns_are_one_byte_a_field() {
    let mut encoder = Encoder::new();
    let kinds: Vec<Vec<Field>> = (0..5)
        .map(|n| {
            let mut fields =
                vec![Field::Authority(Authority::from_static("orders.mesh:8080")), path(&format!("/kind/{n}"))];
            fields.extend(["accept", "user-agent", "x-mesh-hop"].iter().skip(n % 3).map(|name| header(name, "same")));
            fields
        })
        .collect();
    for _ in 0..2 {
        kinds.iter().for_each(|kind| drop(write(&mut encoder, kind)));
    }
    for kind in kinds.iter().chain(kinds.iter().rev()) {
        assert_eq!(write(&mut encoder, kind).len(), kind.len());
    }
}

#[test]
fn a_value_that_changes_takes_no_place_until_it_repeats() {
    let mut encoder = Encoder::new();
    for n in 0..1000 {
        write(&mut encoder, &[path(&format!("/orders/{n}")), header("x-request-id", &format!("{n:x}"))]);
    }
    assert_eq!(encoder.table().len(), 2, "the first of each, for its name");
    assert_eq!(write(&mut encoder, &[header("x-request-id", "new")]).len(), 2 + 1 + 3, "the name costs two bytes");
    for day in ["Mon", "Tue", "Wed"] {
        write(&mut encoder, &[header("date", day)]);
        write(&mut encoder, &[header("date", day)]);
        assert_eq!(write(&mut encoder, &[header("date", day)]).len(), 1);
    }
}

#[test]
fn rfc_7541_section_7_1_secrets_that_could_be_guessed_stay_out_of_the_table() {
    let mut encoder = Encoder::new();
    let mut token = HeaderValue::from_static("Bearer 0123456789012345678901234567890");
    token.set_sensitive(true);
    let secrets = [Field::Header(header::AUTHORIZATION, token), header("cookie", "pin=1234")];
    for _ in 0..3 {
        let block = write(&mut encoder, &secrets);
        assert!(encoder.table().is_empty());
        let (fields, _) = decode(&mut Decoder::new(4096), &block).unwrap();
        assert!(fields.iter().all(|field| matches!(field, Field::Header(_, value) if value.is_sensitive())));
    }
}

#[test]
fn rfc_7541_section_4_2_the_smallest_and_the_last_size_are_told() {
    let mut encoder = Encoder::new();
    encoder.set_max_size(1 << 20);
    assert_eq!(&write(&mut encoder, &[])[..], b"", "no more than the default");
    encoder.set_max_size(20);
    encoder.set_max_size(0);
    encoder.set_max_size(30);
    assert_eq!(&write(&mut encoder, &[])[..], [0x20, 0x3e]);
    assert_eq!(&write(&mut encoder, &[])[..], b"");
    encoder.set_max_size(0);
    assert_eq!(&write(&mut encoder, &[path("/a")])[..], b"\x20\x04\x02/a");
}
