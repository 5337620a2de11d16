//! Options in, wanted rules out. Pure: no I/O, no knowledge of a tool. The backends only translate.
//!
//! Why each rule is there, in the order in which a packet meets them:
//!
//! - Only the segment that opens a connection (SYN alone) is looked at. Matching more would reset connections that were
//!   open before the rules were; matching less is not possible, since NAT decides at a connection's first packet.
//! - Inbound, only what is addressed to this host is taken. A workload that forwards for others (containers in a VM)
//!   keeps forwarding.
//! - Inbound, 15020 alone is let through, for probes and scrapers. The sidecar's other ports are *not* excluded: a peer
//!   that dials 15001 or 15006 lands on the inbound port with that original port, and the sidecar refuses it; excluding
//!   15001 would let outsiders use the sidecar as if they were the application. 15000 is bound to loopback, and taken
//!   like any other port in case an operator binds it wider: then it is behind mTLS.
//! - `INVALID` segments to this host are dropped. They pass NAT untouched, so the application's port would answer with
//!   a reset that kills the healthy connection of the sidecar (istio PR 36566).
//! - Outbound, `fe80::/10` is left alone: a redirected link-local connection loses its scope and times out. It comes
//!   before the self-call rule for the same reason.
//! - The sidecar's second leg to the application comes from 127.0.0.6 or ::6 and must not be taken again.
//! - The sidecar that balances onto its own pod arrives like any peer: through the inbound port, excluded ports as ever.
//! - Everything else of the sidecar, and every loopback connection of the application (which includes calls to its
//!   own address), is direct.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{InvalidOption, LEG_ADDRESS_V6, Options, PortRange};

/// The sidecar's health and metrics port, which probes and scrapers reach from outside without a certificate.
pub const TELEMETRY_PORT: u16 = 15020;
/// The source of the sidecar's leg to its application over IPv4; Istio's.
pub const LEG_ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// The rules wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where packets enter our chains.
    pub hooks: Vec<Hook>,
    /// The chains, each called by a hook or by another chain.
    pub chains: Vec<Chain>,
}

/// A place in the kernel's path from which a chain is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The place.
    pub point: Point,
    /// Only packets that match all of these are handed to the chain.
    pub guard: Vec<Match>,
    /// The chain.
    pub chain: ChainName,
}

/// The places in the kernel's path that we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Arriving packets, after connection tracking and before NAT.
    FilterPrerouting,
    /// The first packet of an arriving connection, before anybody else's NAT.
    NatPrerouting,
    /// The first packet of a connection made here, before anybody else's NAT.
    NatOutput,
}

/// Our chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainName {
    /// Drops what connection tracking cannot place.
    Invalid,
    /// Connections to the workload.
    Inbound,
    /// Connections of the workload and of its sidecar.
    Outbound,
}

/// Rules, tried in order; at the end a packet goes back to where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: ChainName,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// What to do with a packet that matches everything listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold; none means always.
    pub matches: Vec<Match>,
    /// What then happens.
    pub verdict: Verdict,
}

/// A property of a packet. A property that names addresses holds for packets of their family only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// TCP.
    Tcp,
    /// TCP, and the segment that opens a connection: SYN without ACK, RST and FIN.
    Opening,
    /// Connection tracking cannot place it.
    Invalid,
    /// Addressed to an address of this host.
    ToThisHost,
    /// Leaving through `lo`, as everything does that is addressed to this host.
    ViaLoopback,
    /// From one of these networks.
    From(Vec<IpNet>),
    /// To one of these networks.
    To(Vec<IpNet>),
    /// Of this network's family, and not to it.
    NotTo(IpNet),
    /// To one of these ports: sorted, without overlaps, at least one.
    ToPorts(Vec<PortRange>),
    /// Made by a process of this user.
    Uid(u32),
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Leave this chain.
    Return,
    /// Discard silently.
    Drop,
    /// To this port of this host.
    Redirect(u16),
    /// Through another chain, then on with the next rule.
    Jump(ChainName),
}

/// An IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// Whether the network is of this family.
    pub fn has(self, net: &IpNet) -> bool {
        matches!((self, net), (Family::V4, IpNet::V4(_)) | (Family::V6, IpNet::V6(_)))
    }
}

impl Plan {
    /// The rules for these options.
    ///
    /// # Errors
    /// When options contradict each other.
    pub fn new(options: &Options) -> Result<Self, InvalidOption> {
        options.check()?;
        let loopback = |uid, net| {
            rule(vec![Match::ViaLoopback, Match::Uid(uid), Match::NotTo(net)], Verdict::Jump(ChainName::Inbound))
        };
        let uid = options.proxy_uid;

        let mut inbound_ports = options.exclude_inbound_ports.clone();
        inbound_ports.extend(PortRange::single(TELEMETRY_PORT));
        let inbound = vec![
            rule(vec![Match::ToPorts(PortRange::normalise(inbound_ports))], Verdict::Return),
            rule(vec![], Verdict::Redirect(options.inbound_port)),
        ];

        let mut outbound = vec![
            rule(vec![Match::ViaLoopback, Match::From(vec![leg_v4(), leg_v6()])], Verdict::Return),
            rule(vec![Match::To(vec![link_local()])], Verdict::Return),
            loopback(uid, loopback_v4()),
            loopback(uid, loopback_v6()),
            rule(vec![Match::Uid(uid)], Verdict::Return),
            rule(vec![Match::ViaLoopback], Verdict::Return),
        ];
        if !options.exclude_outbound_ports.is_empty() {
            let ports = PortRange::normalise(options.exclude_outbound_ports.clone());
            outbound.push(rule(vec![Match::ToPorts(ports)], Verdict::Return));
        }
        if !options.exclude_outbound_cidrs.is_empty() {
            let nets = IpNet::aggregate(&options.exclude_outbound_cidrs);
            outbound.push(rule(vec![Match::To(nets)], Verdict::Return));
        }
        outbound.push(rule(vec![], Verdict::Redirect(options.outbound_port)));

        Ok(Self {
            hooks: vec![
                Hook { point: Point::FilterPrerouting, guard: vec![Match::Tcp], chain: ChainName::Invalid },
                Hook {
                    point: Point::NatPrerouting,
                    guard: vec![Match::Opening, Match::ToThisHost],
                    chain: ChainName::Inbound,
                },
                Hook { point: Point::NatOutput, guard: vec![Match::Opening], chain: ChainName::Outbound },
            ],
            chains: vec![
                Chain {
                    name: ChainName::Invalid,
                    rules: vec![rule(vec![Match::Invalid, Match::ToThisHost], Verdict::Drop)],
                },
                Chain { name: ChainName::Inbound, rules: inbound },
                Chain { name: ChainName::Outbound, rules: outbound },
            ],
        })
    }
}

fn rule(matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { matches, verdict }
}

fn leg_v4() -> IpNet {
    IpNet::from(IpAddr::V4(LEG_ADDRESS_V4))
}

fn leg_v6() -> IpNet {
    IpNet::from(IpAddr::V6(LEG_ADDRESS_V6))
}

fn loopback_v4() -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8))
}

fn loopback_v6() -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128))
}

fn link_local() -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
