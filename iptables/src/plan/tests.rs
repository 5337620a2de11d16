//! The plan's decisions, read by a small evaluator that walks the rules as the kernel does.

use super::*;
use crate::parse_cidr;

/// A packet that opens a connection, unless said otherwise.
struct Packet {
    from: IpAddr,
    to: IpAddr,
    port: u16,
    uid: u32,
    opening: bool,
    invalid: bool,
    /// Addresses of the host beside loopback.
    host: Vec<IpAddr>,
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Direct,
    Redirected(u16),
    Dropped,
}
use Decision::{Direct, Dropped, Redirected};

const APP: u32 = 1000;
const PROXY: u32 = 1337;

impl Packet {
    fn new(from: &str, to: &str, port: u16, uid: u32) -> Self {
        let host = ["10.0.0.2", "fd00::2", "fe80::2"].map(|text| text.parse().unwrap()).to_vec();
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        Self { from, to, port, uid, opening: true, invalid: false, host }
    }

    fn is_to_this_host(&self) -> bool {
        self.to.is_loopback() || self.host.contains(&self.to)
    }

    fn holds(&self, property: &Match) -> bool {
        let same_family = |net: &IpNet| net.addr().is_ipv4() == self.to.is_ipv4();
        match property {
            Match::Tcp => true,
            Match::Opening => self.opening,
            Match::Invalid => self.invalid,
            Match::ToThisHost | Match::ViaLoopback => self.is_to_this_host(),
            Match::From(nets) => nets.iter().any(|net| net.contains(&self.from)),
            Match::To(nets) => nets.iter().any(|net| net.contains(&self.to)),
            Match::NotTo(net) => same_family(net) && !net.contains(&self.to),
            Match::ToPorts(ranges) => ranges.iter().any(|range| range.contains(self.port)),
            Match::Uid(uid) => self.uid == *uid,
        }
    }

    fn walk(&self, plan: &Plan, name: ChainName) -> Option<Decision> {
        let chain = plan.chains.iter().find(|chain| chain.name == name).expect("a chain that is called is there");
        for rule in chain.rules.iter().filter(|rule| rule.matches.iter().all(|property| self.holds(property))) {
            match rule.verdict {
                Verdict::Return => return None,
                Verdict::Drop => return Some(Dropped),
                Verdict::Redirect(port) => return Some(Redirected(port)),
                Verdict::Jump(to) => {
                    if let Some(decision) = self.walk(plan, to) {
                        return Some(decision);
                    }
                }
            }
        }
        None
    }

    fn at(&self, plan: &Plan, points: &[Point]) -> Decision {
        let hooks = points.iter().flat_map(|point| plan.hooks.iter().filter(move |hook| hook.point == *point));
        hooks
            .filter(|hook| hook.guard.iter().all(|property| self.holds(property)))
            .find_map(|hook| self.walk(plan, hook.chain))
            .unwrap_or(Direct)
    }

    fn arriving(&self, plan: &Plan) -> Decision {
        self.at(plan, &[Point::FilterPrerouting, Point::NatPrerouting])
    }

    fn leaving(&self, plan: &Plan) -> Decision {
        self.at(plan, &[Point::NatOutput])
    }
}

fn plan(change: impl FnOnce(&mut Options)) -> Plan {
    let mut options = Options::default();
    change(&mut options);
    Plan::new(&options).unwrap()
}

fn ports(list: &[&str]) -> Vec<PortRange> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn every_journey_of_a_connection_in_both_families() {
    let plan = plan(|_| {});
    let journeys = [
        // from, to, port, uid, what happens
        ("10.0.0.2", "10.0.0.9", 80, APP, Redirected(15001)),
        ("fd00::2", "fd00::9", 80, APP, Redirected(15001)),
        ("10.0.0.2", "10.0.0.9", 80, 0, Redirected(15001)),
        ("10.0.0.2", "10.0.0.9", 80, PROXY, Direct),
        ("fd00::2", "fd00::9", 80, PROXY, Direct),
        ("127.0.0.1", "127.0.0.1", 80, APP, Direct),
        ("::1", "::1", 80, APP, Direct),
        ("127.0.0.1", "127.0.0.1", 80, PROXY, Direct),
        ("::1", "::1", 80, PROXY, Direct),
        ("10.0.0.2", "10.0.0.2", 80, APP, Direct),
        ("fd00::2", "fd00::2", 80, APP, Direct),
        ("10.0.0.2", "10.0.0.2", 80, PROXY, Redirected(15006)),
        ("fd00::2", "fd00::2", 80, PROXY, Redirected(15006)),
        ("127.0.0.6", "10.0.0.2", 80, PROXY, Direct),
        ("::6", "fd00::2", 80, PROXY, Direct),
        ("10.0.0.2", "10.0.0.2", TELEMETRY_PORT, PROXY, Direct),
        ("10.0.0.2", "10.0.0.2", 15001, PROXY, Redirected(15006)),
        ("fe80::2", "fe80::9", 80, APP, Direct),
        ("fe80::2", "fe80::2", 80, PROXY, Direct),
    ];
    for (from, to, port, uid, wanted) in journeys {
        assert_eq!(Packet::new(from, to, port, uid).leaving(&plan), wanted, "uid {uid}: {from} -> {to}:{port}");
    }
}

#[test]
fn peers_meet_the_inbound_port_whatever_they_dial_but_telemetry() {
    let plan = plan(|_| {});
    for to in ["10.0.0.2", "fd00::2", "fe80::2"] {
        let from = if to.contains('.') { "10.0.0.9" } else { "fd00::9" };
        for port in [1, 80, 15000, 15001, 15006, 15019, 15021, 65535] {
            assert_eq!(Packet::new(from, to, port, 0).arriving(&plan), Redirected(15006), "{to} port {port}");
        }
        assert_eq!(Packet::new(from, to, TELEMETRY_PORT, 0).arriving(&plan), Direct, "{to}");
    }
}

#[test]
fn what_is_forwarded_for_others_is_left_alone() {
    let plan = plan(|_| {});
    let mut packet = Packet::new("172.17.0.5", "192.0.2.1", 443, 0);
    assert_eq!(packet.arriving(&plan), Direct);
    packet.invalid = true;
    assert_eq!(packet.arriving(&plan), Direct);
}

#[test]
fn connections_that_are_open_already_are_left_alone() {
    let plan = plan(|_| {});
    let mut packet = Packet::new("10.0.0.9", "10.0.0.2", 80, APP);
    packet.opening = false;
    assert_eq!(packet.arriving(&plan), Direct);
    packet.invalid = true;
    assert_eq!(packet.arriving(&plan), Dropped);
    let mut packet = Packet::new("10.0.0.2", "10.0.0.9", 80, APP);
    packet.opening = false;
    assert_eq!(packet.leaving(&plan), Direct);
}

#[test]
fn exclusions_hold_at_their_edges_and_not_beyond() {
    let plan = plan(|options| {
        options.exclude_inbound_ports = ports(&["22", "9000-9010"]);
        options.exclude_outbound_ports = ports(&["25", "3000-3009"]);
        options.exclude_outbound_cidrs =
            ["192.0.2.0/24", "2001:db8::/32"].map(|text| parse_cidr(text).unwrap()).to_vec();
    });
    for (port, wanted) in
        [(22, Direct), (23, Redirected(15006)), (8999, Redirected(15006)), (9000, Direct), (9010, Direct)]
    {
        assert_eq!(Packet::new("10.0.0.9", "10.0.0.2", port, 0).arriving(&plan), wanted, "inbound port {port}");
        // The sidecar that balances onto its own pod must find what any peer finds.
        assert_eq!(Packet::new("10.0.0.2", "10.0.0.2", port, PROXY).leaving(&plan), wanted, "self-call to {port}");
    }
    for (port, wanted) in
        [(25, Direct), (24, Redirected(15001)), (3000, Direct), (3009, Direct), (3010, Redirected(15001))]
    {
        assert_eq!(Packet::new("fd00::2", "fd00::9", port, APP).leaving(&plan), wanted, "outbound port {port}");
    }
    for (to, wanted) in [("192.0.2.255", Direct), ("192.0.3.0", Redirected(15001))] {
        assert_eq!(Packet::new("10.0.0.2", to, 80, APP).leaving(&plan), wanted, "{to}");
    }
    for (to, wanted) in [("2001:db8:ffff::1", Direct), ("2001:db9::1", Redirected(15001))] {
        assert_eq!(Packet::new("fd00::2", to, 80, APP).leaving(&plan), wanted, "{to}");
    }
}

#[test]
fn ports_and_uid_are_the_given_ones() {
    let plan = plan(|options| {
        options.inbound_port = 1;
        options.outbound_port = 2;
        options.proxy_uid = 3;
    });
    assert_eq!(Packet::new("10.0.0.9", "10.0.0.2", 80, 0).arriving(&plan), Redirected(1));
    assert_eq!(Packet::new("10.0.0.2", "10.0.0.9", 80, PROXY).leaving(&plan), Redirected(2));
    assert_eq!(Packet::new("10.0.0.2", "10.0.0.9", 80, 3).leaving(&plan), Direct);
}
