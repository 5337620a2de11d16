//! Every journey of a connection, with every backend in both modes.

use std::{net::SocketAddr, time::Duration};

use crate::support::{APP, Namespace, PROXY, Pair, ROOT, Tools, Who};

/// Whose connections are left alone, beside the sidecar's.
const EXCLUDED: u32 = 2000;
/// A refusal is immediate, and what is dropped is not waited for long.
const REFUSED: Duration = Duration::from_millis(700);

/// With more ports than one `multiport` can hold, and edges on both sides of ranges.
pub(crate) fn options() -> String {
    let many = (0..20).map(|n| (4000 + 2 * n).to_string()).collect::<Vec<_>>().join(",");
    format!(
        "--exclude-inbound-ports 22,9000-9010 --exclude-outbound-ports 25,3000-3009,{many} \
         --exclude-outbound-cidrs 192.0.2.0/24,2001:db8::/32 --exclude-uids 7,1999-2001 --exclude-interfaces eth1"
    )
}

/// Journeys and where they should end; what went wrong is told at once.
#[derive(Default)]
struct Journeys(Vec<String>);

impl Journeys {
    fn expect(
        &mut self,
        from: &Namespace,
        who: impl Into<Who>,
        source: Option<&str>,
        to: &str,
        port: u16,
        wanted: &str,
    ) {
        let who = who.into();
        let landed = from.dial(who, source, to, port).landed;
        if landed != wanted && !landed.starts_with(&format!("{wanted} from ")) {
            self.0.push(format!("{who:?} from {source:?} to {to} port {port}: wanted {wanted:?}, got {landed:?}"));
        }
    }

    fn end(self) {
        assert!(self.0.is_empty(), "{} of the journeys went wrong:\n{}", self.0.len(), self.0.join("\n"));
    }
}

fn at(ip: &str, port: u16) -> String {
    SocketAddr::new(ip.parse().unwrap(), port).to_string()
}

/// Every journey lands where the plan says.
fn matrix(tools: &Tools, mode: &str) {
    let Pair { pod, peer } = &Pair::new();
    tools.must(pod, &format!("install --mode {mode} {}", options()));
    let mut journeys = Journeys::default();
    let mut expect =
        |from, uid: u32, source, to: &str, port, wanted: &str| journeys.expect(from, uid, source, to, port, wanted);
    for (own, other, loopback, leg) in
        [("10.77.1.2", "10.77.1.1", "127.0.0.1", "127.0.0.6"), ("fd77:1::2", "fd77:1::1", "::1", "::6")]
    {
        for port in [8080, 8999, 9011, 15000, 15001, 15006] {
            expect(peer, ROOT, None, own, port, &format!("inbound {} from {other}", at(own, port)));
        }
        for port in [22, 9000, 9010, 15020] {
            expect(peer, ROOT, None, own, port, &format!("direct {port} from {other}"));
        }
        for uid in [APP, ROOT] {
            expect(pod, uid, None, other, 80, &format!("outbound {} from {own}", at(other, 80)));
        }
        for uid in [PROXY, EXCLUDED, 7] {
            expect(pod, uid, None, other, 80, &format!("direct 80 from {own}"));
        }
        for uid in [APP, PROXY] {
            expect(pod, uid, None, loopback, 8080, &format!("direct 8080 from {loopback}"));
        }
        expect(pod, APP, None, own, 8080, &format!("direct 8080 from {own}"));
        expect(pod, PROXY, None, own, 8080, &format!("inbound {} from {own}", at(own, 8080)));
        expect(pod, PROXY, None, own, 15001, &format!("inbound {} from {own}", at(own, 15001)));
        expect(pod, PROXY, None, own, 22, &format!("direct 22 from {own}"));
        expect(pod, PROXY, Some(leg), own, 8080, &format!("direct 8080 from {leg}"));
        if mode == "tproxy" {
            // The leg that bears the client's address.
            expect(pod, PROXY, Some(other), own, 8080, &format!("direct 8080 from {other}"));
        }
        for port in [25, 3000, 3009, 4038] {
            expect(pod, APP, None, other, port, &format!("direct {port} from {own}"));
        }
        expect(pod, APP, None, other, 3010, &format!("outbound {}", at(other, 3010)));
    }
    for (excluded, wanted) in [("192.0.2.1", "direct 80"), ("198.51.100.1", "outbound 198.51.100.1:80")] {
        expect(pod, APP, None, excluded, 80, wanted);
    }
    for (excluded, wanted) in [("2001:db8::1", "direct 80"), ("2001:db9::1", "outbound [2001:db9::1]:80")] {
        expect(pod, APP, None, excluded, 80, wanted);
    }
    for (own, other) in [("10.77.3.2", "10.77.3.1"), ("fd77:3::2", "fd77:3::1")] {
        expect(peer, ROOT, None, own, 8080, &format!("direct 8080 from {other}"));
        expect(pod, APP, None, other, 80, &format!("direct 80 from {own}"));
    }
    // Link-local: taken when it arrives, left alone when it leaves.
    expect(peer, ROOT, None, "fe80::2", 8080, "inbound [fe80::2]:8080 from fe80::1");
    expect(pod, APP, None, "fe80::1", 80, "direct 80 from fe80::2");
    expect(pod, APP, None, "fe80::2", 8080, "direct 8080 from fe80::2");
    expect(pod, PROXY, None, "fe80::2", 8080, "direct 8080 from fe80::2");
    journeys.end();
}

#[test]
fn every_journey_with_nft() {
    matrix(&Tools::nft(), "redirect");
}

#[test]
fn every_journey_with_iptables_nft() {
    matrix(&Tools::iptables("iptables-nft"), "redirect");
}

#[test]
fn every_journey_with_iptables_legacy() {
    matrix(&Tools::iptables("iptables-legacy"), "redirect");
}

#[test]
fn every_journey_with_nft_and_tproxy() {
    matrix(&Tools::nft(), "tproxy");
}

#[test]
fn every_journey_with_iptables_nft_and_tproxy() {
    matrix(&Tools::iptables("iptables-nft"), "tproxy");
}

#[test]
fn every_journey_with_iptables_legacy_and_tproxy() {
    matrix(&Tools::iptables("iptables-legacy"), "tproxy");
}

#[test]
fn what_is_included_alone_is_taken() {
    for tools in Tools::all() {
        for mode in ["redirect", "tproxy"] {
            let Pair { pod, peer } = &Pair::new();
            tools.must(
                pod,
                &format!(
                    "install --mode {mode} --include-inbound-ports 8080,9000-9005 --include-outbound-ports 80,3000 \
                     --include-outbound-cidrs 10.77.0.0/16,fd77::/16 --include-inbound-cidrs 10.77.1.0/24,fd77:1::/64 \
                     --include-interfaces eth* --exclude-interfaces eth1"
                ),
            );
            let mut journeys = Journeys::default();
            for (own, other) in [("10.77.1.2", "10.77.1.1"), ("fd77:1::2", "fd77:1::1")] {
                journeys.expect(peer, ROOT, None, own, 8080, &format!("inbound {}", at(own, 8080)));
                journeys.expect(peer, ROOT, None, own, 9000, &format!("inbound {}", at(own, 9000)));
                journeys.expect(peer, ROOT, None, own, 9010, "direct 9010");
                // The sidecar's own ports are always met by the sidecar.
                journeys.expect(peer, ROOT, None, own, 15001, &format!("inbound {}", at(own, 15001)));
                journeys.expect(pod, APP, None, other, 80, &format!("outbound {}", at(other, 80)));
                journeys.expect(pod, APP, None, other, 3009, "direct 3009");
            }
            for far in ["198.51.100.1", "2001:db9::1"] {
                journeys.expect(pod, APP, None, far, 80, "direct 80");
                journeys.expect(
                    peer,
                    ROOT,
                    Some(far),
                    if far.contains('.') { "10.77.1.2" } else { "fd77:1::2" },
                    8080,
                    "direct 8080",
                );
            }
            journeys.expect(peer, ROOT, None, "10.77.3.2", 8080, "direct 8080");
            journeys.end();
        }
    }
}

#[test]
fn the_sidecar_is_known_by_group_or_mark_and_the_application_may_share_its_user() {
    for tools in Tools::all() {
        let Pair { pod, peer: _ } = &Pair::new();
        tools.must(pod, "install --proxy-gid 77 --proxy-mark 0x30/0xf0 --self-call inbound");
        let mut journeys = Journeys::default();
        for (own, other) in [("10.77.1.2", "10.77.1.1"), ("fd77:1::2", "fd77:1::1")] {
            let group = Who { uid: PROXY, gid: 77, mark: 0 };
            let mark = Who { uid: PROXY, gid: 0, mark: 0x1_0035 };
            for who in [group, mark] {
                journeys.expect(pod, who, None, other, 80, "direct 80");
                journeys.expect(pod, who, None, own, 8080, &format!("inbound {}", at(own, 8080)));
            }
            for who in [Who::from(PROXY), Who { uid: PROXY, gid: 78, mark: 0x20 }] {
                journeys.expect(pod, who, None, other, 80, &format!("outbound {}", at(other, 80)));
                // --self-call inbound
                journeys.expect(pod, who, None, own, 8080, &format!("inbound {}", at(own, 8080)));
                journeys.expect(pod, who, None, own, 15020, "direct 15020");
            }
            let leg = if own.contains('.') { "127.0.0.6" } else { "::6" };
            journeys.expect(pod, group, Some(leg), own, 8080, "direct 8080");
            journeys.expect(pod, APP, None, if own.contains('.') { "127.0.0.1" } else { "::1" }, 8080, "direct 8080");
        }
        journeys.end();
    }
}

/// Refused or dropped, and never past it.
#[test]
fn nothing_passes_a_sidecar_that_is_down() {
    std::thread::scope(|scope| {
        for mode in ["redirect", "tproxy"] {
            for tools in Tools::all() {
                scope.spawn(move || {
                    let Pair { pod, peer } = &Pair::without_sidecar();
                    assert_eq!(peer.dial(ROOT, None, "10.77.1.2", 8080).landed, "direct 8080 from 10.77.1.1");
                    tools.must(pod, &format!("install --mode {mode}"));
                    for (own, other) in [("10.77.1.2", "10.77.1.1"), ("fd77:1::2", "fd77:1::1")] {
                        let inbound = peer.dial_within(ROOT, None, own, 8080, REFUSED).landed;
                        let wanted = if mode == "redirect" { "error: ConnectionRefused" } else { "error: TimedOut" };
                        assert_eq!(inbound, wanted, "{} {mode} {own}", tools.backend);
                        let outbound = pod.dial_within(APP, None, other, 80, REFUSED).landed;
                        assert_eq!(outbound, "error: ConnectionRefused", "{} {mode} {other}", tools.backend);
                    }
                });
            }
        }
    });
}

/// A VM that forwards for its containers goes on doing so, even for the ports of the workload.
#[test]
fn what_is_forwarded_for_others_goes_on_to_them() {
    for (tools, mode) in Tools::all().into_iter().zip(["redirect", "tproxy", "tproxy"]) {
        let Pair { pod, peer } = &Pair::new();
        let beyond = Namespace::new();
        let quick = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad";
        beyond.sh(quick);
        pod.sh(&format!(
            "ip link add eth2 type veth peer name eth0 netns {}
             ip addr add 10.77.2.2/24 dev eth2; ip -6 addr add fd77:2::2/64 dev eth2; ip link set eth2 up
             echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
            beyond.path()
        ));
        beyond.sh("ip addr add 10.77.2.3/24 dev eth0; ip -6 addr add fd77:2::3/64 dev eth0; ip link set eth0 up
             ip route add default via 10.77.2.2; ip -6 route add default via fd77:2::2");
        peer.sh("ip route add 10.77.2.0/24 via 10.77.1.2; ip -6 route add fd77:2::/64 via fd77:1::2");
        beyond.listen(ROOT, 8080, "direct");
        tools.must(pod, &format!("install --mode {mode}"));
        assert_eq!(peer.dial(ROOT, None, "10.77.2.3", 8080).landed, "direct 8080 from 10.77.1.1");
        assert_eq!(peer.dial(ROOT, None, "fd77:2::3", 8080).landed, "direct 8080 from fd77:1::1");
        assert_eq!(peer.dial(ROOT, None, "10.77.1.2", 8080).landed, "inbound 10.77.1.2:8080 from 10.77.1.1");
    }
}
