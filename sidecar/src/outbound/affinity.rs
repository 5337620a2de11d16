//! The hash of a request, by which `ring_hash` and `maglev` send the same to the same endpoint.

use std::net::IpAddr;

use http::{
    HeaderMap,
    header::{COOKIE, HeaderName},
    request::Parts,
};

use super::policy::Policy;
use crate::{balance::hash, config::HashPolicy};

/// The hash of a request to a service. `None` where its policy goes by none, or the request has nothing to go by.
pub(super) fn of_request(policy: Policy<'_>, request: &Parts) -> Option<u64> {
    let policies = &policy.service.spec.load_balancing.hash;
    if policies.is_empty() {
        return None;
    }
    combine(policies, |one| {
        if let Some(name) = &one.header {
            return of_header(&request.headers, &name.0);
        }
        if let Some(name) = &one.cookie {
            return cookie(&request.headers, name).map(hash);
        }
        if let Some(name) = &one.query {
            return parameter(request.uri.query()?, name).map(|value| hash(value.as_bytes()));
        }
        of_source(one, policy.peer.copied())
    })
}

/// The hash of a connection of which nothing but its ends is known.
pub(super) fn of_connection(policies: &[HashPolicy], peer: IpAddr) -> Option<u64> {
    combine(policies, |one| of_source(one, Some(peer)))
}

/// All that there is, in order, as Envoy combines it.
fn combine(policies: &[HashPolicy], of: impl Fn(&HashPolicy) -> Option<u64>) -> Option<u64> {
    let mut all = None;
    for policy in policies {
        let Some(one) = of(policy) else { continue };
        all = Some(all.map_or(one, |all: u64| all.rotate_left(1) ^ one));
        if policy.terminal {
            break;
        }
    }
    all
}

fn of_source(policy: &HashPolicy, peer: Option<IpAddr>) -> Option<u64> {
    match peer.filter(|_| policy.source_address)?.to_canonical() {
        IpAddr::V4(address) => Some(hash(&address.octets())),
        IpAddr::V6(address) => Some(hash(&address.octets())),
    }
}

/// Of several values each counts, in their order.
fn of_header(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let each = headers.get_all(name).iter().map(|value| hash(value.as_bytes()));
    each.reduce(|all, one| all.rotate_left(1) ^ one)
}

/// RFC 6265 section 4.2; the first of that name.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// The first of that name, as it stands in the query.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| match pair.split_once('=') {
        Some((key, value)) => (key == name).then_some(value),
        None => (pair == name).then_some(""),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn policy(yaml: &str) -> HashPolicy {
        serde_json::from_str(yaml).unwrap()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_cookie_is_found_among_others_and_nothing_is_taken_for_it() {
        let some = headers(&[("cookie", "a=1; session=x=y ;b=2"), ("cookie", "session=second")]);
        assert_eq!(cookie(&some, "session"), Some(&b"x=y"[..]));
        assert_eq!(cookie(&some, "b"), Some(&b"2"[..]));
        for name in ["sess", "ession", "c", ""] {
            assert_eq!(cookie(&some, name), None, "{name:?}");
        }
    }

    #[test]
    fn a_query_parameter_is_the_first_of_its_name() {
        assert_eq!(parameter("a=1&user=7&user=8", "user"), Some("7"));
        assert_eq!(parameter("user", "user"), Some(""));
        assert_eq!(parameter("a=user", "user"), None);
        assert_eq!(parameter("", "user"), None);
    }

    #[test]
    fn what_is_there_counts_in_order_up_to_what_is_terminal() {
        let [user, cookie, source] =
            [r#"{"header":"x-user","terminal":true}"#, r#"{"cookie":"s"}"#, r#"{"source_address":true}"#].map(policy);
        let peer: IpAddr = "10.0.0.7".parse().unwrap();
        let all = [user, cookie, source];
        let of = |headers: &HeaderMap| {
            combine(&all, |one| match (&one.header, &one.cookie) {
                (Some(name), _) => of_header(headers, &name.0),
                (_, Some(name)) => super::cookie(headers, name).map(hash),
                _ => of_source(one, Some(peer)),
            })
        };
        let (one, two) =
            (headers(&[("x-user", "1"), ("cookie", "s=1")]), headers(&[("x-user", "1"), ("cookie", "s=2")]));
        assert_eq!(of(&one), of(&two), "the header is terminal");
        let (three, four) = (headers(&[("cookie", "s=1")]), headers(&[("cookie", "s=2")]));
        assert_ne!(of(&three), of(&four));
        assert_eq!(of(&headers(&[])), of_connection(&all, peer));
        assert_eq!(of_connection(&all[..2], peer), None);
        let mapped = of_connection(&all, "::ffff:10.0.0.7".parse().unwrap());
        assert_eq!(mapped, of_connection(&all, peer), "of a listener for both families");
    }
}
