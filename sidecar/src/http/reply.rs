//! The one place where a response of the sidecar's own is made: it says that the mesh spoke, why, and what to look at.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};

use super::{body::Body, headers};
use crate::reason::Reason;

/// Whether a request is a gRPC call, which expects its errors as trailers (gRPC over HTTP/2, "Responses").
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

/// A response with `reason`; `detail` says what happened and to whom.
pub fn reply(reason: Reason, detail: &str, grpc: bool) -> Response<Body> {
    let text = own_words(reason, detail);
    let mut response = if grpc { grpc_error(reason, &text) } else { plain_error(reason, text) };
    response.headers_mut().insert(headers::ERROR, HeaderValue::from_static(reason.code()));
    response
}

/// A response of these statuses, in place of those of `reason`.
pub fn reply_with(
    reason: Reason,
    status: StatusCode,
    grpc_status: &'static str,
    detail: &str,
    grpc: bool,
) -> Response<Body> {
    let mut response = reply(reason, detail, grpc);
    if grpc {
        response.headers_mut().insert("grpc-status", HeaderValue::from_static(grpc_status));
    } else {
        *response.status_mut() = status;
        if status != StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().remove(RETRY_AFTER);
        }
        // RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5: none of them has content.
        if matches!(status.as_u16(), 204 | 205 | 304) {
            response.headers_mut().remove(CONTENT_TYPE);
            *response.body_mut() = Body::Empty;
        }
    }
    response
}

/// The text of a response of our own.
pub(super) fn own_words(reason: Reason, detail: &str) -> String {
    format!("outrigger: {detail} ({}); look at: {}\n", reason.code(), reason.look_at())
}

fn plain_error(reason: Reason, text: String) -> Response<Body> {
    let mut response = Response::new(Body::Full(Bytes::from(text)));
    *response.status_mut() = reason.status();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if reason.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// A "Trailers-Only" response: 200 with the status in the one block of headers.
fn grpc_error(reason: Reason, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.headers_mut() = grpc_status(reason, text);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The trailers of a call that ended with `reason`.
pub(super) fn grpc_status(reason: Reason, text: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(reason.grpc_status()));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(text.trim_end())) {
        trailers.insert("grpc-message", message);
    }
    trailers
}

/// gRPC's percent-encoding of `grpc-message`: everything but printable ASCII without `%`.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if (0x20..=0x7e).contains(&b) && b != b'%' {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_that_the_mesh_spoke_and_why() {
        let r = reply(Reason::NoEndpoints, "no endpoint of orders.mesh", false);
        assert_eq!(r.status(), 503);
        assert_eq!(r.headers()["outrigger-error"], "no_endpoints");
        assert_eq!(r.headers()["retry-after"], "1");
        let Body::Full(text) = r.into_body() else { panic!("no text") };
        assert!(
            text.starts_with(b"outrigger: no endpoint of orders.mesh (no_endpoints); look at: GET 127"),
            "{text:?}"
        );
    }

    #[test]
    fn a_grpc_caller_gets_a_grpc_error() {
        let r = reply(Reason::RequestTimeout, "100% late", true);
        assert_eq!(r.status(), 200);
        assert_eq!(r.headers()["grpc-status"], "4");
        assert!(r.headers()["grpc-message"].to_str().unwrap().contains("100%25 late"));
    }
}
