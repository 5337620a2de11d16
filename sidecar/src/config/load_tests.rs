//! Each wrong configuration names its place, what is wrong, and what to write instead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{io::Write, time::Duration};

use super::{
    super::{ApplicationAddress, InboundMode, LogFormat, MtlsMode, Protocol, Unmatched},
    *,
};

fn load_text(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let shown = file.path().display().to_string();
    load(Some(file.path()), env).map_err(|e| e.to_string().replace(&shown, "FILE"))
}

fn load_env(env: &[(&str, &str)]) -> Result<Config, String> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    load(None, env).map_err(|e| e.to_string())
}

/// `text` must be refused at `place` (`line:column`), with all of `words` in the message, the last in the remedy.
#[track_caller]
fn refused(text: &str, place: &str, words: &[&str]) {
    let error = load_text(text, &[]).expect_err("this configuration must be refused");
    assert!(error.starts_with(&format!("FILE:{place}: ")), "the place should be {place}:\n{error}");
    for word in words {
        assert!(error.contains(word), "\"{word}\" is missing:\n{error}");
    }
    let remedy = error.rsplit("=> ").next().unwrap();
    assert!(remedy.contains(words.last().unwrap()), "the remedy should say \"{}\":\n{error}", words.last().unwrap());
}

#[test]
fn nothing_at_all_is_the_default() {
    for text in ["", "\n\n", "# only a comment\n", "---\n", "\u{feff}# with a mark\n"] {
        let config = load_text(text, &[]).unwrap();
        assert_eq!(config.inbound.port, 15006, "{text:?}");
    }
    let config = load(None, std::iter::empty()).unwrap();
    assert_eq!(config.inbound.mode, InboundMode::Strict);
    assert!(config.services.is_empty());
}

#[test]
fn a_section_without_content_is_its_default() {
    let config = load_text("identity:\ninbound:\n  port: 16006\nservices:\n", &[]).unwrap();
    assert_eq!((config.inbound.port, config.services.len()), (16006, 0));
}

#[test]
fn the_full_example_is_right_and_means_what_it_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/config/full.yaml");
    let config = load(Some(&file), std::iter::empty()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.workers.unwrap().get(), 2);
    assert_eq!(config.identity.ca.as_ref().unwrap().address.port, 15012);
    assert_eq!(config.inbound.ports.len(), 3);
    assert_eq!(config.inbound.ports[1].protocol, Protocol::Opaque);
    assert_eq!(config.dns.servers.len(), 2);
    let orders = &config.services[0];
    assert_eq!(orders.timeouts.backend_request.get(), Duration::from_secs(10));
    assert!(
        matches!(&orders.endpoints, Some(super::super::EndpointSource::Srv(h)) if h.as_str() == "_http._tcp.orders.mesh")
    );
    assert_eq!(config.services[1].mtls, MtlsMode::Off);
    assert_eq!(config.routes[0].rules.len(), 4);
    assert_eq!(config.routes[0].rules[1].retry.grpc_codes.as_ref().unwrap()[0].number(), "14");
    // Every value that has a default is shown with it, but for those that the example says otherwise of.
    let defaults: Config = load_text("services: [{ name: orders.mesh, port: 8080 }]", &[]).unwrap();
    let json = |c: &Config| serde_json::to_value(c).unwrap();
    for section in ["outbound", "admin", "drain", "log"] {
        assert_eq!(json(&config)[section], json(&defaults)[section], "{section}");
    }
    let shortest = "services: [{ name: orders.mesh, port: 8080, health_check: { http: { path: /healthz } } }]";
    let shortest = json(&load_text(shortest, &[]).unwrap());
    assert_eq!(json(&config)["services"][0]["health_check"], shortest["services"][0]["health_check"]);
    assert_eq!(json(&config)["services"][1]["health_check"], serde_json::Value::Null);
    for section in ["outlier_detection", "circuit_breakers", "retry"] {
        assert_eq!(json(&config)["services"][0][section], json(&defaults)["services"][0][section], "{section}");
    }
}

#[test]
fn the_active_configuration_loads_again_as_itself() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/config/full.yaml");
    let config = load(Some(&file), std::iter::empty()).unwrap();
    let text = serde_saphyr::to_string(&config).unwrap();
    let again = load_text(&text, &[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(serde_json::to_value(&config).unwrap(), serde_json::to_value(&again).unwrap());
}

#[test]
fn unknown_fields_get_the_nearest_right_spelling() {
    refused("inbund:\n  port: 1\n", "1:1", &["unknown field \"inbund\"", "did you mean \"inbound\"?"]);
    refused(
        "identity:\n  ca:\n    address: ca:15012\n    bundle: /b\n    tokenFile: /t\n",
        "5:5",
        &["identity.ca: unknown field \"tokenFile\"", "did you mean \"token_file\"?"],
    );
    refused(
        "services:\n- { name: a, port: 1, timeouts: { backend_request: 3s } }\n",
        "2:35",
        &["services[0].timeouts", "did you mean \"backendRequest\"?"],
    );
    refused("inbound:\n  elephants: 3\n", "2:3", &["unknown field \"elephants\"", "max_handshakes"]);
}

#[test]
fn the_line_is_shown_with_a_caret_below_the_text() {
    let error = load_text("inbound:\n  port: 15006\n  mood: strict\n", &[]).unwrap_err();
    let want =
        "FILE:3:3: inbound: unknown field \"mood\"\n 3 |   mood: strict\n   |   ^^^^\n  => did you mean \"mode\"?";
    assert_eq!(error, want);
}

#[test]
fn values_of_the_wrong_kind_say_the_right_one() {
    refused("inbound: { mode: stricct }\n", "1:18", &["unknown value \"stricct\"", "did you mean \"strict\"?"]);
    refused("inbound: { port: eighty }\n", "1:18", &["inbound.port", "a whole number from 0 to 65535"]);
    refused("inbound: { port: 70000 }\n", "1:18", &["inbound.port", "65535"]);
    refused("workers: 0\n", "1:10", &["workers", "a whole number of 1 or more"]);
    refused("drain:\n  timeout: 30\n", "2:12", &["\"30\" is not a duration", "3s"]);
    refused("admin: { address: localhost:15000 }\n", "1:19", &["admin.address", "127.0.0.1:15000"]);
    refused(
        "services: [{ name: a, port: 1, retry: { budget: 120 } }]\n",
        "1:49",
        &["120 is not a percentage", "0 to 100"],
    );
    refused(
        "services: [{ name: a, port: 1, retry: { budget: 20% } }]\n",
        "1:49",
        &["retry.budget", "a whole number from 0 to"],
    );
    refused("outbound: { mesh_domains: [\"a..b\"] }\n", "1:28", &["is not a DNS name", "correct"]);
    refused("inbound: { allow: [\"spiffe://t/ns*\"] }\n", "1:20", &["'*'", "give an id as spiffe://"]);
    refused("inbound: strict\n", "1:10", &["inbound", "a section"]);
    refused("inbound: { allow: everyone }\n", "1:19", &["inbound.allow", "a list"]);
    refused("identity: { dir: [a] }\n", "1:13", &["identity.dir", "a single word or text"]);
}

#[test]
fn what_is_missing_or_doubled_is_named() {
    refused("services:\n- name: a\n", "2:3", &["services[0]", "the field \"port\" is missing", "add \"port"]);
    refused("inbound:\n  port: 1\n  port: 2\n", "3:3", &["\"port\" is given twice", "keep one"]);
    refused("inbound: {}\n---\noutbound: {}\n", "3:1", &["second YAML document", "keep one document"]);
}

#[test]
fn broken_yaml_is_placed() {
    refused("inbound:\n\tport: 1\n", "2:2", &["correct the YAML"]);
    refused("inbound: { port: 1\n", "1:10", &["correct the YAML"]);
}

#[test]
fn services_must_be_told_apart() {
    refused(
        "services:\n- { name: a, port: 1 }\n- { name: a, port: 2 }\n",
        "3:11",
        &["services[1].name", "already that of services[0]", "a name of its own"],
    );
    refused(
        "services:\n- { name: a, port: 1 }\n- { name: b, port: 1, hosts: [b, a] }\n",
        "3:34",
        &["services[1].hosts[1]", "a:1 already means services[0]", "in one service only"],
    );
}

#[test]
fn limits_are_kept() {
    let service = |rest: &str| format!("services:\n- name: a\n  port: 80\n  {rest}\n");
    refused(&service("timeouts: { connect: 0s }"), "4:24", &["no connection could be made", "the default is 5s"]);
    refused(&service("retry: { attempts: 11 }"), "4:22", &["11 is beyond the limit", "at most 10"]);
    refused(&service("retry: { codes: [503, 200] }"), "4:25", &["200 is not the status", "400 to 599"]);
    refused(
        &service("retry: { grpcCodes: [CANCELLED, OK] }"),
        "4:35",
        &["OK is not the status of a failed", "UNAVAILABLE"],
    );
    refused(&service("retry: { budget_floor: 5000 }"), "4:26", &["5000 is beyond", "at most 1000"]);
    refused(
        &service("retry: { max_retry_after: 6m }"),
        "4:29",
        &["6m would leave", "at most 5m", "0s takes no notice"],
    );
    refused(
        &service("timeouts: { request: 1s, backendRequest: 2s }"),
        "4:44",
        &["2s for one try is longer", "raise timeouts.request"],
    );
    refused(
        &service("outlier_detection: { base_ejection_time: 10m }"),
        "4:3",
        &["max_ejection_time", "less than services[0].outlier_detection.base_ejection_time", "raise"],
    );
    refused(&service("outlier_detection: { interval: 0s }"), "4:34", &["never come back", "10s"]);
    refused(&service("endpoints: { static: [] }"), "4:16", &["no endpoint is listed", "10.0.0.7:8080"]);
    refused(&service("endpoints: { static: [\"10.0.0.1:1\", \"10.0.0.1:1\"] }"), "4:39", &["listed twice", "once"]);
    refused(&service("endpoints: { static: [\"0.0.0.0:1\"] }"), "4:25", &["not the address of a server", "reached"]);
    refused(
        &service("mtls: off\n  identities: [\"spiffe://t/a\"]"),
        "5:3",
        &["without mTLS no identity is ever checked", "leave out mtls: off"],
    );
    refused("services: [{ name: a, port: 0 }]", "1:29", &["services[0].port: 0 is not a port", "1 to 65535"]);
    refused("inbound: { max_handshakes: 100001 }", "1:28", &["beyond the limit", "100000"]);
    refused("dns: { min_ttl: 10m }", "1:1", &["dns.max_ttl", "less than dns.min_ttl", "raise dns.max_ttl"]);
    refused("dns: { min_ttl: 0s }", "1:17", &["flood", "100ms"]);
    refused("drain: { minimum: 1m }", "1:1", &["drain.timeout: 30s is less than drain.minimum", "lower drain.minimum"]);
    refused("outbound: { detect_delay: 1m }", "1:27", &["the server speaks first", "30ms"]);
    refused("identity: { ca: { address: a, bundle: /b, ttl: 10s } }", "1:48", &["10s is not a lifetime", "720h"]);
}

#[test]
fn rules_of_the_inbound_side() {
    refused("inbound: { port: 15001 }", "1:1", &["port 15001 is also that of", "15006 inbound"]);
    refused(
        "admin:\n  address: 127.0.0.1:15020\n",
        "1:1",
        &["admin.telemetry_address", "also that of admin.address", "15020 telemetry"],
    );
    refused(
        "inbound: { ports: [{ port: 15006 }] }",
        "1:28",
        &["the sidecar's own inbound.port", "application listens"],
    );
    refused(
        "inbound: { ports: [{ port: 80 }, { port: 80 }] }",
        "1:42",
        &["already that of inbound.ports[0]", "one entry"],
    );
    refused(
        "inbound: { ports: [{ port: 80, plaintext_paths: [healthz] }] }",
        "1:50",
        &["\"healthz\" is not an exact path", "/healthz"],
    );
    refused(
        "inbound: { mode: permissive, ports: [{ port: 80, plaintext_paths: [/a] }] }",
        "1:50",
        &["open to plaintext already", "mode: strict"],
    );
    refused(
        "identity: { trust_domain: here }\ninbound: { allow: [\"spiffe://there/*\"] }",
        "2:20",
        &["not in the trust domain here", "spiffe://here/"],
    );
}

#[test]
fn a_health_check_is_of_one_kind_and_can_end_well() {
    let check = |text: &str| format!("services:\n- name: a\n  port: 1\n  health_check: {text}\n");
    let wrong = |text: &str, column: usize, words: &[&str]| refused(&check(text), &format!("4:{column}"), words);
    wrong("{ interval: 1s }", 3, &["services[0].health_check", "nothing says how to check", "tcp: {}"]);
    wrong("{ tcp: {}, grpc: {} }", 28, &["health_check.grpc", "tcp is given as well", "keep one"]);
    wrong("{ http: {} }", 25, &["path"]);
    wrong("{ http: { path: healthz } }", 33, &["\"healthz\" is not a path", "begin it with '/'"]);
    wrong("{ http: { path: \"/a b\" } }", 33, &["is not a path", "spaces"]);
    wrong("{ http: { path: /, expected_statuses: [] } }", 36, &["no status", "leave the field out"]);
    wrong(
        "{ http: { path: /, expected_statuses: [99] } }",
        56,
        &["99 is not a status: it must be 100 to 599", "correct"],
    );
    wrong("{ http: { path: /, expected_statuses: [-1] } }", 56, &["-1 is not a status", "100 to 599", "correct"]);
    let from = "{ http: { path: /, expected_statuses: [{ start: 400, end: 200 }] } }";
    wrong(from, 56, &["from 400 to before 200", "at most 600", "correct"]);
    wrong("{ tcp: {}, interval: 0s }", 38, &["flood", "100ms"]);
    wrong("{ tcp: {}, timeout: 0s }", 37, &["no check could ever end well", "1s"]);
    wrong("{ tcp: {}, unhealthy_threshold: 101 }", 49, &["101 is beyond", "at most 100"]);
    wrong("{ tcp: {}, healthy_threshold: 0 }", 47, &["healthy_threshold", "1 or more"]);
    wrong("{ tcp: { port: 1 } }", 26, &["unknown field \"port\"", "nothing is set here"]);
    wrong("{ tcp: {}, jitter: 1s }", 28, &["unknown field \"jitter\"", "interval_jitter"]);
    for right in ["{ tcp: }", "{ grpc: { service: shop.Orders } }", "{ http: { path: \"/h?x=1\" } }"] {
        assert!(load_text(&check(right), &[]).is_ok(), "{right}");
    }
    let ranges = "{ http: { path: /, expected_statuses: [204, { start: 300, end: 400 }] } }";
    let config = load_text(&check(ranges), &[]).unwrap();
    let http = config.services[0].health_check.as_ref().unwrap().http.as_ref().unwrap();
    let good = |status| http.expected_statuses.iter().any(|range| range.contains(status));
    assert!(good(204) && good(300) && good(399) && !good(200) && !good(400));
}

#[test]
fn a_misspelt_log_level_does_not_silence_the_log() {
    refused("log: { level: inof }", "1:15", &["\"inof\" is not a log level", "did you mean \"info\"?"]);
    refused("log: { level: \"info,a[b=debug\" }", "1:15", &["is not a log filter", "info"]);
    assert!(load_text("log: { level: \"info,outrigger_sidecar::discovery=debug\" }", &[]).is_ok());
}

#[test]
fn every_broken_rule_is_told_at_once() {
    let error = load_text("inbound: { port: 0 }\ndrain: { minimum: 1m }\n", &[]).unwrap_err();
    assert!(error.contains("FILE:1:18: inbound.port") && error.contains("FILE:2:1: drain.timeout"), "{error}");
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let missing = load(Some(Path::new("/nowhere/x.yaml")), std::iter::empty()).unwrap_err().to_string();
    assert!(missing.starts_with("/nowhere/x.yaml: the configuration cannot be read: No such file"), "{missing}");
    assert!(missing.ends_with("check the path given to --config or OUTRIGGER_CONFIG"), "{missing}");
    let folder = load(Some(Path::new("/tmp")), std::iter::empty()).unwrap_err().to_string();
    assert!(folder.ends_with("give the file itself"), "{folder}");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"inbound:\n  mode: \xff\n").unwrap();
    let latin = load(Some(file.path()), std::iter::empty()).unwrap_err().to_string();
    assert!(latin.contains("line 2 is not UTF-8"), "{latin}");
}

#[test]
fn a_bomb_of_aliases_is_refused_quickly() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let list = vec![format!("*a{}", i - 1); 9].join(", ");
        text.push_str(&format!("a{i}: &a{i} [{list}]\n"));
    }
    let began = std::time::Instant::now();
    load_text(&text, &[]).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn variables_win_over_the_file() {
    let env = [
        ("PATH", "/bin"),
        ("OUTRIGGER_CONFIG", "/etc/x.yaml"),
        ("OUTRIGGER_INBOUND_MODE", "permissive"),
        ("OUTRIGGER_INBOUND_APPLICATION", "loopback"),
        ("OUTRIGGER_OUTBOUND_MESH_DOMAINS", "mesh, svc.cluster.local"),
        ("OUTRIGGER_OUTBOUND_UNMATCHED", "reject"),
        ("OUTRIGGER_DNS_SERVERS", "10.0.0.1:53,[::1]:53"),
        ("OUTRIGGER_IDENTITY_CA_ADDRESS", "ca.mesh"),
        ("OUTRIGGER_IDENTITY_CA_BUNDLE", "/b.pem"),
        ("OUTRIGGER_IDENTITY_CA_TTL", "1h"),
        ("OUTRIGGER_IDENTITY_DIR", "/id"),
        ("OUTRIGGER_IDENTITY_TRUST_DOMAIN", "t"),
        ("OUTRIGGER_ADMIN_TELEMETRY_ADDRESS", "[::]:15099"),
        ("OUTRIGGER_WORKERS", "3"),
        ("OUTRIGGER_LOG_FORMAT", "json"),
        ("OUTRIGGER_DRAIN_TIMEOUT", ""),
    ];
    let config = load_text("inbound: { mode: strict, port: 16006 }\n", &env).unwrap();
    assert_eq!((config.inbound.mode, config.inbound.port), (InboundMode::Permissive, 16006));
    assert_eq!(config.inbound.application, ApplicationAddress::Loopback);
    assert_eq!(config.outbound.mesh_domains[1].as_str(), "svc.cluster.local");
    assert_eq!(config.outbound.unmatched, Unmatched::Reject);
    assert_eq!(config.dns.servers[1].to_string(), "[::1]:53");
    let ca = config.identity.ca.unwrap();
    assert_eq!((ca.address.host.as_str(), ca.address.port), ("ca.mesh", 15012));
    assert_eq!(ca.ttl.unwrap().get(), Duration::from_secs(3600));
    assert_eq!(config.admin.telemetry_address.port(), 15099);
    assert_eq!(config.workers.unwrap().get(), 3);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.drain.timeout.get(), Duration::from_secs(30));
}

#[test]
fn wrong_variables_are_named() {
    let wrong = |env: &[(&str, &str)], words: &[&str]| {
        let error = load_env(env).unwrap_err();
        assert!(error.starts_with(&format!("environment variable {}: ", env[0].0)), "{error}");
        words.iter().for_each(|word| assert!(error.contains(word), "\"{word}\" is missing: {error}"));
    };
    wrong(&[("OUTRIGGER_INBOUND_MOED", "strict")], &["no such setting", "did you mean OUTRIGGER_INBOUND_MODE?"]);
    wrong(&[("OUTRIGGER_ELEPHANT", "1")], &["no such setting", "OUTRIGGER_IDENTITY_DIR"]);
    wrong(&[("OUTRIGGER_INBOUND_MODE", "stricct")], &["stricct", "`strict` or `permissive`", "unset it"]);
    wrong(&[("OUTRIGGER_INBOUND_PORT", "tcp://10.0.0.1:80")], &["is not a number", "inbound.port"]);
    wrong(&[("OUTRIGGER_INBOUND_PORT", "0")], &["inbound.port: 0 is not a port"]);
    wrong(&[("OUTRIGGER_DNS_SERVERS", "10.0.0.1")], &["10.0.0.1", "dns.servers"]);
    wrong(&[("OUTRIGGER_DNS_SERVERS", "10.0.0.1:0")], &["dns.servers[0]: 0 is not a port"]);
    wrong(&[("OUTRIGGER_IDENTITY_CA_ADDRESS", "ca")], &["OUTRIGGER_IDENTITY_CA_BUNDLE", "identity.ca in the file"]);
    wrong(&[("OUTRIGGER_DRAIN_TIMEOUT", "1s")], &["drain.timeout: 1s is less than drain.minimum"]);
}

#[test]
fn the_variables_of_kubernetes_services_are_left_alone() {
    load_env(&[
        ("OUTRIGGER_CA_SERVICE_HOST", "10.0.0.1"),
        ("OUTRIGGER_CA_SERVICE_PORT", "15012"),
        ("OUTRIGGER_CA_SERVICE_PORT_GRPC", "15012"),
        ("OUTRIGGER_CA_PORT", "tcp://10.0.0.1:15012"),
        ("OUTRIGGER_CA_PORT_15012_TCP", "tcp://10.0.0.1:15012"),
        ("OUTRIGGER_CA_PORT_15012_TCP_PROTO", "tcp"),
        ("OUTRIGGER_CA_PORT_15012_TCP_PORT", "15012"),
        ("OUTRIGGER_CA_PORT_15012_TCP_ADDR", "10.0.0.1"),
    ])
    .unwrap();
    load_env(&[("OUTRIGGER_CA_PORT", "15012")]).unwrap_err();
}

#[test]
fn every_variable_of_the_table_is_a_path_of_the_schema() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/config/full.yaml");
    let all = serde_json::to_value(load(Some(&file), std::iter::empty()).unwrap()).unwrap();
    for (name, path) in env::variables() {
        let pointer = format!("/{}", path.replace('.', "/"));
        assert!(all.pointer(&pointer).is_some(), "{name}: the schema has no {path}");
    }
}

#[test]
fn a_policy_without_what_it_goes_by_and_sizes_that_hold_nobody_are_refused() {
    let service = |balancing: &str| format!("services:\n- name: a.mesh\n  port: 80\n  load_balancing: {balancing}\n");
    let long = "{ policy: maglev, hash: [{ header: x-user }], ";
    for (balancing, words) in [
        ("{ policy: maglev }", vec!["would go to a random endpoint", "give hash"]),
        ("{ hash: [{ header: x-user }] }", vec!["uses no hash", "ring_hash or maglev"]),
        ("{ policy: ring_hash, hash: [{}] }", vec!["not exactly one thing", "source_address: true"]),
        (
            "{ policy: ring_hash, hash: [{ header: a, cookie: b }] }",
            vec!["not exactly one thing", "source_address: true"],
        ),
        ("{ policy: ring_hash, hash: [{ cookie: '' }] }", vec!["the name is empty", "the name of a cookie"]),
        (&format!("{long} maglev: {{ table_size: 65536 }} }}"), vec!["65536 is not prime", "65537"]),
        (&format!("{long} maglev: {{ table_size: 6000011 }} }}"), vec!["beyond the limit", "5000011"]),
        (&format!("{long} ring_hash: {{ minimum_ring_size: 0 }} }}"), vec!["0 places", "1 to 8388608"]),
        (&format!("{long} ring_hash: {{ maximum_ring_size: 9 }} }}"), vec!["1024 is more than", "lower the other"]),
        ("{ policy: rnd }", vec!["unknown value \"rnd\"", "did you mean \"random\"?"]),
    ] {
        let error = load_text(&service(balancing), &[]).expect_err(balancing);
        assert!(error.starts_with("FILE:4:"), "{balancing}: {error}");
        for word in words {
            assert!(error.contains(word), "{balancing}: \"{word}\" is missing:\n{error}");
        }
    }
}
