//! The promises of discovery, each against a real DNS server on a real socket. Time is real here, since the server and
//! the resolver wait on the kernel; so TTLs are 0 or 1 s, and `min_ttl` is 50 ms.

use std::time::{Duration, Instant};

use hickory_proto::{
    op::ResponseCode,
    rr::RecordType::{A, AAAA, SRV},
};
use tokio::time::{sleep, timeout};

use super::{
    test_server::{Script, TestServer, addresses, srv},
    *,
};
use crate::config::Host;

const NAME: &str = "orders.mesh.";
const SHORT: Duration = Duration::from_millis(50);

fn config(server: SocketAddr) -> DnsConfig {
    DnsConfig {
        servers: vec![server],
        timeout: Duration::from_millis(600).into(),
        min_ttl: SHORT.into(),
        max_ttl: Duration::from_secs(300).into(),
    }
}

fn missing() -> &'static Path {
    Path::new("/nonexistent")
}

fn discovery(config: &DnsConfig) -> Discovery {
    Discovery::with_files(config, missing(), missing(), 100).unwrap()
}

async fn world() -> (TestServer, Discovery) {
    let server = TestServer::start().await;
    let discovery = discovery(&config(server.address));
    (server, discovery)
}

fn dns(name: &str) -> Target {
    Target { source: EndpointSource::Dns(Host::parse(name).unwrap()), port: 8080 }
}

fn srv_target() -> Target {
    Target { source: EndpointSource::Srv(Host::parse("_http._tcp.orders.mesh").unwrap()), port: 1 }
}

const SRV_NAME: &str = "_http._tcp.orders.mesh.";

fn listed(set: &EndpointSet) -> Vec<String> {
    set.endpoints.iter().map(|e| e.address.to_string()).collect()
}

/// Waits for a snapshot that satisfies `want`; fails with the last one seen after 5 s.
async fn until(watch: &mut Watch, want: impl Fn(&EndpointSet) -> bool) -> Arc<EndpointSet> {
    let reached = async {
        while !want(&watch.snapshot()) {
            watch.changed().await;
        }
    };
    let reached = timeout(Duration::from_secs(5), reached).await;
    assert!(reached.is_ok(), "still {:?}", watch.snapshot());
    watch.snapshot()
}

async fn stays(watch: &mut Watch, time: Duration) {
    let before = watch.snapshot();
    watch.sets.mark_unchanged();
    if timeout(time, watch.changed()).await.is_ok() {
        panic!("{before:?} became {:?}", watch.snapshot());
    }
}

#[tokio::test]
async fn both_families_make_one_sorted_set() {
    let (server, discovery) = world().await;
    server.set(NAME, A, Script::Records(60, addresses(&["10.0.0.2", "10.0.0.1"])));
    server.set(NAME, AAAA, Script::Records(60, addresses(&["fd00::1"])));
    let mut watch = discovery.watch(dns("orders.mesh"));
    assert_eq!(watch.snapshot().state, SetState::Resolving);
    let set = watch.resolved().await;
    assert_eq!(listed(&set), ["10.0.0.1:8080", "10.0.0.2:8080", "[fd00::1]:8080"]);
    assert_eq!((&set.state, set.generation), (&SetState::Fresh, 1));
    assert!(set.endpoints.iter().all(|e| e.weight == 1 && e.priority == 0));
    assert_eq!(discovery.stats(), DiscoveryStats { lookups_ok: 1, ..DiscoveryStats::default() });
}

#[tokio::test]
async fn a_name_with_a_dot_is_asked_for_as_it_stands() {
    let (server, discovery) = world().await;
    let set = discovery.watch(dns("orders.mesh")).resolved().await;
    assert_eq!(set.state, SetState::Empty);
    assert_eq!((server.asked(NAME, A), server.asked(NAME, AAAA)), (1, 1), "one query a family, no search list");
}

#[tokio::test]
async fn the_ttl_decides_when_a_name_is_looked_up_again() {
    let (server, discovery) = world().await;
    server.v4(NAME, 1, &["10.0.0.1"]);
    server.set(NAME, AAAA, Script::Records(60, addresses(&["fd00::1"])));
    let mut watch = discovery.watch(dns("orders.mesh"));
    watch.resolved().await;
    let resolved = Instant::now();
    server.set(NAME, A, Script::Records(1, addresses(&["10.0.0.9"])));
    stays(&mut watch, Duration::from_millis(900)).await;
    assert_eq!(server.asked(NAME, A), 1, "the TTL of the first answer is not over");
    until(&mut watch, |s| listed(s) == ["10.0.0.9:8080", "[fd00::1]:8080"]).await;
    let after = resolved.elapsed();
    assert!(after < Duration::from_millis(1_300), "the lesser TTL of both families and a tenth, not {after:?}");
    assert_eq!(server.asked(NAME, AAAA), 1, "each family has its own TTL");
}

#[tokio::test]
async fn a_ttl_of_zero_is_min_ttl_and_a_long_one_is_max_ttl() {
    let server = TestServer::start().await;
    server.v4(NAME, 0, &["10.0.0.1"]);
    server.v4("far.mesh.", 86_400, &["10.0.0.1"]);
    let discovery = discovery(&DnsConfig { max_ttl: Duration::from_millis(200).into(), ..config(server.address) });
    let _watches = [discovery.watch(dns("orders.mesh")), discovery.watch(dns("far.mesh"))];
    sleep(Duration::from_millis(1_000)).await;
    let (near, far) = (server.asked(NAME, A), server.asked("far.mesh.", A));
    assert!((10..=21).contains(&near), "about every 50 ms, not {near} times in 1 s");
    assert!((3..=6).contains(&far), "about every 200 ms, not {far} times in 1 s");
}

#[tokio::test]
async fn the_ttl_of_an_alias_counts_too() {
    let (server, discovery) = world().await;
    server.set(NAME, A, Script::Alias(0, "real.mesh.", 300, addresses(&["10.0.0.1"])));
    server.set(NAME, AAAA, Script::NoData(300, 300));
    let mut watch = discovery.watch(dns("orders.mesh"));
    assert_eq!(listed(&*watch.resolved().await), ["10.0.0.1:8080"]);
    server.set(NAME, A, Script::Alias(0, "other.mesh.", 300, addresses(&["10.0.0.2"])));
    until(&mut watch, |s| listed(s) == ["10.0.0.2:8080"]).await;
}

#[tokio::test]
async fn the_same_answer_in_another_order_is_no_change() {
    let (server, discovery) = world().await;
    server.v4(NAME, 0, &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.2"]);
    let mut watch = discovery.watch(dns("orders.mesh"));
    let set = watch.resolved().await;
    assert_eq!(listed(&set), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"], "and no address twice");
    let asked = server.asked(NAME, A);
    stays(&mut watch, Duration::from_millis(500)).await;
    assert!(server.asked(NAME, A) > asked + 3, "it has been looked up again and again");
    assert_eq!(watch.snapshot().generation, 1);
}

#[tokio::test]
async fn a_name_that_is_gone_empties_the_set_and_one_that_comes_back_fills_it() {
    let (server, discovery) = world().await;
    let mut watch = discovery.watch(dns("orders.mesh"));
    for empty in [Script::NxDomain(0, 0), Script::NoData(0, 0), Script::Bare] {
        server.v4(NAME, 0, &["10.0.0.1"]);
        let full = until(&mut watch, |s| s.state == SetState::Fresh).await;
        server.both(NAME, &empty);
        let set = until(&mut watch, |s| s.state == SetState::Empty).await;
        assert!(set.endpoints.is_empty(), "{empty:?} leaves {set:?}");
        assert_eq!(set.generation, full.generation + 1);
    }
    assert!(discovery.stats().lookups_empty >= 3);
}

#[tokio::test]
async fn a_negative_answer_lasts_for_the_lesser_of_the_soas_ttl_and_minimum() {
    for (ttl, minimum) in [(1, 300), (300, 1)] {
        let (server, discovery) = world().await;
        server.both(NAME, &Script::NxDomain(ttl, minimum));
        let mut watch = discovery.watch(dns("orders.mesh"));
        assert_eq!(watch.resolved().await.state, SetState::Empty);
        server.v4(NAME, 60, &["10.0.0.1"]);
        stays(&mut watch, Duration::from_millis(900)).await;
        until(&mut watch, |s| s.state == SetState::Fresh).await;
        assert_eq!(server.asked(NAME, A), 2);
    }
}

#[tokio::test]
async fn every_kind_of_failure_keeps_the_last_good_set() {
    let failures = [
        (Script::Code(ResponseCode::ServFail), "erver"),
        (Script::Code(ResponseCode::Refused), "efused"),
        (Script::Silence, ""),
        (Script::Referral, "referred us elsewhere"),
    ];
    for (script, words) in failures {
        let (server, discovery) = world().await;
        server.v4(NAME, 0, &["10.0.0.1", "10.0.0.2"]);
        let mut watch = discovery.watch(dns("orders.mesh"));
        let good = watch.resolved().await;
        server.both(NAME, &script);
        let set = until(&mut watch, |s| s.state.name() == "stale").await;
        assert_eq!((&set.endpoints, set.generation), (&good.endpoints, good.generation), "{script:?}");
        let SetState::Stale { error, .. } = &set.state else { panic!("{set:?}") };
        assert!(error.starts_with("cannot resolve orders.mesh.") && error.contains(words), "{error}");
        assert!(discovery.stats().lookups_failed > 0);
        server.v4(NAME, 0, &["10.0.0.1", "10.0.0.2"]);
        let set = until(&mut watch, |s| s.state == SetState::Fresh).await;
        assert_eq!(set.generation, good.generation, "the same endpoints once more");
    }
}

#[tokio::test]
async fn a_name_that_was_never_resolved_is_failed_and_recovers() {
    let (server, discovery) = world().await;
    server.both(NAME, &Script::Code(ResponseCode::ServFail));
    let mut watch = discovery.watch(dns("orders.mesh"));
    let set = watch.resolved().await;
    assert!(matches!(&set.state, SetState::Failed { error } if error.contains("orders.mesh")), "{set:?}");
    assert!(set.endpoints.is_empty());
    server.v4(NAME, 60, &["10.0.0.1"]);
    until(&mut watch, |s| s.state == SetState::Fresh && s.endpoints.len() == 1).await;
}

#[tokio::test]
async fn failures_back_off() {
    let (server, discovery) = world().await;
    server.both(NAME, &Script::Code(ResponseCode::ServFail));
    let mut watch = discovery.watch(dns("orders.mesh"));
    watch.resolved().await;
    sleep(Duration::from_millis(2_000)).await;
    let failed = discovery.stats().lookups_failed;
    // Without backoff it would be 40; waits are 50 ms at least, and at most 100, 200, 400, 800, 1,600.
    assert!((3..=18).contains(&failed), "{failed} look-ups in 2 s");
    for _ in 0..100 {
        watch.re_resolve();
    }
    sleep(Duration::from_millis(60)).await;
    assert!(discovery.stats().lookups_failed <= failed + 1, "a hint does not shorten the backoff");
}

#[tokio::test]
async fn one_familys_failure_takes_nothing_from_the_other() {
    let (server, discovery) = world().await;
    server.set(NAME, A, Script::Records(0, addresses(&["10.0.0.1"])));
    server.set(NAME, AAAA, Script::Code(ResponseCode::ServFail));
    let mut watch = discovery.watch(dns("orders.mesh"));
    let set = watch.resolved().await;
    assert_eq!((listed(&set), &set.state), (vec!["10.0.0.1:8080".to_owned()], &SetState::Fresh));

    server.set(NAME, AAAA, Script::Records(0, addresses(&["fd00::1"])));
    until(&mut watch, |s| s.endpoints.len() == 2).await;
    server.set(NAME, A, Script::Code(ResponseCode::ServFail));
    stays(&mut watch, Duration::from_millis(400)).await;
    server.set(NAME, AAAA, Script::Records(0, addresses(&["fd00::2"])));
    let set = until(&mut watch, |s| listed(s).contains(&"[fd00::2]:8080".to_owned())).await;
    assert_eq!(listed(&set), ["10.0.0.1:8080", "[fd00::2]:8080"], "what was known of the failed family stays");
    assert_eq!(set.state, SetState::Fresh);
}

#[tokio::test]
async fn one_family_empty_and_the_other_unknown_is_not_empty() {
    let (server, discovery) = world().await;
    server.set(NAME, A, Script::NoData(0, 0));
    server.set(NAME, AAAA, Script::Code(ResponseCode::ServFail));
    let mut watch = discovery.watch(dns("orders.mesh"));
    assert_eq!(watch.resolved().await.state.name(), "failed");
    // But a name that does not exist has no AAAA records either (RFC 8020).
    server.set(NAME, A, Script::NxDomain(60, 60));
    until(&mut watch, |s| s.state == SetState::Empty).await;
}

#[tokio::test]
async fn a_truncated_answer_is_fetched_over_tcp() {
    let (server, discovery) = world().await;
    let many: Vec<String> = (1..=200).map(|i| format!("10.0.1.{i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    server.set(NAME, A, Script::Truncated(60, addresses(&many)));
    server.set(NAME, AAAA, Script::NoData(60, 60));
    assert_eq!(discovery.watch(dns("orders.mesh")).resolved().await.endpoints.len(), 200);
}

#[tokio::test]
async fn addresses_that_lead_back_to_ourselves_are_left_out() {
    let (server, discovery) = world().await;
    server.v4(NAME, 60, &["0.0.0.0", "224.0.0.1"]);
    let set = discovery.watch(dns("orders.mesh")).resolved().await;
    assert_eq!((set.endpoints.len(), &set.state), (0, &SetState::Empty));
}

#[tokio::test]
async fn srv_records_give_priority_weight_and_port_and_their_targets_are_resolved() {
    let (server, discovery) = world().await;
    let records = vec![srv(20, 5, 9002, "c.mesh."), srv(10, 70, 9000, "a.mesh."), srv(10, 0, 9001, "b.mesh.")];
    server.set(SRV_NAME, SRV, Script::Records(60, records));
    server.v4("a.mesh.", 60, &["10.0.0.1", "10.0.0.2"]);
    server.v4("b.mesh.", 60, &["10.0.0.3"]);
    server.set("c.mesh.", A, Script::NoData(60, 60));
    server.set("c.mesh.", AAAA, Script::Records(60, addresses(&["fd00::c"])));
    let set = discovery.watch(srv_target()).resolved().await;
    let seen: Vec<_> = set.endpoints.iter().map(|e| (e.address.to_string(), e.weight, e.priority)).collect();
    let wanted = [
        ("10.0.0.1:9000".to_owned(), 70, 10),
        ("10.0.0.2:9000".to_owned(), 70, 10),
        ("10.0.0.3:9001".to_owned(), 0, 10),
        ("[fd00::c]:9002".to_owned(), 5, 20),
    ];
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn an_srv_target_of_a_dot_means_decidedly_not_here() {
    let (server, discovery) = world().await;
    server.set(SRV_NAME, SRV, Script::Records(60, vec![srv(0, 0, 0, ".")]));
    assert_eq!(discovery.watch(srv_target()).resolved().await.state, SetState::Empty);
    assert_eq!(server.asked(".", A), 0, "the root is not looked up");
}

#[tokio::test]
async fn srv_records_and_their_targets_have_their_own_ttls() {
    for (records, targets) in [(0, 300), (300, 0)] {
        let (server, discovery) = world().await;
        server.set(SRV_NAME, SRV, Script::Records(records, vec![srv(0, 1, 9000, "a.mesh.")]));
        server.v4("a.mesh.", targets, &["10.0.0.1"]);
        let mut watch = discovery.watch(srv_target());
        watch.resolved().await;
        server.set(SRV_NAME, SRV, Script::Records(records, vec![srv(0, 1, 9001, "a.mesh.")]));
        server.v4("a.mesh.", targets, &["10.0.0.2"]);
        let moved = if records == 0 { "10.0.0.1:9001" } else { "10.0.0.2:9000" };
        until(&mut watch, |s| listed(s) == [moved]).await;
        let long = if records == 0 { server.asked("a.mesh.", A) } else { server.asked(SRV_NAME, SRV) };
        assert_eq!(long, 1, "what has a TTL of 300 s is asked for once");
        watch.re_resolve();
        until(&mut watch, |s| listed(s) == ["10.0.0.2:9001"]).await;
    }
}

#[tokio::test]
async fn an_srv_target_that_fails_keeps_its_last_addresses_and_the_others_go_on() {
    let (server, discovery) = world().await;
    let records = vec![srv(0, 1, 9000, "a.mesh."), srv(0, 1, 9000, "b.mesh.")];
    server.set(SRV_NAME, SRV, Script::Records(0, records));
    server.v4("a.mesh.", 0, &["10.0.0.1"]);
    server.v4("b.mesh.", 0, &["10.0.0.2"]);
    let mut watch = discovery.watch(srv_target());
    assert_eq!(watch.resolved().await.endpoints.len(), 2);
    server.both("a.mesh.", &Script::Code(ResponseCode::ServFail));
    server.v4("b.mesh.", 0, &["10.0.0.9"]);
    let set = until(&mut watch, |s| listed(s).contains(&"10.0.0.9:9000".to_owned())).await;
    assert_eq!((listed(&set), &set.state), (vec!["10.0.0.1:9000".into(), "10.0.0.9:9000".into()], &SetState::Fresh));
    server.set(SRV_NAME, SRV, Script::Code(ResponseCode::ServFail));
    let stale = until(&mut watch, |s| s.state.name() == "stale").await;
    assert_eq!(stale.endpoints, set.endpoints);
    server.set(SRV_NAME, SRV, Script::NxDomain(0, 0));
    until(&mut watch, |s| s.state == SetState::Empty && s.endpoints.is_empty()).await;
}

#[tokio::test]
async fn addresses_need_no_look_up() {
    let (server, discovery) = world().await;
    let given = ["10.0.0.2:1".parse().unwrap(), "10.0.0.1:2".parse().unwrap(), "10.0.0.2:1".parse().unwrap()];
    let target = Target { source: EndpointSource::Static(given.to_vec()), port: 9 };
    let mut watch = discovery.watch(target);
    assert_eq!(listed(&watch.snapshot()), ["10.0.0.1:2", "10.0.0.2:1"]);
    assert_eq!(watch.snapshot().state, SetState::Fresh);
    let mut literal = discovery.watch(dns("10.1.2.3"));
    assert_eq!(listed(&*literal.resolved().await), ["10.1.2.3:8080"], "a host that is an address");
    stays(&mut watch, Duration::from_millis(100)).await;
    assert_eq!((discovery.targets(), server.asked("10.1.2.3.", A)), (0, 0));
}

#[tokio::test]
async fn a_hint_looks_up_again_before_the_ttl_is_over_but_once_a_second() {
    let (server, discovery) = world().await;
    server.v4(NAME, 300, &["10.0.0.1"]);
    let mut watch = discovery.watch(dns("orders.mesh"));
    watch.resolved().await;
    server.v4(NAME, 300, &["10.0.0.2"]);
    let hinting = Instant::now();
    while hinting.elapsed() < Duration::from_millis(2_500) {
        watch.re_resolve();
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(listed(&watch.snapshot()), ["10.0.0.2:8080"]);
    let asked = server.asked(NAME, A);
    assert!((2..=4).contains(&asked), "{asked} look-ups in 2.5 s of hints");
}

#[tokio::test]
async fn watchers_of_one_target_share_a_task_which_ends_with_the_last_of_them() {
    let (server, discovery) = world().await;
    server.v4(NAME, 0, &["10.0.0.1"]);
    let mut first = discovery.watch(dns("orders.mesh"));
    first.resolved().await;
    let (second, other) = (discovery.watch(dns("orders.mesh")), first.clone());
    assert_eq!(listed(&second.snapshot()), ["10.0.0.1:8080"], "known at once");
    assert_eq!(discovery.targets(), 1);
    drop((first, second));
    sleep(Duration::from_millis(200)).await;
    assert_eq!(discovery.targets(), 1, "somebody still watches");
    drop(other);
    sleep(Duration::from_millis(50)).await;
    assert_eq!(discovery.targets(), 0);
    let asked = server.asked(NAME, A);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(server.asked(NAME, A), asked, "nobody asks any more");
    assert_eq!(discovery.watch(dns("orders.mesh")).resolved().await.state, SetState::Fresh, "and it can begin anew");
}

#[tokio::test]
async fn a_task_ends_also_in_the_middle_of_a_look_up() {
    let (server, discovery) = world().await;
    server.both(NAME, &Script::Silence);
    let watch = discovery.watch(dns("orders.mesh"));
    sleep(Duration::from_millis(30)).await;
    drop(watch);
    sleep(Duration::from_millis(30)).await;
    assert_eq!(discovery.targets(), 0);
}

#[tokio::test]
async fn the_number_of_targets_is_bounded_and_says_so() {
    let server = TestServer::start().await;
    let discovery = Discovery::with_files(&config(server.address), missing(), missing(), 3).unwrap();
    let held: Vec<_> = (0..3).map(|i| discovery.watch(dns(&format!("n{i}.mesh")))).collect();
    let set = discovery.watch(dns("n3.mesh")).resolved().await;
    let SetState::Failed { error } = &set.state else { panic!("{set:?}") };
    assert!(error.contains("n3.mesh") && error.contains("limit"), "{error}");
    assert_eq!(discovery.watch(dns("n1.mesh")).resolved().await.state, SetState::Empty, "known targets are served");
    drop(held);
    sleep(Duration::from_millis(50)).await;
    assert_eq!(discovery.watch(dns("n3.mesh")).resolved().await.state, SetState::Empty, "there is room again");
}

#[tokio::test]
async fn the_hosts_file_comes_before_dns_and_is_read_again_when_it_changes() {
    let (server, folder) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "10.9.9.9 orders.mesh orders # here\n").unwrap();
    server.v4(NAME, 60, &["10.0.0.1"]);
    server.v4("other.mesh.", 60, &["10.0.0.2"]);
    let discovery = Discovery::with_files(&config(server.address), &hosts, missing(), 100).unwrap();
    assert_eq!(listed(&*discovery.watch(dns("orders.mesh")).resolved().await), ["10.9.9.9:8080"]);
    assert_eq!((server.asked(NAME, A), server.asked(NAME, AAAA)), (0, 0), "in neither family");
    assert_eq!(listed(&*discovery.watch(dns("other.mesh")).resolved().await), ["10.0.0.2:8080"]);
    sleep(Duration::from_millis(50)).await;
    std::fs::write(&hosts, "10.9.9.10 elsewhere.mesh\n").unwrap();
    assert_eq!(listed(&*discovery.watch(dns("orders.mesh")).resolved().await), ["10.0.0.1:8080"]);
}

#[tokio::test]
async fn without_servers_resolv_conf_is_used_and_a_missing_one_is_an_error_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resolv.conf");
    let config = DnsConfig { timeout: Duration::from_millis(200).into(), ..DnsConfig::default() };
    let error = Discovery::with_files(&config, missing(), &file, 9).err().unwrap().to_string();
    assert!(error.contains("resolv.conf") && error.contains("set dns.servers"), "{error}");
    // TEST-NET-1: nobody answers there, and a file that names nobody is refused.
    std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
    let discovery = Discovery::with_files(&config, missing(), &file, 9).unwrap();
    assert_eq!(discovery.watch(dns("orders.mesh")).resolved().await.state.name(), "failed");
    std::fs::write(&file, "# nobody\n").unwrap();
    assert!(Discovery::with_files(&config, missing(), &file, 9).is_err());
}

#[test]
fn outside_a_runtime_it_says_so() {
    let error = Discovery::new(&DnsConfig::default()).err().unwrap().to_string();
    assert!(error.starts_with("cannot set up name resolution"), "{error}");
}

#[tokio::test]
async fn a_watch_can_be_used_from_another_thread() {
    let (server, discovery) = world().await;
    server.v4(NAME, 60, &["10.0.0.1"]);
    let worker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { discovery.watch(dns("orders.mesh")).resolved().await })
    });
    let set = tokio::task::spawn_blocking(|| worker.join().unwrap()).await.unwrap();
    assert_eq!(listed(&set), ["10.0.0.1:8080"]);
}
