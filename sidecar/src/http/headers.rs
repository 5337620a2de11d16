//! The one place where headers are rewritten: what belongs to one hop, what only the mesh may say, who is calling.

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE},
    uri::{Authority, PathAndQuery, Scheme, Uri},
};
use smallvec::SmallVec;

/// Why a sidecar answered itself.
pub const ERROR: HeaderName = HeaderName::from_static("outrigger-error");
/// The protocol that the application spoke: `1` for HTTP/1.x, absent for HTTP/2. Between sidecars only.
pub const ORIGINAL_PROTOCOL: HeaderName = HeaderName::from_static("outrigger-orig-proto");
/// The protocol that a request asks its connection to become. Between sidecars only.
pub const MESH_UPGRADE: HeaderName = HeaderName::from_static("outrigger-upgrade");
/// The verified caller, in Envoy's format.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const MESH_PREFIX: &str = "outrigger-";
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const UPGRADE_TOKEN: HeaderValue = HeaderValue::from_static("upgrade");

/// Removes the headers that belong to one connection (RFC 9110 section 7.6.1) and gives back the protocol of an
/// upgrade that was asked for.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, version: Version) -> Option<HeaderValue> {
    // A look at the names costs less than one search for a name that is not there, and most messages have none.
    if !headers.keys().any(is_hop_by_hop) {
        return None;
    }
    let mut upgrade = None;
    if version < Version::HTTP_2 && headers.contains_key(CONNECTION) {
        let mut named: SmallVec<[HeaderName; 4]> = SmallVec::new();
        let mut wants_upgrade = false;
        for value in headers.get_all(CONNECTION) {
            for token in value.as_bytes().split(|b| *b == b',') {
                let token = token.trim_ascii();
                if token.eq_ignore_ascii_case(b"upgrade") {
                    wants_upgrade = true;
                } else if let Ok(name) = HeaderName::from_bytes(token) {
                    // A caller may not have the headers removed that say who it is or what it wants.
                    if name != HOST && name != TE && !name.as_str().starts_with(MESH_PREFIX) {
                        named.push(name);
                    }
                }
            }
        }
        headers.remove(CONNECTION);
        for name in named {
            headers.remove(name);
        }
        if wants_upgrade {
            upgrade = headers.remove(UPGRADE);
        }
    }
    headers.remove(UPGRADE);
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    if let Some(te) = headers.get(TE) {
        // RFC 9113 section 8.2.2: "trailers" is the one value that may go on, and gRPC needs it to.
        let trailers = te.as_bytes().split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"trailers"));
        if trailers {
            headers.insert(TE, TRAILERS);
        } else {
            headers.remove(TE);
        }
    }
    upgrade
}

/// Whether [`strip_hop_by_hop`] has something to do with a header of this name.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION].contains(name)
}

/// Removes every header that only a sidecar may set.
pub fn strip_mesh(headers: &mut HeaderMap) {
    if headers.keys().any(|name| name.as_str().starts_with(MESH_PREFIX)) {
        let forged: SmallVec<[HeaderName; 4]> =
            headers.keys().filter(|name| name.as_str().starts_with(MESH_PREFIX)).cloned().collect();
        for name in forged {
            headers.remove(name);
        }
    }
}

/// Removes what an application would take for one of the mesh's own headers: CGI and its kin read `_` and `-` as one
/// (RFC 3875 section 4.1.18).
pub fn strip_lookalikes(headers: &mut HeaderMap) {
    let alike = |name: &HeaderName| {
        name.as_str().contains('_') && {
            let name = name.as_str().replace('_', "-");
            name.starts_with(MESH_PREFIX) || name == CLIENT_CERT.as_str()
        }
    };
    if headers.keys().any(alike) {
        let forged: SmallVec<[HeaderName; 4]> = headers.keys().filter(|name| alike(name)).cloned().collect();
        for name in forged {
            headers.remove(name);
        }
    }
}

/// Whether only the mesh may say a header of this name, or it belongs to one connection: none of them can be a trailer.
pub fn is_meshs_own(name: &HeaderName) -> bool {
    let alike = |name: &str| name.starts_with(MESH_PREFIX) || name == CLIENT_CERT.as_str();
    alike(name.as_str())
        || is_hop_by_hop(name)
        || *name == http::header::PROXY_AUTHORIZATION
        || (name.as_str().contains('_') && alike(&name.as_str().replace('_', "-")))
}

/// Whether one of the protocols of an `Upgrade` header is HTTP itself.
pub fn is_http(upgrade: &HeaderValue) -> bool {
    upgrade.as_bytes().split(|b| *b == b',').any(|protocol| {
        let name = protocol.trim_ascii().split(|b| *b == b'/').next().unwrap_or_default();
        name.eq_ignore_ascii_case(b"h2c") || name.eq_ignore_ascii_case(b"h2") || name.eq_ignore_ascii_case(b"http")
    })
}

/// Whether a request's Connection header asks for an upgrade.
pub fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get_all(CONNECTION)
        .iter()
        .any(|v| v.as_bytes().split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"upgrade")))
}

/// Makes a request one that asks its HTTP/1.1 connection to become `protocol`.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, UPGRADE_TOKEN);
    headers.insert(UPGRADE, protocol);
}

/// What a target or Host that cannot be forwarded is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither the target nor a Host header names a host.
    #[error("the request names no host: it has no Host header (RFC 9112 section 3.2)")]
    NoHost,
    /// More than one Host header.
    #[error("the request has more than one Host header (RFC 9112 section 3.2)")]
    ManyHosts,
    /// Not a host and port.
    #[error("the request's Host is not a host and port (RFC 9110 section 7.2)")]
    BadHost,
    /// The target has no path.
    #[error("the request's target has no path (RFC 9112 section 3.2)")]
    BadTarget,
}

/// The authority that a request is for: that of an absolute target or `:authority`, else the Host header.
pub fn authority(uri: &Uri, headers: &HeaderMap) -> Result<Authority, TargetError> {
    if let Some(authority) = uri.authority() {
        return Ok(authority.clone());
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().ok_or(TargetError::NoHost)?;
    if hosts.next().is_some() {
        return Err(TargetError::ManyHosts);
    }
    Authority::try_from(host.as_bytes()).map_err(|_| TargetError::BadHost)
}

/// The target of a request on an HTTP/2 connection: `:scheme`, `:authority` and `:path` (RFC 9113 section 8.3.1).
pub fn absolute_target(uri: &Uri, authority: Authority) -> Result<Uri, TargetError> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    parts.path_and_query = Some(path_of(uri)?);
    Uri::from_parts(parts).map_err(|_| TargetError::BadTarget)
}

/// The target of a request on an HTTP/1.1 connection to an origin (RFC 9112 section 3.2.1).
pub fn origin_target(uri: &Uri) -> Result<Uri, TargetError> {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path_of(uri)?);
    Uri::from_parts(parts).map_err(|_| TargetError::BadTarget)
}

fn path_of(uri: &Uri) -> Result<PathAndQuery, TargetError> {
    match uri.path_and_query() {
        Some(path) => Ok(path.clone()),
        // An absolute target without a path means "/" (RFC 9110 section 4.2.3).
        None if uri.authority().is_some() => Ok(PathAndQuery::from_static("/")),
        None => Err(TargetError::BadTarget),
    }
}

/// Makes a request one for `authority`, however it says whom it is for.
pub fn replace_authority<B>(request: &mut http::Request<B>, authority: &Authority) -> Result<(), TargetError> {
    if request.uri().authority().is_some() {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.authority = Some(authority.clone());
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| TargetError::BadHost)?;
    }
    if request.headers().contains_key(HOST) || request.uri().authority().is_none() {
        set_host(request.headers_mut(), authority)?;
    }
    Ok(())
}

/// Sets Host from an authority, as HTTP/1.1 wants it.
pub fn set_host(headers: &mut HeaderMap, authority: &Authority) -> Result<(), TargetError> {
    let value = HeaderValue::from_str(authority.as_str()).map_err(|_| TargetError::BadHost)?;
    headers.insert(HOST, value);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn what_belongs_to_one_connection_stays_there() {
        let mut h = map(&[
            ("connection", "close, x-secret, host, outrigger-orig-proto"),
            ("keep-alive", "timeout=5"),
            ("x-secret", "1"),
            ("host", "a"),
            ("te", "gzip, Trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ]);
        assert_eq!(strip_hop_by_hop(&mut h, Version::HTTP_11), None);
        let mut left: Vec<_> = h.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(left, ["accept: */*", "host: a", "te: trailers"]);
    }

    #[test]
    fn an_upgrade_is_asked_for_by_both_headers() {
        let mut h = map(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(strip_hop_by_hop(&mut h, Version::HTTP_11).unwrap(), "websocket");
        let mut h = map(&[("upgrade", "websocket")]);
        assert_eq!(strip_hop_by_hop(&mut h, Version::HTTP_11), None);
        assert!(h.is_empty());
    }

    #[test]
    fn only_a_sidecar_says_what_only_a_sidecar_may_say() {
        let mut h = map(&[("outrigger-error", "forged"), ("outrigger-x", "y"), ("x-outrigger", "kept")]);
        strip_mesh(&mut h);
        assert_eq!(h, map(&[("x-outrigger", "kept")]));
    }

    #[test]
    fn nobody_says_it_in_another_spelling() {
        let mut h = map(&[("x_forwarded_client-cert", "forged"), ("outrigger_upgrade", "x"), ("x_other", "kept")]);
        strip_lookalikes(&mut h);
        assert_eq!(h, map(&[("x_other", "kept")]));
    }

    #[test]
    fn http_is_told_from_other_protocols_wherever_it_is_named() {
        for (upgrade, http) in
            [("websocket", false), ("h2c", true), ("x, H2C", true), ("HTTP/2.0", true), ("h2x", false)]
        {
            assert_eq!(is_http(&HeaderValue::from_static(upgrade)), http, "{upgrade}");
        }
    }

    #[test]
    fn the_target_wins_over_the_host_header_and_two_hosts_are_refused() {
        let uri: Uri = "http://a.mesh:8080/x?y".parse().unwrap();
        assert_eq!(authority(&uri, &map(&[("host", "b")])).unwrap(), "a.mesh:8080");
        let uri: Uri = "/x".parse().unwrap();
        assert_eq!(authority(&uri, &map(&[("host", "b")])).unwrap(), "b");
        assert_eq!(authority(&uri, &HeaderMap::new()), Err(TargetError::NoHost));
        let mut two = map(&[("host", "b")]);
        two.append(HOST, HeaderValue::from_static("c"));
        assert_eq!(authority(&uri, &two), Err(TargetError::ManyHosts));
    }
}
