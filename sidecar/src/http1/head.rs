//! Heads of messages: read strictly, written plainly (RFC 9112 sections 2 to 6).

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING},
};

use super::out::Framing;
use crate::http::headers;

/// Fields of one head.
pub(super) const MAX_FIELDS: usize = 100;
/// Bytes of one head.
pub(super) const MAX_HEAD: usize = 128 * 1024;

/// Why a head cannot be read: the answer to a request, and words for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bad(pub(super) StatusCode, pub(super) &'static str);

impl Bad {
    const HEAD: Self = Self(StatusCode::BAD_REQUEST, "the request head is not HTTP/1.1 as RFC 9112 has it");
    const TARGET: Self =
        Self(StatusCode::BAD_REQUEST, "the request's target is not one of the forms of RFC 9112 section 3.2");
    const LONG_TARGET: Self = Self(StatusCode::URI_TOO_LONG, "the request target is longer than 65,534 bytes");
    pub(super) const FIELDS: Self =
        Self(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the message head has more than 100 fields or 128 KiB");
    const LENGTH: Self =
        Self(StatusCode::BAD_REQUEST, "content-length is not one number (RFC 9112 section 6.3, RFC 9110 section 8.6)");
    const BOTH: Self = Self(
        StatusCode::BAD_REQUEST,
        "the request has both content-length and transfer-encoding (RFC 9112 section 6.1)",
    );
    const CODING: Self =
        Self(StatusCode::NOT_IMPLEMENTED, "the only transfer coding known here is \"chunked\" (RFC 9112 section 6.1)");
    const CONNECT: Self = Self(
        StatusCode::NOT_IMPLEMENTED,
        "CONNECT is not carried here: this is no forward proxy (RFC 9110 section 9.3.6)",
    );
    const VERSION: Self = Self(StatusCode::BAD_REQUEST, "HTTP/1.0 has no transfer-encoding (RFC 9112 section 6.1)");
}

/// What a head means for its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Says {
    /// The body that follows.
    pub(super) framing: Framing,
    /// Whether the connection lives on afterwards (RFC 9112 section 9.3).
    pub(super) keep_alive: bool,
    /// The client waits for leave to send its body (RFC 9110 section 10.1.1).
    pub(super) expects_continue: bool,
    /// The connection is to become something else.
    pub(super) upgrade: bool,
}

/// The fields of a head and what those that frame it say.
struct Fields {
    map: HeaderMap,
    length: Option<u64>,
    coding: Coding,
    close: bool,
    keep: bool,
    expects: bool,
    upgrade: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Coding {
    None,
    Chunked,
    Other,
}

/// Reads a request's head from the beginning of `bytes`, and says how long it is; none where there is more to come.
pub(super) fn request(bytes: &Bytes) -> Result<Option<(Request<()>, Says, usize)>, Bad> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut []);
    let len = match head.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Bad::FIELDS),
        Err(_) => return Err(Bad::HEAD),
    };
    let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
        return Err(Bad::HEAD);
    };
    if target.len() > 65_534 {
        return Err(Bad::LONG_TARGET);
    }
    let fields = read_fields(bytes, head.headers)?;
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method.as_bytes()).map_err(|_| Bad::HEAD)?;
    if *request.method() == Method::CONNECT {
        return Err(Bad::CONNECT);
    }
    *request.uri_mut() = Uri::from_maybe_shared(bytes.slice_ref(target.as_bytes())).map_err(|_| Bad::TARGET)?;
    let version = version_of(minor);
    *request.version_mut() = version;
    let framing = match (fields.coding, fields.length) {
        (Coding::None, None) => Framing::None,
        (Coding::None, Some(0)) => Framing::None,
        (Coding::None, Some(length)) => Framing::Length(length),
        (_, _) if version == Version::HTTP_10 => return Err(Bad::VERSION),
        (Coding::Chunked, None) => Framing::Chunked,
        (Coding::Other, None) => return Err(Bad::CODING),
        (_, Some(_)) => return Err(Bad::BOTH),
    };
    let says = Says {
        framing,
        keep_alive: keeps(version, &fields),
        expects_continue: fields.expects && version == Version::HTTP_11 && framing != Framing::None,
        upgrade: fields.upgrade && version == Version::HTTP_11 && framing == Framing::None,
    };
    *request.headers_mut() = fields.map;
    Ok(Some((request, says, len)))
}

/// Reads the head of a response to a request of this method.
pub(super) fn response(bytes: &Bytes, to: &Method) -> Result<Option<(Response<()>, Says, usize)>, Bad> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut []);
    let mut config = httparse::ParserConfig::default();
    // Servers that end their status line without a reason phrase and its space are many.
    config.allow_multiple_spaces_in_response_status_delimiters(true);
    let len = match config.parse_response_with_uninit_headers(&mut head, bytes, &mut fields) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Bad::FIELDS),
        Err(_) => return Err(Bad(StatusCode::BAD_GATEWAY, "its head is not HTTP/1.1 as RFC 9112 has it")),
    };
    let (Some(code), Some(minor)) = (head.code, head.version) else { return Err(Bad::HEAD) };
    let status = StatusCode::from_u16(code).map_err(|_| Bad(StatusCode::BAD_GATEWAY, "its status is no number"))?;
    let mut fields = read_fields(bytes, head.headers)?;
    let version = version_of(minor);
    let none = *to == Method::HEAD || status.is_informational() || matches!(status.as_u16(), 204 | 304);
    let framing = match (fields.coding, fields.length) {
        _ if none => Framing::None,
        (Coding::Chunked, length) => {
            if length.is_some() {
                // RFC 9112 section 6.3: the coding decides, and who sent both is not to be trusted with another.
                fields.map.remove(CONTENT_LENGTH);
                fields.close = true;
            }
            Framing::Chunked
        }
        (Coding::Other, _) => return Err(Bad(StatusCode::BAD_GATEWAY, "its transfer coding is not \"chunked\"")),
        (Coding::None, Some(0)) => Framing::None,
        (Coding::None, Some(length)) => Framing::Length(length),
        (Coding::None, None) => Framing::UntilClose,
    };
    // After CONNECT the application may take what comes for a tunnel's bytes (RFC 9112 section 6.3).
    let keep_alive = framing != Framing::UntilClose && keeps(version, &fields) && *to != Method::CONNECT;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    *response.headers_mut() = fields.map;
    Ok(Some((response, Says { framing, keep_alive, expects_continue: false, upgrade: false }, len)))
}

fn version_of(minor: u8) -> Version {
    if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 }
}

fn keeps(version: Version, fields: &Fields) -> bool {
    !fields.close && (version == Version::HTTP_11 || fields.keep)
}

fn read_fields(bytes: &Bytes, from: &[httparse::Header<'_>]) -> Result<Fields, Bad> {
    let mut fields = Fields {
        // Room for what a sidecar adds.
        map: HeaderMap::with_capacity(from.len() + 4),
        length: None,
        coding: Coding::None,
        close: false,
        keep: false,
        expects: false,
        upgrade: false,
    };
    for field in from {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Bad::HEAD)?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value)).map_err(|_| Bad::HEAD)?;
        if name == CONTENT_LENGTH {
            let length = length(field.value)?;
            if fields.length.is_some_and(|before| before != length) {
                return Err(Bad::LENGTH);
            }
            if fields.length.replace(length).is_some() {
                // Said twice alike: once is enough.
                continue;
            }
        } else if name == TRANSFER_ENCODING {
            let chunked = fields.coding == Coding::None && field.value.trim_ascii().eq_ignore_ascii_case(b"chunked");
            fields.coding = if chunked { Coding::Chunked } else { Coding::Other };
        } else if name == CONNECTION {
            for token in field.value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                fields.close |= token.eq_ignore_ascii_case(b"close");
                fields.upgrade |= token.eq_ignore_ascii_case(b"upgrade");
                fields.keep |= token.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if name == EXPECT {
            fields.expects = field.value.trim_ascii().eq_ignore_ascii_case(b"100-continue");
        }
        fields.map.try_append(name, value).map_err(|_| Bad::FIELDS)?;
    }
    Ok(fields)
}

/// RFC 9110 section 8.6: digits and nothing else.
fn length(value: &[u8]) -> Result<u64, Bad> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Bad::LENGTH);
    }
    value.iter().try_fold(0_u64, |n, b| n.checked_mul(10)?.checked_add(u64::from(b - b'0'))).ok_or(Bad::LENGTH)
}

/// Reads trailers: field lines and an empty one.
pub(super) fn trailers(lines: &[u8]) -> Result<HeaderMap, &'static str> {
    const BAD: &str = "the trailers are not fields as RFC 9112 section 5 has them";
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(lines, &mut fields) else {
        return Err(BAD);
    };
    let mut map = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BAD)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| BAD)?;
        if may_trail(&name) {
            map.try_append(name, value).map_err(|_| BAD)?;
        }
    }
    Ok(map)
}

/// RFC 9110 section 6.5.1: what frames, routes or authorizes a message cannot come after it.
pub(super) fn may_trail(name: &HeaderName) -> bool {
    !headers::is_meshs_own(name)
        && ![
            CONTENT_LENGTH,
            TRANSFER_ENCODING,
            HOST,
            TE,
            TRAILER,
            CONNECTION,
            EXPECT,
            http::header::AUTHORIZATION,
            http::header::CACHE_CONTROL,
            http::header::CONTENT_ENCODING,
            http::header::CONTENT_RANGE,
            http::header::CONTENT_TYPE,
            http::header::MAX_FORWARDS,
            http::header::SET_COOKIE,
            http::header::UPGRADE,
        ]
        .contains(name)
}

/// Writes one field line.
pub(super) fn field(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Bytes that a head of these fields takes, about.
pub(super) fn room(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>() + 128
}

/// Writes the fields of a head and its end. `exact` is the body's length where it is known; where no field says it and
/// the body may be in chunks, it is.
pub(super) fn fields(
    out: &mut BytesMut,
    headers: &HeaderMap,
    body: Carries,
    chunks: bool,
) -> Result<Framing, &'static str> {
    let mut said = None;
    let mut cookies: Option<BytesMut> = None;
    for (name, value) in headers {
        if *name == CONTENT_LENGTH {
            said = Some(length(value.as_bytes()).map_err(|_| "a content-length that is no number")?);
        } else if *name == TRANSFER_ENCODING {
            continue;
        } else if *name == http::header::COOKIE {
            // RFC 9113 section 8.2.3: HTTP/2 may take it apart, HTTP/1.1 has it in one.
            match &mut cookies {
                Some(all) => {
                    all.extend_from_slice(b"; ");
                    all.extend_from_slice(value.as_bytes());
                }
                None => cookies = Some(BytesMut::from(value.as_bytes())),
            }
            continue;
        }
        field(out, name, value);
    }
    if let Some(cookies) = cookies {
        out.extend_from_slice(b"cookie: ");
        out.extend_from_slice(&cookies);
        out.extend_from_slice(b"\r\n");
    }
    let framing = match (body, said) {
        (Carries::Nothing, _) => Framing::None,
        (Carries::Exactly(0) | Carries::Something, Some(0)) => Framing::None,
        (_, Some(length)) => Framing::Length(length),
        (Carries::Exactly(length), None) => {
            out.extend_from_slice(b"content-length: ");
            decimal(out, length);
            out.extend_from_slice(b"\r\n");
            if length == 0 { Framing::None } else { Framing::Length(length) }
        }
        (Carries::Something, None) if chunks => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            Framing::Chunked
        }
        (Carries::Something, None) => Framing::UntilClose,
    };
    out.extend_from_slice(b"\r\n");
    Ok(framing)
}

/// What is known of a body before it is sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Carries {
    /// There can be none, whatever the fields say.
    Nothing,
    /// So many bytes.
    Exactly(u64),
    /// Nobody knows how many.
    Something,
}

fn decimal(out: &mut BytesMut, mut n: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}
