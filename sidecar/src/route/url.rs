//! Other hosts, paths and places: `URLRewrite` and `RequestRedirect`.

use http::{
    HeaderValue, StatusCode, Uri,
    uri::{Authority, PathAndQuery},
};

use super::{rule::with_query, table::in_canonical_form};
use crate::{
    config::{PathModifier, PathNormalization, RedirectScheme, RequestRedirect, UrlRewrite},
    http::headers::TargetError,
};

/// Another path.
#[derive(Debug)]
enum NewPath {
    Full(String),
    /// In place of what matched.
    Prefix(String),
}

impl NewPath {
    fn compile(from: &PathModifier, normal: PathNormalization) -> Result<Self, String> {
        Ok(match from {
            PathModifier::ReplaceFullPath { replace_full_path } => {
                Self::Full(in_canonical_form(replace_full_path, normal)?)
            }
            PathModifier::ReplacePrefixMatch { replace_prefix_match } if replace_prefix_match.is_empty() => {
                Self::Prefix(String::new())
            }
            PathModifier::ReplacePrefixMatch { replace_prefix_match } => {
                Self::Prefix(in_canonical_form(replace_prefix_match, normal)?)
            }
        })
    }

    /// The path for one whose first `prefix` bytes matched, by the table of Gateway API's `HTTPPathModifier`.
    fn of(&self, path: &str, prefix: Option<usize>) -> String {
        match self {
            Self::Full(new) => new.clone(),
            Self::Prefix(new) => match path.get(prefix.unwrap_or(0)..).unwrap_or_default() {
                "" if new.is_empty() => "/".to_owned(),
                "" => new.clone(),
                rest => [new.trim_end_matches('/'), rest].concat(),
            },
        }
    }
}

/// Another host or path for the service that the request goes to.
#[derive(Debug)]
pub struct Rewrite {
    /// The host, as HTTP has it.
    pub authority: Option<Authority>,
    path: Option<NewPath>,
}

impl Rewrite {
    /// That of the configuration.
    pub fn compile(from: &UrlRewrite, normal: PathNormalization) -> Result<Self, String> {
        let authority =
            from.hostname.as_ref().map(|host| Authority::try_from(host.as_str()).map_err(|e| e.to_string()));
        let path = from.path.as_ref().map(|path| NewPath::compile(path, normal));
        Ok(Self { authority: authority.transpose()?, path: path.transpose()? })
    }

    /// The new path with the old query, where there is a new path; an error where the two together are too long.
    pub fn path(&self, path: &str, query: &str, prefix: Option<usize>) -> Result<Option<PathAndQuery>, TargetError> {
        let Some(new) = &self.path else { return Ok(None) };
        with_query(&new.of(path, prefix), query).map(Some).ok_or(TargetError::BadTarget)
    }
}

/// Another place that the caller is sent to.
#[derive(Debug)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    scheme: Option<RedirectScheme>,
    host: Option<String>,
    port: Option<u16>,
    path: Option<NewPath>,
}

impl Redirect {
    /// That of the configuration.
    pub fn compile(from: &RequestRedirect, normal: PathNormalization) -> Result<Self, String> {
        let number = from.status_code.unwrap_or(302);
        Ok(Self {
            status: StatusCode::from_u16(number).map_err(|_| format!("{number} is not a status"))?,
            scheme: from.scheme,
            host: from.hostname.as_ref().map(|host| host.as_str().to_owned()),
            port: from.port,
            path: from.path.as_ref().map(|path| NewPath::compile(path, normal)).transpose()?,
        })
    }

    /// The `location` for a request for `authority`. Requests come in the clear, so their scheme is `http`.
    pub fn location(
        &self,
        authority: &Authority,
        path: &str,
        query: &str,
        prefix: Option<usize>,
    ) -> Option<HeaderValue> {
        let https = self.scheme == Some(RedirectScheme::Https);
        let port = match (self.port, self.scheme) {
            (Some(port), _) => Some(port),
            (None, Some(_)) => None,
            (None, None) => authority.port_u16(),
        };
        let port = port.filter(|port| *port != if https { 443 } else { 80 });
        let mut location = String::with_capacity(path.len() + query.len() + 64);
        location.push_str(if https { "https://" } else { "http://" });
        location.push_str(self.host.as_deref().unwrap_or_else(|| authority.host()));
        if let Some(port) = port {
            location.push_str(&format!(":{port}"));
        }
        match &self.path {
            Some(new) => location.push_str(&new.of(path, prefix)),
            None => location.push_str(path),
        }
        if !query.is_empty() {
            location.push('?');
            location.push_str(query);
        }
        HeaderValue::try_from(location).ok()
    }
}

/// Gives `uri` another path and query.
pub fn replace_path(uri: &mut Uri, new: PathAndQuery) -> Result<(), TargetError> {
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(new);
    *uri = Uri::from_parts(parts).map_err(|_| TargetError::BadTarget)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Host;

    fn prefix(new: &str) -> PathModifier {
        PathModifier::ReplacePrefixMatch { replace_prefix_match: new.to_owned() }
    }

    #[test]
    fn a_prefix_is_replaced_as_gateway_api_has_it() {
        // The table of HTTPPathModifier: path, prefix that matched, replacement, result.
        for (path, matched, new, want) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/bar", "/", "/xyz", "/xyz/bar"),
        ] {
            let new_path = NewPath::compile(&prefix(new), PathNormalization::default()).unwrap();
            let length = matched.trim_end_matches('/').len();
            assert_eq!(new_path.of(path, Some(length)), want, "{path} {matched} -> {new}");
        }
    }

    #[test]
    fn a_redirect_keeps_what_it_is_not_told() {
        let to = |from: RequestRedirect, authority: &'static str| {
            let redirect = Redirect::compile(&from, PathNormalization::default()).unwrap();
            let location = redirect.location(&Authority::from_static(authority), "/a/b", "x=1", Some(2)).unwrap();
            (redirect.status.as_u16(), location.to_str().unwrap().to_owned())
        };
        let nothing = RequestRedirect::default();
        assert_eq!(to(nothing.clone(), "o.mesh:8080"), (302, "http://o.mesh:8080/a/b?x=1".to_owned()));
        let https = RequestRedirect { scheme: Some(RedirectScheme::Https), status_code: Some(301), ..nothing.clone() };
        assert_eq!(to(https.clone(), "o.mesh:8080"), (301, "https://o.mesh/a/b?x=1".to_owned()));
        let port = RequestRedirect { port: Some(8443), ..https };
        assert_eq!(to(port, "o.mesh:8080").1, "https://o.mesh:8443/a/b?x=1");
        let host = RequestRedirect {
            hostname: Some(Host::parse("p.mesh").unwrap()),
            path: Some(prefix("/z")),
            port: Some(80),
            ..nothing
        };
        assert_eq!(to(host, "o.mesh:8080").1, "http://p.mesh/z/b?x=1");
    }
}
