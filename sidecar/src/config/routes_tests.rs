//! Each wrong route names its place, what is wrong, and what to write instead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;

use crate::config::{Config, load};

fn load_text(text: &str) -> Result<Config, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let shown = file.path().display().to_string();
    load(Some(file.path()), std::iter::empty()).map_err(|e| e.to_string().replace(&shown, "FILE"))
}

/// A route of `o.mesh` whose one rule is this must be refused in line 5, with all of `words` in the message, the last in
/// the remedy.
#[track_caller]
fn refused(rule: &str, words: &[&str]) {
    let text = format!("routes:\n- name: r\n  hostnames: [o.mesh]\n  rules:\n  - {rule}\n");
    refused_at(&text, 5, words);
}

#[track_caller]
fn refused_at(text: &str, line: u32, words: &[&str]) {
    let error = load_text(text).expect_err("this route must be refused");
    assert!(error.starts_with(&format!("FILE:{line}:")), "the line should be {line}:\n{error}");
    for word in words {
        assert!(error.contains(word), "\"{word}\" is missing:\n{error}");
    }
    let remedy = error.split("=> ").nth(1).unwrap();
    assert!(remedy.contains(words.last().unwrap()), "the remedy should say \"{}\":\n{error}", words.last().unwrap());
}

#[test]
fn wrong_matches_are_refused() {
    for (rule, words) in [
        ("{ matches: [{ path: { value: orders } }] }", &["path.value", "does not begin with", "absolute path"][..]),
        ("{ matches: [{ path: { value: \"/a?b\" } }] }", &["no part of a path", "absolute path"]),
        ("{ matches: [{ path: { type: Prefix, value: /a } }] }", &["unknown value \"Prefix\"", "PathPrefix"]),
        ("{ matches: [{ path: { type: RegularExpression, value: \"/a(\" } }] }", &["unclosed group", "RE2"]),
        ("{ matches: [{ path: { type: RegularExpression, value: \"(a{900}){900}\" } }] }", &["too large", "RE2"]),
        ("{ matches: [{ method: get }] }", &["\"get\" is not a method", "correct"]),
        ("{ matches: [{ method: {} }] }", &["nothing is given to match", "service, method or both"]),
        ("{ matches: [{ method: { service: a/b } }] }", &["name of a service of gRPC", ".proto"]),
        ("{ matches: [{ method: { service: a }, path: { value: /a } }] }", &["are its path", "leave out path"]),
        ("{ matches: [{ method: { srvice: a } }] }", &["unknown field \"srvice\"", "service"]),
        ("{ matches: [{ headers: [{ name: \"a b\", value: x }] }] }", &["not the name of a header", "correct"]),
        ("{ matches: [{ headers: [{ name: Host, value: x }] }] }", &["HTTP/2 has none", "hostnames"]),
        (
            "{ matches: [{ headers: [{ name: a, value: \"[\", type: RegularExpression }] }] }",
            &["regular expression", "RE2"],
        ),
        ("{ matches: [{ queryParams: [{ name: \"\", value: x }] }] }", &["1 to 256 bytes", "before the"]),
        ("{ matchs: [] }", &["unknown field \"matchs\"", "matches"]),
    ] {
        refused(rule, words);
    }
}

#[test]
fn wrong_filters_are_refused() {
    let header = |name: &str| {
        format!(
            "{{ filters: [{{ type: RequestHeaderModifier, requestHeaderModifier: {{ set: [{{ name: {name}, value: x }}] }} }}] }}"
        )
    };
    for name in [
        "connection",
        "Transfer-Encoding",
        "te",
        "upgrade",
        "keep-alive",
        "outrigger-error",
        "x-forwarded-client-cert",
        "outrigger_upgrade",
        "content-length",
    ] {
        refused(&header(name), &["cannot be changed", "leave it out"]);
    }
    refused(&header("host"), &["URLRewrite", "leave it out"]);
    refused(
        "{ filters: [{ type: ResponseHeaderModifier, responseHeaderModifier: { remove: [connection] } }] }",
        &["remove[0]", "cannot be changed", "leave it out"],
    );
    let value = "{ filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: a, value: \"x\\ny: z\" }] } }] }";
    refused(value, &["printable ASCII", "correct"]);
    for (rule, words) in [
        (
            "{ filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePath, replaceFullPath: /b } } }] }",
            &["ReplacePath", "ReplaceFullPath"][..],
        ),
        (
            "{ filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: b } } }] }",
            &["does not begin with", "absolute path"],
        ),
        (
            "{ filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplaceFullPath, replacePrefixMatch: /b } } }] }",
            &["replacePrefixMatch", "replaceFullPath"],
        ),
        ("{ filters: [{ type: CORS }] }", &["cors is missing", "add \"cors"]),
        ("{ filters: [{ type: Rewrite }] }", &["unknown value \"Rewrite\"", "URLRewrite"]),
        (
            "{ filters: [{ type: CORS, cors: { allowOrigins: [\"*\"] }, urlRewrite: { hostname: a } }] }",
            &["urlRewrite", "has no effect", "correct the type"],
        ),
        ("{ filters: [{ type: CORS, cors: { allowOrigins: [shop.example] } }] }", &["is not an origin", "correct"]),
        ("{ filters: [{ type: CORS, cors: { allowOrigins: [] } }] }", &["allowOrigins", "at least 1"]),
        (
            "{ filters: [{ type: CORS, cors: { allowOrigins: [\"*\"], allowMethods: [\"GET, PUT\"] } }] }",
            &["neither a name", "without commas"],
        ),
        (
            "{ filters: [{ type: RequestRedirect, requestRedirect: { statusCode: 200 } }] }",
            &["200 does not redirect", "301, 302, 303, 307 or 308"],
        ),
        (
            "{ matches: [{ path: { type: Exact, value: /a } }], filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /b } } }] }",
            &["no prefix to replace", "ReplaceFullPath"],
        ),
        (
            "{ filters: [{ type: URLRewrite, urlRewrite: { hostname: a } }, { type: URLRewrite, urlRewrite: { hostname: b } }] }",
            &["is of this type", "put both into one"],
        ),
        (
            "{ filters: [{ type: RequestRedirect, requestRedirect: {} }], backendRefs: [{ name: o.mesh, port: 1 }] }",
            &["goes to no backend", "leave it out"],
        ),
        (
            "{ filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: o.mesh, port: 1 }, fraction: { numerator: 3, denominator: 2 } } }] }",
            &["3/2 is not a share", "numerator"],
        ),
        (
            "{ filters: [{ type: FaultInjection, faultInjection: {} }] }",
            &["nothing is injected", "delay, abort or both"],
        ),
        (
            "{ filters: [{ type: FaultInjection, faultInjection: { delay: { fixedDelay: 0s } } }] }",
            &["is no delay", "above zero"],
        ),
        (
            "{ filters: [{ type: FaultInjection, faultInjection: { abort: { httpStatus: 99 } } }] }",
            &["99 is not the status", "200 to 599"],
        ),
        (
            "{ filters: [{ type: FaultInjection, faultInjection: { abort: { grpcStatus: \"14\" } } }] }",
            &["is not a status of gRPC", "correct"],
        ),
    ] {
        refused(rule, words);
    }
}

#[test]
fn wrong_backends_timeouts_and_retries_are_refused() {
    for (rule, words) in [
        ("{ backendRefs: [] }", &["the list is empty", "at least 1"][..]),
        ("{ backendRefs: [{ name: other.example, port: 1 }] }", &["there is no service other.example", "mesh domain"]),
        ("{ backendRefs: [{ name: v2.mesh }] }", &["its port is not known", "give its port"]),
        ("{ backendRefs: [{ name: v2.mesh, port: 1, weight: 1000001 }] }", &["beyond the limit", "1000000"]),
        ("{ backendRefs: [{ name: v2.mesh, port: 1, weight: -1 }] }", &["weight", "whole number"]),
        ("{ timeouts: { request: 1s, backendRequest: 2s } }", &["longer than timeouts.request", "lower it"]),
        ("{ retry: { attempts: 11 } }", &["beyond the limit", "at most 10"]),
        ("{ retry: { codes: [200] } }", &["not the status of a failed", "400 to 599"]),
        ("{ retry: { grpcCodes: [OK] } }", &["not the status of a failed call", "UNAVAILABLE"]),
        ("{ retry: { backoff: 0s } }", &["at once", "above zero"]),
    ] {
        refused(rule, words);
    }
}

#[test]
fn wrong_hosts_and_names_are_refused() {
    let route = |name: &str, rest: &str| {
        format!(
            "services:\n- {{ name: db, port: 5432, protocol: opaque, endpoints: {{ static: [\"10.0.0.1:5432\"] }} }}\n\
             - {{ name: shop, hosts: [shop.example], port: 80 }}\nroutes:\n- {{ name: {name}, {rest}, rules: [{{}}] }}\n"
        )
    };
    for (text, words) in [
        (route("\"a b\"", "hostnames: [o.mesh]"), &["\"a b\" is not a name", "correct"][..]),
        (route("a", "hostnames: []"), &["the list is empty", "at least 1"]),
        (route("a", "hostnames: [other.example]"), &["no service has the host other.example", "services"]),
        (route("a", "hostnames: [\"*\"]"), &["is not a DNS name", "correct"]),
        (route("a", "hostnames: [o.mesh, O.mesh]"), &["listed twice", "once"]),
        (route("a", "hostnames: [shop.example], port: 81"), &["at port 81", "port of the service"]),
        (route("a", "hostnames: [db]"), &["is opaque", "protocol: opaque"]),
        (route("a", "hostnames: [o.mesh], port: 0"), &["0 is not a port", "1 to 65535"]),
    ] {
        refused_at(&text, 5, words);
    }
    let twice =
        "routes:\n- { name: a, hostnames: [o.mesh], rules: [{}] }\n- { name: a, hostnames: [p.mesh], rules: [{}] }\n";
    refused_at(twice, 3, &["already that of routes[0]", "a name of its own"]);
    let port = "services: [{ name: s, port: 80 }]\nroutes:\n- name: a\n  hostnames: [s]\n  rules: [{ backendRefs: [{ name: s, port: 81 }] }]\n";
    refused_at(port, 5, &["has the port 80, not 81", "leave the port out"]);
}

#[test]
fn right_routes_are_not_refused_and_what_is_doubtful_is_warned_of() {
    let text = "\
services: [{ name: shop, hosts: [shop.example], port: 80 }]
routes:
- { name: a, hostnames: [shop.example, \"*.mesh\"], rules: [{ matches: [{ path: { value: /a } }] }, { matches: [{ path: { value: /a/ } }] }] }
- { name: b, hostnames: [o.mesh], rules: [{ backendRefs: [{ name: shop, weight: 0 }] }] }
";
    let config = load_text(text).unwrap_or_else(|e| panic!("{e}"));
    let warnings = config.warnings();
    let said = |words: &[&str]| warnings.iter().filter(|w| words.iter().all(|word| w.contains(word))).count();
    assert_eq!(
        said(&["routes[0].rules[1].matches[0] can match nothing", "routes[0].rules[0].matches[0]"]),
        1,
        "{warnings:?}"
    );
    assert_eq!(said(&["routes[1].rules[0].backendRefs", "every weight is 0"]), 1, "{warnings:?}");
    assert_eq!(said(&["routes"]), 2, "{warnings:?}");
}
