//! The words in which a plan is written: properties of packets, verdicts, and the kernel's places for them.

use std::fmt;

use ipnet::IpNet;

use crate::values::{Interface, Mark, PortRange, UidRange};

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

/// The places in the kernel's path that we use, in the order in which a packet meets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Arriving packets, before connection tracking.
    RawPrerouting,
    /// Packets made here, before connection tracking.
    RawOutput,
    /// Arriving packets, where the time-outs of their connection can be set.
    TimeoutPrerouting,
    /// Packets made here, where the time-outs of their connection can be set.
    TimeoutOutput,
    /// Arriving packets, after connection tracking and before NAT.
    FilterPrerouting,
    /// Packets made here, after connection tracking and before NAT; a new mark routes them anew.
    RouteOutput,
    /// The first packet of an arriving connection, before anybody else's NAT.
    NatPrerouting,
    /// The first packet of a connection made here, before anybody else's NAT.
    NatOutput,
}

/// Our chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChainName {
    /// Sets the time-outs of connections.
    Timeout,
    /// Sorts arriving DNS answers into the zone of their question.
    ZonesIn,
    /// Sorts DNS packets made here into zones.
    ZonesOut,
    /// Which zone a DNS question belongs to.
    Question,
    /// Drops what connection tracking cannot place.
    Invalid,
    /// Hands arriving connections to transparent sockets.
    Transparent,
    /// Whether a peer's connection is the sidecar's, by where it comes from.
    Peers,
    /// The same, by the peer's network, where the interface alone does not decide.
    PeersFrom,
    /// The ports of the workload that are handed to transparent sockets.
    Intercept,
    /// Keeps connections that are intercepted from the NAT of others.
    Untranslated,
    /// The ports of the workload that are redirected.
    Inbound,
    /// Has the application's answers to transparent connections come back to the sidecar.
    Leg,
    /// Connections of the workload and of its sidecar.
    Outbound,
    /// Which of them go to the sidecar, by the other's network.
    OutboundTo,
    /// Which of them go to the sidecar, by the other's port.
    OutboundPorts,
    /// The application's DNS questions over UDP.
    Dns,
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
    /// What it is for, in a word with which its comment in the kernel begins: letters and `-`.
    pub name: &'static str,
    /// All must hold; none means always.
    pub matches: Vec<Match>,
    /// What then happens.
    pub verdict: Verdict,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A property of a packet. A property that names addresses holds for packets of their family only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Of this IP version.
    Family(Family),
    /// Of this protocol.
    Protocol(Protocol),
    /// TCP, and the segment that opens a connection: SYN without ACK, RST and FIN.
    Opening,
    /// Connection tracking cannot place it.
    Invalid,
    /// From the side that opened the connection.
    Original,
    /// From the side that accepted the connection.
    Reply,
    /// Its connection bears this bit.
    ConnectionBit(u32),
    /// Addressed to an address of this host.
    ToThisHost,
    /// From an address that is not this host's.
    FromElsewhere,
    /// Arrived by one of these interfaces; at least one.
    ArrivedBy(Vec<Interface>),
    /// Leaving through one of these interfaces; at least one. `lo` for all that is addressed to this host.
    LeavingThrough(Vec<Interface>),
    /// From one of these networks.
    From(Vec<IpNet>),
    /// To one of these networks.
    To(Vec<IpNet>),
    /// Of this network's family, and not to it.
    NotTo(IpNet),
    /// To one of these ports of this protocol: sorted, without overlaps, at least one.
    ToPorts(Protocol, Vec<PortRange>),
    /// From one of these ports of this protocol: sorted, without overlaps, at least one.
    FromPorts(Protocol, Vec<PortRange>),
    /// Made by a process of one of these users: sorted, without overlaps, at least one.
    Uids(Vec<UidRange>),
    /// Made by a process of this group.
    Gid(u32),
    /// Made by a socket that bears this mark.
    Mark(Mark),
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Leave this chain.
    Return,
    /// Discard silently.
    Drop,
    /// To this port of this host.
    Redirect(Protocol, u16),
    /// To the transparent socket on this port; where there is none, discarded silently.
    Tproxy(u16),
    /// It goes where it is going, whatever NAT rules of others say. Nothing more at this place.
    KeepDestination,
    /// Through another chain, then on with the next rule.
    Jump(ChainName),
    /// Its connection is tracked in this zone, apart from those of others. Nothing more at this place.
    Zone(u16),
    /// Its connection gets the plan's time-outs. Nothing more at this place.
    Timeout,
    /// Its connection gets this bit; on with the next rule.
    SetConnectionBit(u32),
    /// It gets this bit, and so perhaps another route; on with the next rule.
    SetPacketBit(u32),
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

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

impl ChainName {
    /// As it is called in an nft table; `OUTRIGGER_` and the same in capitals in iptables.
    pub fn name(self) -> &'static str {
        match self {
            ChainName::Timeout => "timeouts",
            ChainName::ZonesIn => "zones_in",
            ChainName::ZonesOut => "zones_out",
            ChainName::Question => "question",
            ChainName::Invalid => "invalid",
            ChainName::Transparent => "transparent",
            ChainName::Peers => "peers",
            ChainName::PeersFrom => "peers_from",
            ChainName::Intercept => "intercept",
            ChainName::Untranslated => "untranslated",
            ChainName::Inbound => "inbound",
            ChainName::Leg => "leg",
            ChainName::Outbound => "outbound",
            ChainName::OutboundTo => "outbound_to",
            ChainName::OutboundPorts => "outbound_ports",
            ChainName::Dns => "dns",
        }
    }
}
