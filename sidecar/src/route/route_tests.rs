//! Precedence, hosts, and what can never be reached.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{io::Write as _, path::Path};

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::*;
use crate::{
    config::{Config, PathNormalization},
    http::path::{Canonical, canonical},
};

/// The routes of a YAML file that is right.
fn routes(text: &str) -> (Config, Routes) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let path: &Path = file.path();
    let config = crate::config::load(Some(path), std::iter::empty()).unwrap_or_else(|e| panic!("{e}"));
    let routes = Routes::compile(&config).unwrap();
    (config, routes)
}

/// The routes of `o.mesh`, each with one rule: route N has the matches of line N.
fn table(matches: &[&str]) -> Arc<Table> {
    let mut text = String::from("routes:\n");
    for (i, matches) in matches.iter().enumerate() {
        text.push_str(&format!("- {{ name: r{i}, hostnames: [o.mesh], rules: [{{ matches: [{matches}] }}] }}\n"));
    }
    let (_, routes) = routes(&text);
    Arc::clone(&routes.tables()[routes.find(&Host::parse("o.mesh").unwrap(), 8080).unwrap()])
}

/// Which route a request takes: `METHOD PATH`, then headers as `name: value`.
fn takes(table: &Table, request: &str) -> Option<usize> {
    let mut words = request.split(" | ");
    let (method, target) = words.next().unwrap().split_once(' ').unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let headers: HeaderMap = words
        .map(|h| h.split_once(": ").unwrap())
        .map(|(n, v)| (HeaderName::try_from(n).unwrap(), HeaderValue::from_str(v).unwrap()))
        .collect();
    table.take(Asked { path, query, method: &method, headers: &headers }).map(|taken| taken.rule)
}

#[test]
fn the_most_specific_match_wins_whatever_the_order_of_the_file() {
    let matches = [
        "{ path: { value: / } }",
        "{ path: { value: /a } }",
        "{ path: { value: /a/b/ } }",
        "{ path: { type: Exact, value: /a/b } }",
        "{ path: { type: RegularExpression, value: '/a/[0-9]+' } }",
        "{ path: { value: /a }, method: PUT }",
        "{ path: { value: /a }, headers: [{ name: x-a, value: '1' }] }",
        "{ path: { value: /a }, headers: [{ name: x-a, value: '1' }, { name: x-b, value: '2' }] }",
        "{ path: { value: /a }, queryParams: [{ name: q, value: '1' }] }",
        "{ path: { value: /a }, headers: [{ name: x-a, value: '1' }], queryParams: [{ name: q, value: '1' }] }",
        "{ method: { service: shop.Orders, method: Get } }",
        "{ method: { service: shop.Orders } }",
        "{ method: { method: Ping } }",
    ];
    let expected = [
        ("GET /", 0),
        ("GET /ab", 0),
        ("GET /a", 1),
        ("GET /a/", 1),
        ("GET /a/bc", 1),
        ("GET /a/b", 3),
        ("GET /a/b/", 2),
        ("GET /a/b/c?q=1 | x-a: 1", 2),
        ("GET /a/7", 4),
        ("GET /a/7/", 1),
        ("GET /a/7x", 1),
        ("PUT /a/7", 4),
        ("PUT /a | x-a: 1 | x-b: 2", 5),
        ("GET /a | x-a: 1", 6),
        ("GET /a | x-a: 2", 1),
        ("GET /a?q=1 | x-a: 1 | x-b: 2", 7),
        ("GET /a?q=1", 8),
        ("GET /a?q=1 | x-a: 1", 9),
        ("POST /shop.Orders/Get | content-type: application/grpc", 10),
        ("POST /shop.Orders/Get", 0),
        ("POST /shop.Orders/Put | content-type: application/grpc+proto", 11),
        ("POST /other.Thing/Ping | content-type: application/grpc", 12),
        ("POST /other.Thing/Pong | content-type: application/grpc", 0),
        ("OPTIONS *", 0),
    ];
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..20 {
        let mut order: Vec<usize> = (0..matches.len()).collect();
        random.shuffle(&mut order);
        let shuffled: Vec<&str> = order.iter().map(|i| matches[*i]).collect();
        let table = table(&shuffled);
        for (request, want) in expected {
            assert_eq!(takes(&table, request).map(|taken| order[taken]), Some(want), "{request}, order {order:?}");
        }
    }
}

#[test]
fn among_equals_the_first_of_the_file_wins() {
    let same = "{ path: { value: /a }, headers: [{ name: x-a, value: '1' }] }";
    let table = table(&[same, "{ path: { value: /a }, headers: [{ name: x-b, value: '1' }] }", same]);
    assert_eq!(takes(&table, "GET /a | x-a: 1 | x-b: 1"), Some(0));
    assert_eq!(takes(&table, "GET /a | x-b: 1"), Some(1));
    assert_eq!(takes(&table, "GET /b | x-a: 1"), None);
    let found = table.unreachable();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("routes[2].rules[0].matches[0] can match nothing: routes[0].rules[0].matches[0]"));
}

#[test]
fn what_can_never_be_reached_is_told_and_nothing_else() {
    let all = table(&[
        "{ path: { type: RegularExpression, value: '/.*' } }",
        "{ path: { value: /a } }",
        "{ path: { type: Exact, value: /b } }",
    ]);
    let found = all.unreachable();
    assert!(found.len() == 1 && found[0].contains("routes[1]") && found[0].contains("regular expression"), "{found:?}");
    let fine = table(&[
        "{ path: { value: /a } }",
        "{ path: { value: /a }, method: GET }",
        "{ path: { value: /a/b } }",
        "{ path: { type: Exact, value: /a } }",
        "{ path: { type: RegularExpression, value: '/a.*' }, method: GET }",
    ]);
    assert_eq!(fine.unreachable(), [""; 0]);
    let twice = table(&["{ path: { value: /a } }", "{ path: { value: /a/ } }"]);
    assert_eq!(twice.unreachable().len(), 1, "the two are one prefix");
}

#[test]
fn a_request_takes_the_routes_of_its_most_specific_host_alone() {
    let (_, routes) = routes(
        "routes:\n\
         - { name: all, hostnames: ['*.mesh'], rules: [{}] }\n\
         - { name: shop, hostnames: ['*.shop.mesh'], rules: [{}] }\n\
         - { name: one, hostnames: [o.shop.mesh], port: 8080, rules: [{ matches: [{ path: { value: /x } }] }] }\n\
         - { name: any, hostnames: [o.shop.mesh, p.shop.mesh], rules: [{ matches: [{ path: { value: /y } }] }] }\n",
    );
    let names = |host: &str, port| {
        let found = routes.find(&Host::parse(host).unwrap(), port)?;
        let rules = &routes.tables()[found].rules;
        Some(rules.iter().map(|r| r.route.as_str().to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(names("o.shop.mesh", 8080).unwrap(), ["one", "any"]);
    assert_eq!(names("o.shop.mesh", 9090).unwrap(), ["any"]);
    assert_eq!(names("p.shop.mesh", 1).unwrap(), ["any"]);
    assert_eq!(names("q.shop.mesh", 1).unwrap(), ["shop"]);
    assert_eq!(names("a.b.shop.mesh", 1).unwrap(), ["shop"]);
    assert_eq!(names("shop.mesh", 1).unwrap(), ["all"]);
    assert_eq!(names("mesh", 1), None);
    assert_eq!(names("example.com", 1), None);
}

#[test]
fn however_a_path_is_written_its_rule_is_that_of_the_path_that_is_forwarded() {
    let table = table(&[
        "{ path: { value: /admin } }",
        "{ path: { type: Exact, value: /public/index.html } }",
        "{ path: { type: RegularExpression, value: '/u/[a-z]+' } }",
        "{ path: { value: / } }",
    ]);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let paths = ["/admin", "/admin/x", "/public/index.html", "/u/bob", "/u/Bob", "/", "/adminx", "/x/y/z"];
    for _ in 0..100_000 {
        let plain = paths[random.usize(..paths.len())];
        // The same path, written in one of many ways.
        let mut written = String::new();
        for c in plain.chars() {
            match (c, random.u8(..8)) {
                ('/', 0) => written.push_str("/./"),
                ('/', 1) => written.push_str("/zz/../"),
                ('/', 2) => written.push_str("/%2e/%2E/"),
                ('/', 3) => written.push('\\'),
                ('/', _) => written.push('/'),
                (c, 0) => written.push_str(&format!("%{:02x}", c as u32)),
                (c, 1) => written.push_str(&format!("%{:02X}", c as u32)),
                (c, _) => written.push(c),
            }
        }
        let written = written.replace("/./", "/.//./").replace(".//.", "./.");
        let Canonical::Path(path) = canonical(&written, PathNormalization::default()) else { panic!("{written}") };
        assert_eq!(path, plain, "{written}");
        let by_written = takes(&table, &format!("GET {path}"));
        assert_eq!(by_written, takes(&table, &format!("GET {plain}")), "{written}");
        assert!(by_written.is_some());
    }
}
