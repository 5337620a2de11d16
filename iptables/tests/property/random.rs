//! Random options, and random packets that come near their edges.

use std::{net::IpAddr, time::Duration};

use fastrand::Rng;
use ipnet::IpNet;
use outrigger_iptables::{
    Interface, Ipv6, Mode, Options, PortRange, Proxy, SelfCall, UidRange, parse_cidr,
    plan::{Packet, Protocol, Way},
};

const NETS: [&str; 14] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "192.0.2.0/25",
    "0.0.0.0/1",
    "172.16.0.0/12",
    "fd00::/8",
    "fd00:1::/32",
    "fd00:1::7/128",
    "2001:db8::/33",
    "fe80::/10",
    "::/1",
    "127.0.0.0/8",
];
const INTERFACES: [&str; 6] = ["eth0", "eth1", "eth*", "cali*", "lo", "wg-0.5_x"];
const UIDS: [u32; 10] = [0, 1, 999, 1000, 1001, 1337, 1338, 65_534, 100_000, u32::MAX - 1];
const MARKS: [u32; 6] = [0, 0x10, 0x30, 0x539, 0x1000, 0xffff_ffff];

fn some<T>(random: &mut Rng, most: usize, make: impl Fn(&mut Rng) -> T) -> Vec<T> {
    // Half of all lists are empty, as they are in life.
    let count = if random.bool() { 0 } else { random.usize(1..=most) };
    (0..count).map(|_| make(random)).collect()
}

fn ports(random: &mut Rng) -> PortRange {
    let first = random.u16(1..=u16::MAX);
    let last = if random.bool() { first } else { first.saturating_add(random.u16(0..300)) };
    format!("{first}-{last}").parse().unwrap()
}

fn nets(random: &mut Rng) -> IpNet {
    parse_cidr(NETS[random.usize(..NETS.len())]).unwrap()
}

fn interface(random: &mut Rng) -> Interface {
    INTERFACES[random.usize(..INTERFACES.len())].parse().unwrap()
}

fn uids(random: &mut Rng) -> UidRange {
    let first = UIDS[random.usize(..UIDS.len())];
    let last = if random.bool() { first } else { first.saturating_add(random.u32(0..2_000)).min(u32::MAX - 1) };
    format!("{first}-{last}").parse().unwrap()
}

pub(crate) fn options(random: &mut Rng) -> Options {
    loop {
        let options = Options {
            mode: if random.bool() { Mode::Redirect } else { Mode::Tproxy },
            inbound_port: if random.bool() { 15_006 } else { random.u16(1..) },
            outbound_port: if random.bool() { 15_001 } else { random.u16(1..) },
            proxy: Proxy {
                uid: random.bool().then_some(1337),
                gid: random.bool().then_some(1337),
                mark: random.bool().then(|| "0x10/0x30".parse().unwrap()),
            },
            self_call: if random.bool() { SelfCall::Direct } else { SelfCall::Inbound },
            include_inbound_ports: some(random, 40, ports),
            exclude_inbound_ports: some(random, 40, ports),
            include_inbound_cidrs: some(random, 5, nets),
            exclude_inbound_cidrs: some(random, 5, nets),
            include_outbound_ports: some(random, 40, ports),
            exclude_outbound_ports: some(random, 40, ports),
            include_outbound_cidrs: some(random, 5, nets),
            exclude_outbound_cidrs: some(random, 5, nets),
            exclude_uids: some(random, 4, uids),
            include_interfaces: some(random, 3, interface),
            exclude_interfaces: some(random, 3, interface),
            dns_port: random.bool().then_some(15_053),
            drop_invalid: random.bool(),
            close_wait_timeout: random.bool().then_some(Duration::from_secs(3_600)),
            ipv6: if random.u8(..4) == 0 { Ipv6::Off } else { Ipv6::Auto },
        };
        // Contradictions are refused, and tested elsewhere.
        if outrigger_iptables::plan::Plan::new(&options).is_ok() {
            return options;
        }
    }
}

fn address(random: &mut Rng, v4: bool) -> IpAddr {
    loop {
        let net = nets(random);
        if net.addr().is_ipv4() != v4 {
            continue;
        }
        return match net {
            IpNet::V4(net) => {
                let host = u32::MAX.checked_shr(net.prefix_len().into()).unwrap_or(0);
                let inside = u32::from(net.network()) | (random.u32(..) & host);
                // Its first, its last, one past it, or any.
                let edge =
                    [inside, net.network().into(), net.broadcast().into(), u32::from(net.broadcast()).wrapping_add(1)];
                IpAddr::V4(if random.u8(..9) == 0 { [127, 0, 0, 6].into() } else { edge[random.usize(..4)].into() })
            }
            IpNet::V6(net) => {
                let host = u128::MAX.checked_shr(net.prefix_len().into()).unwrap_or(0);
                let inside = u128::from(net.network()) | (random.u128(..) & host);
                let edge = [
                    inside,
                    net.network().into(),
                    net.broadcast().into(),
                    u128::from(net.broadcast()).wrapping_add(1),
                    1,
                    6,
                ];
                IpAddr::V6(edge[random.usize(..6)].into())
            }
        };
    }
}

fn port(random: &mut Rng, options: &Options) -> u16 {
    let all = [
        &options.include_inbound_ports,
        &options.exclude_inbound_ports,
        &options.include_outbound_ports,
        &options.exclude_outbound_ports,
    ];
    let list = all[random.usize(..4)];
    match random.u8(..4) {
        0 => [53, 15_020, 15_053, options.inbound_port, options.outbound_port][random.usize(..5)],
        1 => random.u16(..),
        _ if list.is_empty() => random.u16(..),
        _ => {
            let range = list[random.usize(..list.len())];
            [range.first(), range.last(), range.first().wrapping_sub(1), range.last().wrapping_add(1)]
                [random.usize(..4)]
        }
    }
}

pub(crate) fn packet(random: &mut Rng, options: &Options, way: Way) -> Packet {
    let v4 = random.bool();
    let invalid = random.u8(..8) == 0;
    let owned = way == Way::Leaving && random.u8(..8) > 0;
    let interfaces = ["eth0", "eth1", "eth7", "cali12", "lo", "wlan0", "wg-0.5_x"];
    Packet {
        protocol: if random.u8(..4) == 0 { Protocol::Udp } else { Protocol::Tcp },
        from: address(random, v4),
        from_port: port(random, options),
        to: address(random, v4),
        to_port: port(random, options),
        opening: random.u8(..3) > 0,
        invalid,
        reply: random.bool(),
        connection_mark: [0, 0x1000, 0x2000, 0x3000, 7][random.usize(..5)],
        mark: MARKS[random.usize(..MARKS.len())],
        uid: owned.then(|| UIDS[random.usize(..UIDS.len())]),
        gid: owned.then(|| UIDS[random.usize(..UIDS.len())]),
        interface: interfaces[random.usize(..interfaces.len())].to_owned(),
        from_this_host: random.bool(),
        to_this_host: random.bool(),
    }
}
