//! Heads and trailers: from fields to messages and back (RFC 9113 section 8).

use bytes::BytesMut;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::CONTENT_LENGTH,
    uri::{self, Authority, PathAndQuery},
};

use super::{
    MAX_FIELDS,
    hpack::{Encoder, Field, Scheme, Take},
};
use crate::http::headers;

/// Fields as they are decoded.
#[derive(Default)]
pub(super) struct Fields {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    status: Option<StatusCode>,
    headers: HeaderMap,
    length: Option<u64>,
    regular: bool,
    malformed: bool,
    /// There are more than may be: those were left out.
    pub(super) too_many: bool,
}

impl Take for Fields {
    #[inline(always)]
    fn take(&mut self, field: Field) {
        match field {
            Field::Header(name, value) => self.header(name, value),
            // RFC 9113 section 8.3: each once, and before the others.
            _ if self.regular => self.malformed = true,
            Field::Method(method) => self.malformed |= self.method.replace(method).is_some(),
            Field::Scheme(scheme) => self.malformed |= self.scheme.replace(scheme).is_some(),
            Field::Authority(authority) => self.malformed |= self.authority.replace(authority).is_some(),
            Field::Path(path) => self.malformed |= self.path.replace(path).is_some(),
            Field::Status(status) => self.malformed |= self.status.replace(status).is_some(),
            // RFC 8441: nobody was told that it is understood here.
            Field::Protocol(_) => self.malformed = true,
        }
    }
}

impl Fields {
    pub(super) fn new() -> Self {
        Self { headers: HeaderMap::with_capacity(12), ..Self::default() }
    }

    fn header(&mut self, name: HeaderName, value: HeaderValue) {
        self.regular = true;
        match name.as_str() {
            // RFC 9113 section 8.2.2.
            "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => {
                self.malformed = true;
            }
            "te" if value != "trailers" => self.malformed = true,
            "content-length" => {
                let length = length(value.as_bytes());
                self.malformed |= length.is_none() || self.length.is_some_and(|before| Some(before) != length);
                if self.length.is_some() {
                    return;
                }
                self.length = length;
            }
            _ => {}
        }
        if self.headers.len() >= MAX_FIELDS || self.headers.try_append(name, value).is_err() {
            self.too_many = true;
        }
    }

    /// A request and its content-length; none where the fields make none.
    pub(super) fn request(self) -> Option<(Request<()>, Option<u64>)> {
        let method = self.method?;
        if self.malformed || self.status.is_some() {
            return None;
        }
        let mut parts = uri::Parts::default();
        if method == Method::CONNECT {
            // RFC 9113 section 8.5.
            if self.scheme.is_some() || self.path.is_some() {
                return None;
            }
            parts.authority = Some(self.authority?);
        } else {
            let scheme = self.scheme?;
            parts.path_and_query = Some(self.path?);
            if let Some(authority) = self.authority {
                parts.authority = Some(authority);
                parts.scheme = Some(match scheme {
                    Scheme::Http => uri::Scheme::HTTP,
                    Scheme::Https => uri::Scheme::HTTPS,
                    Scheme::Other(other) => uri::Scheme::try_from(&*other).ok()?,
                });
            }
        }
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_parts(parts).ok()?;
        *request.method_mut() = method;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        Some((request, self.length))
    }

    /// A response and its content-length; none where the fields make none.
    pub(super) fn response(self) -> Option<(Response<()>, Option<u64>)> {
        let status = self.status?;
        let request = self.method.is_some() || self.scheme.is_some() || self.authority.is_some() || self.path.is_some();
        // RFC 9113 section 8.6: it has no 101.
        if self.malformed || request || status == StatusCode::SWITCHING_PROTOCOLS {
            return None;
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.version_mut() = Version::HTTP_2;
        *response.headers_mut() = self.headers;
        Some((response, self.length))
    }

    /// Trailers; none where there is a pseudo-field among them.
    pub(super) fn trailers(self) -> Option<HeaderMap> {
        let pseudo = self.method.is_some()
            || self.scheme.is_some()
            || self.authority.is_some()
            || self.path.is_some()
            || self.status.is_some();
        (!self.malformed && !pseudo).then_some(self.headers)
    }
}

fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    value.iter().try_fold(0_u64, |n, b| n.checked_mul(10)?.checked_add(u64::from(b - b'0')))
}

pub(super) fn put_request(
    encoder: &mut Encoder,
    request: &http::request::Parts,
    length: Option<u64>,
    out: &mut BytesMut,
) {
    encoder.begin(out);
    encoder.method(&request.method, out);
    if request.method != Method::CONNECT {
        let https = request.uri.scheme() == Some(&uri::Scheme::HTTPS);
        encoder.scheme(if https { &Scheme::Https } else { &Scheme::Http }, out);
    }
    if let Some(authority) = request.uri.authority() {
        encoder.authority(authority, out);
    }
    if request.method != Method::CONNECT {
        encoder.path(request.uri.path_and_query().map_or("/", PathAndQuery::as_str), out);
    }
    put_fields(encoder, &request.headers, length, out);
}

pub(super) fn put_response(
    encoder: &mut Encoder,
    response: &http::response::Parts,
    length: Option<u64>,
    out: &mut BytesMut,
) {
    encoder.begin(out);
    encoder.status(response.status, out);
    put_fields(encoder, &response.headers, length, out);
}

/// RFC 9110 section 15.2.1: go on.
pub(super) fn put_continue(encoder: &mut Encoder, out: &mut BytesMut) {
    encoder.begin(out);
    encoder.status(StatusCode::CONTINUE, out);
}

pub(super) fn put_trailers(encoder: &mut Encoder, trailers: &HeaderMap, out: &mut BytesMut) {
    encoder.begin(out);
    for (name, value) in trailers.iter().filter(|(name, _)| !headers::is_meshs_own(name)) {
        encoder.header(name, value, out);
    }
}

/// `length` is the body's, for where the fields do not have it.
fn put_fields(encoder: &mut Encoder, headers: &HeaderMap, length: Option<u64>, out: &mut BytesMut) {
    for (name, value) in headers {
        encoder.header(name, value, out);
    }
    if let Some(length) = length
        && !headers.contains_key(CONTENT_LENGTH)
    {
        encoder.header(&CONTENT_LENGTH, &HeaderValue::from(length), out);
    }
}
