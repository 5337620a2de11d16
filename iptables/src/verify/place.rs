//! Where `verify` can stand: addresses, ports and a user whose connections the options do redirect.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
};

use nix::unistd::{getegid, geteuid};

use super::{outside::inner_names, sockets};
use crate::{
    Options,
    netlink::address,
    plan::{Decision, Family, Packet, Plan, Protocol, Way},
};

/// Ports where few listen, tried in this order.
const PORTS: [u16; 6] = [4, 7009, 8998, 29_995, 80, 8080];
/// Users that the application may be, for where we ourselves are left alone.
const USERS: [u32; 4] = [1000, 12_345, 65_533, 0];

/// A group that is not the sidecar's, for where ours is.
const ANOTHER_GROUP: u32 = 65_533;

/// What one family's connections need to know.
pub(super) struct Place {
    pub(super) family: Family,
    pub(super) interface: String,
    /// This host's address at the pair.
    pub(super) own: IpAddr,
    /// Somebody outside.
    pub(super) far: IpAddr,
    /// A port of the workload whose connections are the sidecar's, and on which nobody listens.
    pub(super) inbound: Option<u16>,
    /// A port of others whose connections are the sidecar's.
    pub(super) outbound: Option<u16>,
    /// As whom.
    pub(super) uid: u32,
    /// In which group, where ours is the sidecar's.
    pub(super) gid: Option<u32>,
}

/// Addresses and ports that these options redirect; else why there are none.
pub(super) fn place(options: &Options, plan: &Plan, family: Family) -> io::Result<Result<Place, String>> {
    let here: Vec<IpAddr> = address::all()?.into_iter().map(|(address, _)| address).collect();
    let listening: Vec<u16> = sockets::all()?.iter().filter(|open| open.listens()).map(|open| open.local.1).collect();
    let inner = inner_names(&options.include_interfaces);
    let included = options.include_inbound_cidrs.iter().chain(&options.include_outbound_cidrs);
    let mut addresses: Vec<IpAddr> = match family {
        // TEST-NET-1 to 3 (RFC 5737), and the network for benchmarks (RFC 2544).
        Family::V4 => [[192, 0, 2, 5], [198, 51, 100, 5], [203, 0, 113, 5], [198, 18, 0, 5]].map(IpAddr::from).to_vec(),
        // Documentation (RFC 3849, RFC 9637), and a unique local network (RFC 4193).
        Family::V6 => {
            ["2001:db8:6f72::5", "3fff:6f72::5", "fd6f:7574:7269::5"].iter().filter_map(|a| a.parse().ok()).collect()
        }
    };
    addresses
        .extend(included.filter(|net| family.has(net)).filter_map(|net| net.hosts().nth(3).or(net.hosts().next())));
    addresses.retain(|address| !here.contains(address));
    let ours = geteuid().as_raw();
    let gid = (options.proxy.gid == Some(getegid().as_raw())).then_some(ANOTHER_GROUP);
    let uids: Vec<u32> = [ours].into_iter().chain(USERS).collect();
    let ports: Vec<u16> = PORTS
        .into_iter()
        .chain(options.include_inbound_ports.iter().chain(&options.include_outbound_ports).map(|range| range.first()))
        .chain([options.outbound_port])
        .collect();
    let own = match family {
        Family::V4 => IpAddr::from([192, 0, 2, 4]),
        Family::V6 => "2001:db8:6f72::4".parse().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    if here.contains(&own) {
        return Ok(Err(format!("the address {own} is in use here, which verify would borrow")));
    }
    for interface in inner {
        let arriving =
            |far: IpAddr, port: u16| Packet { interface: interface.clone(), ..arriving((far, 40_000), (own, port)) };
        let leaving = |far: IpAddr, port: u16, uid: u32| Packet {
            interface: interface.clone(),
            ..leaving((own, 40_000), (far, port), uid, gid)
        };
        for far in &addresses {
            let inbound = ports.iter().copied().find(|port| {
                !listening.contains(port)
                    && plan.decide(&arriving(*far, *port), Way::Arriving).decision != Decision::Direct
            });
            let outbound = ports.iter().copied().find_map(|port| {
                let uid = uids.iter().copied().find(|uid| {
                    plan.decide(&leaving(*far, port, *uid), Way::Leaving).decision
                        == Decision::Redirected(options.outbound_port)
                })?;
                Some((port, uid))
            });
            // An address that serves both ways; the inclusions of one way need not hold those of the other.
            let enough = if options.include_inbound_cidrs.is_empty() == options.include_outbound_cidrs.is_empty() {
                inbound.is_some() && outbound.is_some()
            } else {
                inbound.is_some() || outbound.is_some()
            };
            if enough {
                let (outbound, uid) = outbound.map_or((None, ours), |(port, uid)| (Some(port), uid));
                return Ok(Ok(Place { family, interface, own, far: *far, inbound, outbound, uid, gid }));
            }
        }
    }
    let named = |nets: &[ipnet::IpNet]| nets.is_empty() || nets.iter().any(|net| family.has(net));
    Ok(Err(if !named(&options.include_inbound_cidrs) || !named(&options.include_outbound_cidrs) {
        "the networks that are included are of the other family".to_owned()
    } else if options.include_interfaces.is_empty() {
        "no address was found that these options redirect".to_owned()
    } else {
        "--include-interfaces names only interfaces that verify cannot stand in for".to_owned()
    }))
}

pub(super) fn arriving(from: (IpAddr, u16), to: (IpAddr, u16)) -> Packet {
    Packet {
        protocol: Protocol::Tcp,
        from: from.0,
        from_port: from.1,
        to: to.0,
        to_port: to.1,
        opening: true,
        invalid: false,
        reply: false,
        connection_mark: 0,
        mark: 0,
        uid: None,
        gid: None,
        interface: String::new(),
        from_this_host: false,
        to_this_host: true,
    }
}

pub(super) fn leaving(from: (IpAddr, u16), to: (IpAddr, u16), uid: u32, gid: Option<u32>) -> Packet {
    Packet {
        uid: Some(uid),
        gid: Some(gid.unwrap_or(getegid().as_raw())),
        from_this_host: true,
        to_this_host: false,
        ..arriving(from, to)
    }
}
