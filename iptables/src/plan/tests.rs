//! The plan's decisions for packets whose fate is known beforehand.

use super::*;
use crate::{options::Proxy, parse_cidr};
use Decision::{Direct, Dropped, Redirected, Transparent};

const APP: u32 = 1000;
const PROXY: u32 = 1337;

impl Packet {
    /// A TCP segment that opens a connection, on a host with these addresses beside loopback.
    fn new(from: &str, to: &str, port: u16, uid: u32) -> Self {
        let host = ["10.0.0.2", "fd00::2", "fe80::2"].map(|text| text.parse::<IpAddr>().unwrap());
        let here =
            |address: IpAddr| address.is_loopback() || host.contains(&address) || address == IpAddr::V6(LEG_ADDRESS_V6);
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        Self {
            protocol: Tcp,
            from,
            from_port: 40_000,
            to,
            to_port: port,
            opening: true,
            invalid: false,
            reply: false,
            connection_mark: 0,
            mark: 0,
            uid: Some(uid),
            gid: Some(uid),
            interface: if here(to) && here(from) { "lo" } else { "eth0" }.to_owned(),
            from_this_host: here(from),
            to_this_host: here(to),
        }
    }

    fn arriving(&self, plan: &Plan) -> Decision {
        plan.decide(&Self { uid: None, gid: None, ..self.clone() }, Way::Arriving).decision
    }

    fn leaving(&self, plan: &Plan) -> Decision {
        plan.decide(&Self { interface: self.way_out(), ..self.clone() }, Way::Leaving).decision
    }

    fn way_out(&self) -> String {
        if self.to_this_host { "lo".to_owned() } else { self.interface.clone() }
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

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|text| parse_cidr(text).unwrap()).collect()
}

fn interfaces(list: &[&str]) -> Vec<Interface> {
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
        options.proxy.uid = Some(3);
    });
    assert_eq!(Packet::new("10.0.0.9", "10.0.0.2", 80, 0).arriving(&plan), Redirected(1));
    assert_eq!(Packet::new("10.0.0.2", "10.0.0.9", 80, PROXY).leaving(&plan), Redirected(2));
    assert_eq!(Packet::new("10.0.0.2", "10.0.0.9", 80, 3).leaving(&plan), Direct);
}

#[test]
fn each_sign_of_the_sidecar_is_enough_and_nothing_else_is() {
    let proxy = Proxy { uid: None, gid: Some(7), mark: Some("0x10/0x30".parse().unwrap()) };
    let plan = plan(|options| options.proxy = proxy);
    let mut packet = Packet::new("10.0.0.2", "10.0.0.9", 80, PROXY);
    assert_eq!(packet.leaving(&plan), Redirected(15001), "no uid was given");
    packet.gid = Some(7);
    assert_eq!(packet.leaving(&plan), Direct);
    packet.gid = Some(8);
    for (mark, wanted) in [(0x10, Direct), (0xff10 & !0x20, Direct), (0x30, Redirected(15001)), (0, Redirected(15001))]
    {
        packet.mark = mark;
        assert_eq!(packet.leaving(&plan), wanted, "mark {mark:#x}");
    }
}

#[test]
fn of_several_inclusions_all_must_hold_and_an_exclusion_wins() {
    let plan = plan(|options| {
        options.include_inbound_ports = ports(&["8080", "22"]);
        options.exclude_inbound_ports = ports(&["22"]);
        options.include_inbound_cidrs = nets(&["10.0.0.0/24", "fd00::/64"]);
        options.include_outbound_ports = ports(&["80", "443"]);
        options.include_outbound_cidrs = nets(&["10.0.0.0/16"]);
        options.exclude_outbound_cidrs = nets(&["10.0.1.0/24"]);
        options.include_interfaces = interfaces(&["eth*"]);
        options.exclude_interfaces = interfaces(&["eth7"]);
    });
    let arriving = |from: &str, port, interface: &str| {
        let mut packet = Packet::new(from, if from.contains('.') { "10.0.0.2" } else { "fd00::2" }, port, 0);
        packet.interface = interface.to_owned();
        packet.arriving(&plan)
    };
    assert_eq!(arriving("10.0.0.9", 8080, "eth0"), Redirected(15006));
    assert_eq!(arriving("fd00::9", 8080, "eth1"), Redirected(15006));
    assert_eq!(arriving("10.0.0.9", 22, "eth0"), Direct);
    assert_eq!(arriving("10.0.0.9", 8081, "eth0"), Direct);
    assert_eq!(arriving("10.0.1.9", 8080, "eth0"), Direct);
    assert_eq!(arriving("10.0.0.9", 8080, "wlan0"), Direct);
    assert_eq!(arriving("10.0.0.9", 8080, "eth7"), Direct);
    // What dials the sidecar itself from outside is always met by the sidecar.
    assert_eq!(arriving("10.0.0.9", 15001, "eth0"), Redirected(15006));
    assert_eq!(arriving("10.0.0.9", 15006, "eth0"), Redirected(15006));
    let leaving = |to: &str, port, interface: &str| {
        let mut packet = Packet::new("10.0.0.2", to, port, APP);
        packet.interface = interface.to_owned();
        packet.leaving(&plan)
    };
    assert_eq!(leaving("10.0.0.9", 80, "eth0"), Redirected(15001));
    assert_eq!(leaving("10.0.0.9", 81, "eth0"), Direct);
    assert_eq!(leaving("10.1.0.9", 80, "eth0"), Direct);
    assert_eq!(leaving("10.0.1.9", 80, "eth0"), Direct);
    assert_eq!(leaving("10.0.0.9", 80, "wlan0"), Direct);
    assert_eq!(leaving("10.0.0.9", 80, "eth7"), Direct);
}

#[test]
fn users_that_are_excluded_are_left_alone() {
    let plan = plan(|options| options.exclude_uids = vec!["5".parse().unwrap(), "100-200".parse().unwrap()]);
    for (uid, wanted) in [(5, Direct), (100, Direct), (200, Direct), (201, Redirected(15001)), (0, Redirected(15001))] {
        assert_eq!(Packet::new("10.0.0.2", "10.0.0.9", 80, uid).leaving(&plan), wanted, "uid {uid}");
    }
}

#[test]
fn a_self_call_goes_where_the_options_say() {
    let plan = plan(|options| options.self_call = SelfCall::Inbound);
    assert_eq!(Packet::new("10.0.0.2", "10.0.0.2", 80, APP).leaving(&plan), Redirected(15006));
    assert_eq!(Packet::new("fd00::2", "fd00::2", 80, APP).leaving(&plan), Redirected(15006));
    assert_eq!(Packet::new("10.0.0.2", "10.0.0.2", TELEMETRY_PORT, APP).leaving(&plan), Direct);
    assert_eq!(Packet::new("127.0.0.1", "127.0.0.1", 80, APP).leaving(&plan), Direct);
    assert_eq!(Packet::new("::1", "::1", 80, APP).leaving(&plan), Direct);
    // The sidecar's leg that follows must not come back to it.
    assert_eq!(Packet::new("127.0.0.6", "10.0.0.2", 80, PROXY).leaving(&plan), Direct);
}

#[test]
fn invalid_segments_pass_when_that_is_asked_for() {
    let plan = plan(|options| options.drop_invalid = false);
    let mut packet = Packet::new("10.0.0.9", "10.0.0.2", 80, APP);
    (packet.opening, packet.invalid) = (false, true);
    assert_eq!(packet.arriving(&plan), Direct);
}

#[test]
fn tproxy_takes_a_connection_from_its_first_segment_to_its_last_and_no_other() {
    let plan = plan(|options| {
        options.mode = Mode::Tproxy;
        options.exclude_inbound_ports = ports(&["22"]);
    });
    let mut packet = Packet::new("10.0.0.9", "10.0.0.2", 8080, 0);
    let first = plan.decide(&Packet { uid: None, ..packet.clone() }, Way::Arriving);
    assert_eq!((first.decision, first.connection_mark), (Transparent(15006), INTERCEPTED));
    packet.opening = false;
    assert_eq!(packet.arriving(&plan), Direct, "a connection that was open before");
    packet.connection_mark = INTERCEPTED;
    assert_eq!(packet.arriving(&plan), Transparent(15006));
    packet.reply = true;
    assert_eq!(packet.arriving(&plan), Direct, "an answer to the sidecar's own connection");
    assert_eq!(Packet::new("10.0.0.9", "10.0.0.2", 22, 0).arriving(&plan), Direct);
    assert_eq!(Packet::new("172.17.0.5", "192.0.2.1", 443, 0).arriving(&plan), Direct, "forwarded for others");
}

#[test]
fn the_answers_to_a_transparent_leg_are_routed_to_the_sidecar() {
    let plan = plan(|options| options.mode = Mode::Tproxy);
    let mut leg = Packet::new("10.0.0.9", "10.0.0.2", 8080, PROXY);
    leg.interface = "lo".to_owned();
    let outcome = plan.decide(&leg, Way::Leaving);
    assert_eq!((outcome.decision, outcome.connection_mark, outcome.mark), (Direct, LEG, 0));
    let mut answer = Packet::new("10.0.0.2", "10.0.0.9", 40_000, APP);
    (answer.opening, answer.reply, answer.connection_mark) = (false, true, LEG);
    assert_eq!(plan.decide(&answer, Way::Leaving).mark, FWMARK);
    answer.connection_mark = INTERCEPTED;
    assert_eq!(plan.decide(&answer, Way::Leaving).mark, 0, "the sidecar's answer to the client itself");
    // Looped back, the leg's segments are not taken again.
    leg.connection_mark = LEG;
    assert_eq!(leg.arriving(&plan), Direct);
}

#[test]
fn dns_questions_are_redirected_and_tracked_apart() {
    let plan = plan(|options| {
        options.dns_port = Some(15053);
        options.exclude_outbound_cidrs = nets(&["192.0.2.0/24"]);
        options.include_outbound_ports = ports(&["80"]);
    });
    for protocol in [Udp, Tcp] {
        let question =
            |to: &str, uid| Packet { protocol, opening: protocol == Tcp, ..Packet::new("10.0.0.2", to, DNS_PORT, uid) };
        let fate = |packet: &Packet| {
            let outcome = plan.decide(packet, Way::Leaving);
            (outcome.decision, outcome.zone)
        };
        assert_eq!(fate(&question("10.0.0.9", APP)), (Redirected(15053), REDIRECTED_ZONE), "{protocol:?}");
        assert_eq!(fate(&question("127.0.0.11", APP)).0, Redirected(15053), "{protocol:?} to a local resolver");
        assert_eq!(fate(&question("10.0.0.9", PROXY)), (Direct, DIRECT_ZONE), "{protocol:?}");
        assert_eq!(fate(&question("192.0.2.1", APP)), (Direct, DIRECT_ZONE), "{protocol:?}");
        let mut answer = Packet { from_port: 15053, ..question("10.0.0.2", PROXY) };
        (answer.to_port, answer.interface, answer.opening) = (40_000, "lo".to_owned(), false);
        assert_eq!(fate(&answer), (Direct, REDIRECTED_ZONE), "{protocol:?}");
        let mut answer = Packet { from_port: DNS_PORT, ..question("10.0.0.2", 0) };
        (answer.to_port, answer.opening) = (40_000, false);
        assert_eq!(plan.decide(&answer, Way::Arriving).zone, DIRECT_ZONE, "{protocol:?}");
    }
}

#[test]
fn without_ipv6_nothing_is_said_of_it() {
    let plan = plan(|options| options.ipv6 = crate::Ipv6::Off);
    assert_eq!(Packet::new("fd00::9", "fd00::2", 80, 0).arriving(&plan), Direct);
    assert_eq!(Packet::new("fd00::2", "fd00::9", 80, APP).leaving(&plan), Direct);
    assert_eq!(Packet::new("10.0.0.9", "10.0.0.2", 80, 0).arriving(&plan), Redirected(15006));
}
