//! What a request must be beside its path: method, headers, query parameters.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, Method};
use smallvec::SmallVec;

use super::pattern::{Text, whole};
use crate::{
    config::{MethodMatch, NamedMatch, RouteMatch, ValueMatchType},
    http::reply::is_grpc,
};

/// What a request is matched by.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its canonical path.
    pub path: &'a str,
    /// Its query, without `?`; empty where there is none.
    pub query: &'a str,
    /// Its method.
    pub method: &'a Method,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// All conditions of one match but its path.
#[derive(Debug)]
pub(super) struct Conditions {
    pub(super) method: Option<Method>,
    pub(super) grpc: bool,
    pub(super) headers: Box<[(HeaderName, Text)]>,
    pub(super) params: Box<[(Box<str>, Text)]>,
}

impl Conditions {
    /// Compiles those of `from`.
    pub(super) fn compile(from: &RouteMatch) -> Result<Self, String> {
        let (method, grpc) = match &from.method {
            Some(MethodMatch::Http(method)) => (Some(method.clone()), false),
            Some(MethodMatch::Grpc(_)) => (None, true),
            None => (None, false),
        };
        // Gateway API: of several conditions on one name the first counts.
        let headers = first_of_each(&from.headers, |name| name.0.clone())?;
        let params = first_of_each(&from.query_params, |name| Box::from(name.as_str()))?;
        Ok(Self { method, grpc, headers, params })
    }

    /// Whether the request meets them all.
    pub(super) fn met(&self, asked: Asked<'_>) -> bool {
        self.method.as_ref().is_none_or(|method| method == asked.method)
            && (!self.grpc || is_grpc(asked.headers))
            && self.headers.iter().all(|(name, text)| has_header(asked.headers, name, text))
            && self.params.iter().all(|(name, text)| has_param(asked.query, name, text))
    }

    /// What comes first: smaller is more specific.
    pub(super) fn rank(&self) -> (bool, std::cmp::Reverse<usize>, std::cmp::Reverse<usize>) {
        use std::cmp::Reverse;
        (self.method.is_none() && !self.grpc, Reverse(self.headers.len()), Reverse(self.params.len()))
    }

    /// Whether whatever meets `other` meets these as well.
    pub(super) fn cover(&self, other: &Self) -> bool {
        let same = |a: &Text, b: &Text| match (a, b) {
            (Text::Exact(a), Text::Exact(b)) => a == b,
            (Text::Regex(a), Text::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        };
        (self.method.is_none() || self.method == other.method)
            && (!self.grpc || other.grpc)
            && self.headers.iter().all(|(name, text)| other.headers.iter().any(|(n, t)| n == name && same(t, text)))
            && self.params.iter().all(|(name, text)| other.params.iter().any(|(n, t)| n == name && same(t, text)))
    }
}

fn first_of_each<N, M: PartialEq>(from: &[NamedMatch<N>], name: impl Fn(&N) -> M) -> Result<Box<[(M, Text)]>, String> {
    let mut conditions: Vec<(M, Text)> = Vec::with_capacity(from.len());
    for condition in from {
        let name = name(&condition.name);
        if conditions.iter().all(|(before, _)| *before != name) {
            let text = match condition.r#type {
                ValueMatchType::Exact => Text::Exact(condition.value.as_bytes().into()),
                ValueMatchType::RegularExpression => Text::Regex(whole(&condition.value)?),
            };
            conditions.push((name, text));
        }
    }
    Ok(conditions.into())
}

fn has_header(headers: &HeaderMap, name: &HeaderName, text: &Text) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return false };
    let Some(second) = values.next() else { return text.matches(first.as_bytes()) };
    // RFC 9110 section 5.3: several lines are one list. Joined as Envoy does, without a space.
    let mut joined: SmallVec<[u8; 256]> = SmallVec::from_slice(first.as_bytes());
    for value in std::iter::once(second).chain(values) {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    text.matches(&joined)
}

fn has_param(query: &str, name: &str, text: &Text) -> bool {
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if *decoded(key) == *name.as_bytes() {
            return text.matches(&decoded(value));
        }
    }
    false
}

/// A piece of a query as forms write it (URL standard, `application/x-www-form-urlencoded`).
fn decoded(piece: &str) -> Cow<'_, [u8]> {
    if !piece.bytes().any(|b| matches!(b, b'%' | b'+')) {
        return Cow::Borrowed(piece.as_bytes());
    }
    let mut out = Vec::with_capacity(piece.len());
    let mut rest = piece.as_bytes();
    while let [b, after @ ..] = rest {
        rest = after;
        out.push(match (b, crate::http::path::triplet(after)) {
            (b'+', _) => b' ',
            (b'%', Some(byte)) => {
                rest = after.get(2..).unwrap_or_default();
                byte
            }
            (b, _) => *b,
        });
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(value: &str) -> Text {
        Text::Exact(value.as_bytes().into())
    }

    #[test]
    fn a_query_parameter_is_compared_decoded_and_by_its_first_value() {
        assert!(has_param("a=1&b=2", "b", &exact("2")) && !has_param("a=1&b=2", "b", &exact("1")));
        assert!(has_param("a=1&a=2", "a", &exact("1")) && !has_param("a=1&a=2", "a", &exact("2")));
        assert!(has_param("q=a+b%2Bc%", "q", &exact("a b+c%")) && has_param("%61=1", "a", &exact("1")));
        assert!(has_param("flag", "flag", &exact("")) && has_param("flag=", "flag", &exact("")));
        assert!(!has_param("", "flag", &exact("x")) && !has_param("ab=1", "a", &exact("1")));
    }

    #[test]
    fn several_lines_of_a_header_are_one_list() {
        let mut headers = HeaderMap::new();
        headers.append("x-a", http::HeaderValue::from_static("1"));
        assert!(has_header(&headers, &HeaderName::from_static("x-a"), &exact("1")));
        headers.append("x-a", http::HeaderValue::from_static("2"));
        assert!(has_header(&headers, &HeaderName::from_static("x-a"), &exact("1,2")));
        assert!(!has_header(&headers, &HeaderName::from_static("x-a"), &exact("1")));
        assert!(!has_header(&headers, &HeaderName::from_static("x-b"), &exact("")));
    }
}
