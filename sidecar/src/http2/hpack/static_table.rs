//! The static table (RFC 7541 appendix A).

use http::{HeaderName, HeaderValue, Method, StatusCode, header as h, uri::PathAndQuery};

use super::{
    ENTRY_OVERHEAD, Field, Pseudo, Scheme,
    table::{Content, Entry, Name},
};

/// How many entries there are: the dynamic table's newest one has the index after.
pub(super) const LENGTH: usize = 61;

const fn field(field: Field, size: usize) -> Entry {
    Entry { content: Content::Field(field), size: (size + ENTRY_OVERHEAD) as u32 }
}

const fn method(method: Method, length: usize) -> Entry {
    field(Field::Method(method), 7 + length)
}

const fn path(path: &'static str) -> Entry {
    field(Field::Path(PathAndQuery::from_static(path)), 5 + path.len())
}

const fn status(status: StatusCode) -> Entry {
    field(Field::Status(status), 10)
}

const fn header(name: HeaderName, length: usize, value: &'static str) -> Entry {
    field(Field::Header(name, HeaderValue::from_static(value)), length + value.len())
}

/// The entries, the first of which has the index 1. An `:authority` of its own would be empty, which it must not be.
#[rustfmt::skip]
pub(super) static ENTRIES: [Entry; LENGTH] = [
    Entry { content: Content::Malformed(Name::Pseudo(Pseudo::Authority)), size: 10 + ENTRY_OVERHEAD as u32 },
    method(Method::GET, 3),
    method(Method::POST, 4),
    path("/"),
    path("/index.html"),
    field(Field::Scheme(Scheme::Http), 7 + 4),
    field(Field::Scheme(Scheme::Https), 7 + 5),
    status(StatusCode::OK),
    status(StatusCode::NO_CONTENT),
    status(StatusCode::PARTIAL_CONTENT),
    status(StatusCode::NOT_MODIFIED),
    status(StatusCode::BAD_REQUEST),
    status(StatusCode::NOT_FOUND),
    status(StatusCode::INTERNAL_SERVER_ERROR),
    header(h::ACCEPT_CHARSET, 14, ""),
    header(h::ACCEPT_ENCODING, 15, GZIP_DEFLATE),
    header(h::ACCEPT_LANGUAGE, 15, ""),
    header(h::ACCEPT_RANGES, 13, ""),
    header(h::ACCEPT, 6, ""),
    header(h::ACCESS_CONTROL_ALLOW_ORIGIN, 27, ""),
    header(h::AGE, 3, ""),
    header(h::ALLOW, 5, ""),
    header(h::AUTHORIZATION, 13, ""),
    header(h::CACHE_CONTROL, 13, ""),
    header(h::CONTENT_DISPOSITION, 19, ""),
    header(h::CONTENT_ENCODING, 16, ""),
    header(h::CONTENT_LANGUAGE, 16, ""),
    header(h::CONTENT_LENGTH, 14, ""),
    header(h::CONTENT_LOCATION, 16, ""),
    header(h::CONTENT_RANGE, 13, ""),
    header(h::CONTENT_TYPE, 12, ""),
    header(h::COOKIE, 6, ""),
    header(h::DATE, 4, ""),
    header(h::ETAG, 4, ""),
    header(h::EXPECT, 6, ""),
    header(h::EXPIRES, 7, ""),
    header(h::FROM, 4, ""),
    header(h::HOST, 4, ""),
    header(h::IF_MATCH, 8, ""),
    header(h::IF_MODIFIED_SINCE, 17, ""),
    header(h::IF_NONE_MATCH, 13, ""),
    header(h::IF_RANGE, 8, ""),
    header(h::IF_UNMODIFIED_SINCE, 19, ""),
    header(h::LAST_MODIFIED, 13, ""),
    header(h::LINK, 4, ""),
    header(h::LOCATION, 8, ""),
    header(h::MAX_FORWARDS, 12, ""),
    header(h::PROXY_AUTHENTICATE, 18, ""),
    header(h::PROXY_AUTHORIZATION, 19, ""),
    header(h::RANGE, 5, ""),
    header(h::REFERER, 7, ""),
    header(h::REFRESH, 7, ""),
    header(h::RETRY_AFTER, 11, ""),
    header(h::SERVER, 6, ""),
    header(h::SET_COOKIE, 10, ""),
    header(h::STRICT_TRANSPORT_SECURITY, 25, ""),
    header(h::TRANSFER_ENCODING, 17, ""),
    header(h::USER_AGENT, 10, ""),
    header(h::VARY, 4, ""),
    header(h::VIA, 3, ""),
    header(h::WWW_AUTHENTICATE, 16, ""),
];

/// The only value of a header in the table.
const GZIP_DEFLATE: &str = "gzip, deflate";

/// The index of the entry that is a header with this very value.
pub(super) fn header_index(name: &HeaderName, value: &[u8]) -> Option<usize> {
    let index = name_index(name)?;
    let expected = if *name == h::ACCEPT_ENCODING { GZIP_DEFLATE } else { "" };
    (value == expected.as_bytes()).then_some(index)
}

/// The first entry with a pseudo-field's name; `:protocol` has none.
pub(super) const fn pseudo_index(name: Pseudo) -> Option<usize> {
    match name {
        Pseudo::Authority => Some(1),
        Pseudo::Method => Some(2),
        Pseudo::Path => Some(4),
        Pseudo::Scheme => Some(6),
        Pseudo::Status => Some(8),
        Pseudo::Protocol => None,
    }
}

/// The entry with a header's name.
pub(super) fn name_index(name: &HeaderName) -> Option<usize> {
    Some(match *name {
        h::ACCEPT_CHARSET => 15,
        h::ACCEPT_ENCODING => 16,
        h::ACCEPT_LANGUAGE => 17,
        h::ACCEPT_RANGES => 18,
        h::ACCEPT => 19,
        h::ACCESS_CONTROL_ALLOW_ORIGIN => 20,
        h::AGE => 21,
        h::ALLOW => 22,
        h::AUTHORIZATION => 23,
        h::CACHE_CONTROL => 24,
        h::CONTENT_DISPOSITION => 25,
        h::CONTENT_ENCODING => 26,
        h::CONTENT_LANGUAGE => 27,
        h::CONTENT_LENGTH => 28,
        h::CONTENT_LOCATION => 29,
        h::CONTENT_RANGE => 30,
        h::CONTENT_TYPE => 31,
        h::COOKIE => 32,
        h::DATE => 33,
        h::ETAG => 34,
        h::EXPECT => 35,
        h::EXPIRES => 36,
        h::FROM => 37,
        h::HOST => 38,
        h::IF_MATCH => 39,
        h::IF_MODIFIED_SINCE => 40,
        h::IF_NONE_MATCH => 41,
        h::IF_RANGE => 42,
        h::IF_UNMODIFIED_SINCE => 43,
        h::LAST_MODIFIED => 44,
        h::LINK => 45,
        h::LOCATION => 46,
        h::MAX_FORWARDS => 47,
        h::PROXY_AUTHENTICATE => 48,
        h::PROXY_AUTHORIZATION => 49,
        h::RANGE => 50,
        h::REFERER => 51,
        h::REFRESH => 52,
        h::RETRY_AFTER => 53,
        h::SERVER => 54,
        h::SET_COOKIE => 55,
        h::STRICT_TRANSPORT_SECURITY => 56,
        h::TRANSFER_ENCODING => 57,
        h::USER_AGENT => 58,
        h::VARY => 59,
        h::VIA => 60,
        h::WWW_AUTHENTICATE => 61,
        _ => return None,
    })
}
