//! What anybody may read: the trust bundle and what was revoked, each with an entity tag.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::authority::{Authority, hex};

type Answer = Response<Full<Bytes>>;

/// One document as it goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    path: &'static str,
    content_type: &'static str,
    etag: String,
    text: Bytes,
}

impl Document {
    fn new(path: &'static str, content_type: &'static str, text: String) -> Self {
        // A strong tag: the same bytes from every replica have the same one.
        let etag = format!("\"{}\"", hex(&Sha256::digest(text.as_bytes())[..16]));
        Self { path, content_type, etag, text: text.into() }
    }
}

/// Every document, of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published(Vec<Document>);

impl Published {
    /// What `authority` says now.
    pub(crate) fn of(authority: &Authority) -> Self {
        let members = authority.members();
        Self(vec![
            Document::new("/bundle.pem", "application/x-pem-file", authority.bundle_pem().to_owned()),
            Document::new("/bundle.json", "application/json", members.bundle_json()),
            Document::new("/crl.pem", "application/x-pem-file", members.crl_pem(OffsetDateTime::now_utc())),
        ])
    }

    /// Answers a request that is not gRPC.
    pub(crate) fn answer<B>(&self, request: &Request<B>) -> Answer {
        let path = request.uri().path();
        let Some(document) = self.0.iter().find(|document| document.path == path) else {
            let paths: Vec<_> = self.0.iter().map(|document| document.path).collect();
            let known = format!(
                "nothing is here; this CA has {} and gRPC's istio.v1.auth.IstioCertificateService\n",
                paths.join(", ")
            );
            return text(StatusCode::NOT_FOUND, known);
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} can be read and nothing else\n"));
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        let unchanged = is_known(request.headers(), &document.etag);
        let length = document.text.len();
        let body = if unchanged || request.method() == Method::HEAD { Bytes::new() } else { document.text.clone() };
        let mut answer = Response::new(Full::new(body));
        *answer.status_mut() = if unchanged { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
        let headers = answer.headers_mut();
        if let Ok(etag) = HeaderValue::from_str(&document.etag) {
            headers.insert(header::ETAG, etag);
        }
        // Whoever keeps it asks again before he uses it: a root may have been revoked meanwhile.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if !unchanged {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(document.content_type));
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        answer
    }
}

/// Whether one of the tags in `If-None-Match` is this one, by weak comparison (RFC 9110 section 13.1.2).
fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// A short plain answer.
pub(super) fn text(status: StatusCode, words: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(words.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ask(method: Method, path: &str, known: &[&str]) -> Answer {
        let published = Published(vec![Document::new("/bundle.pem", "application/x-pem-file", "roots".into())]);
        let mut request = Request::builder().method(method).uri(path);
        for tag in known {
            request = request.header(header::IF_NONE_MATCH, *tag);
        }
        published.answer(&request.body(()).unwrap())
    }

    #[test]
    fn a_tag_spares_who_has_the_document_already() {
        let first = ask(Method::GET, "/bundle.pem", &[]);
        assert_eq!((first.status(), &first.headers()[header::CONTENT_LENGTH]), (StatusCode::OK, &HeaderValue::from(5)));
        let tag = first.headers()[header::ETAG].to_str().unwrap();
        let weak = format!("W/{tag}");
        let list = format!("\"other\", {tag}");
        for known in [&[tag][..], &[&weak], &[&list], &["*"], &["\"other\"", tag]] {
            let again = ask(Method::GET, "/bundle.pem", known);
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known:?}");
            assert_eq!(again.headers()[header::ETAG], tag);
        }
        for other in [&["\"other\""][..], &[tag.trim_matches('"')], &[""]] {
            assert_eq!(ask(Method::GET, "/bundle.pem", other).status(), StatusCode::OK, "{other:?}");
        }
    }

    #[test]
    fn anything_else_is_refused_in_words() {
        assert_eq!(ask(Method::HEAD, "/bundle.pem", &[]).status(), StatusCode::OK);
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let answer = ask(method, "/bundle.pem", &[]);
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(answer.headers()[header::ALLOW], "GET, HEAD");
        }
        for path in ["/", "/bundle.pem/", "//bundle.pem", "/../bundle.pem", "/ca.db", "/bundle.PEM"] {
            assert_eq!(ask(Method::GET, path, &[]).status(), StatusCode::NOT_FOUND, "{path}");
        }
    }
}
