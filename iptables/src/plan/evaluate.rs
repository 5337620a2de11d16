//! What a plan decides for a packet: its rules walked as the kernel walks them. Tests hold the backends against this,
//! and `verify` the kernel.

use std::net::IpAddr;

use super::{ChainName, Family, Match, Plan, Point, Protocol, Verdict};

/// A packet, and what the kernel knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Its transport protocol.
    pub protocol: Protocol,
    /// Its source.
    pub from: IpAddr,
    /// Its source port.
    pub from_port: u16,
    /// Its destination.
    pub to: IpAddr,
    /// Its destination port.
    pub to_port: u16,
    /// TCP: SYN without ACK, RST and FIN.
    pub opening: bool,
    /// Connection tracking cannot place it.
    pub invalid: bool,
    /// It comes from the side that accepted the connection.
    pub reply: bool,
    /// The mark of its connection.
    pub connection_mark: u32,
    /// Its own mark.
    pub mark: u32,
    /// The user of the socket that made it, where there is one.
    pub uid: Option<u32>,
    /// The group of the socket that made it, where there is one.
    pub gid: Option<u32>,
    /// The interface by which it arrived, or through which it leaves.
    pub interface: String,
    /// Whether its source is an address of this host.
    pub from_this_host: bool,
    /// Whether its destination is an address of this host.
    pub to_this_host: bool,
}

/// Which way a packet passes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From an interface to this host, or through it.
    Arriving,
    /// From a socket of this host.
    Leaving,
}

impl Way {
    /// The places that it leads through, in order.
    pub fn points(self) -> &'static [Point] {
        use Point::{
            FilterPrerouting, NatOutput, NatPrerouting, RawOutput, RawPrerouting, RouteOutput, TimeoutOutput,
            TimeoutPrerouting,
        };
        match self {
            Way::Arriving => &[RawPrerouting, TimeoutPrerouting, FilterPrerouting, NatPrerouting],
            Way::Leaving => &[RawOutput, TimeoutOutput, RouteOutput, NatOutput],
        }
    }
}

/// Where a packet ends up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Where it was going.
    Direct,
    /// At this port of this host.
    Redirected(u16),
    /// At the transparent socket on this port, or nowhere.
    Transparent(u16),
    /// Nowhere.
    Dropped,
}

/// All that the rules do to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Where it ends up.
    pub decision: Decision,
    /// The rule that spoke last, as its chain and its place in it. `None` where no rule did.
    pub by: Option<(ChainName, usize)>,
    /// The zone in which it is tracked; 0 is that of everybody.
    pub zone: u16,
    /// Whether its connection got the plan's time-outs.
    pub timeout: bool,
    /// The mark of its connection, afterwards.
    pub connection_mark: u32,
    /// Its own mark, afterwards.
    pub mark: u32,
}

/// Whether a place is left, and how.
enum Step {
    On,
    Left,
    Decided(Decision),
}

impl Packet {
    /// Its IP version.
    pub fn family(&self) -> Family {
        if self.to.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Whether it has the property, `so_far` being what earlier rules have made of its marks.
    fn has(&self, property: &Match, way: Way, so_far: &Outcome) -> bool {
        match property {
            Match::Family(family) => self.family() == *family,
            Match::Protocol(protocol) => self.protocol == *protocol,
            Match::Opening => self.protocol == Protocol::Tcp && self.opening,
            Match::Invalid => self.invalid,
            // What cannot be placed has no side.
            Match::Original => !self.invalid && !self.reply,
            Match::Reply => !self.invalid && self.reply,
            Match::ConnectionBit(bit) => !self.invalid && so_far.connection_mark & bit != 0,
            Match::ToThisHost => self.to_this_host,
            Match::FromElsewhere => !self.from_this_host,
            Match::ArrivedBy(list) => way == Way::Arriving && list.iter().any(|each| each.is(&self.interface)),
            Match::LeavingThrough(list) => way == Way::Leaving && list.iter().any(|each| each.is(&self.interface)),
            Match::From(nets) => nets.iter().any(|net| net.contains(&self.from)),
            Match::To(nets) => nets.iter().any(|net| net.contains(&self.to)),
            Match::NotTo(net) => self.family().has(net) && !net.contains(&self.to),
            Match::ToPorts(protocol, ranges) => {
                self.protocol == *protocol && ranges.iter().any(|range| range.contains(self.to_port))
            }
            Match::FromPorts(protocol, ranges) => {
                self.protocol == *protocol && ranges.iter().any(|range| range.contains(self.from_port))
            }
            Match::Uids(ranges) => self.uid.is_some_and(|uid| ranges.iter().any(|range| range.contains(uid))),
            Match::Gid(gid) => self.gid == Some(*gid),
            Match::Mark(mark) => mark.is_on(so_far.mark),
        }
    }
}

impl Plan {
    /// What the rules do to a packet on its way.
    pub fn decide(&self, packet: &Packet, way: Way) -> Outcome {
        let mut outcome = Outcome {
            decision: Decision::Direct,
            by: None,
            zone: 0,
            timeout: false,
            connection_mark: packet.connection_mark,
            mark: packet.mark,
        };
        for point in way.points() {
            for hook in self.hooks.iter().filter(|hook| hook.point == *point) {
                if !hook.guard.iter().all(|property| packet.has(property, way, &outcome)) {
                    continue;
                }
                match self.walk(packet, way, hook.chain, &mut outcome) {
                    Step::On => {}
                    Step::Left => break,
                    Step::Decided(decision) => {
                        outcome.decision = decision;
                        return outcome;
                    }
                }
            }
        }
        outcome
    }

    fn walk(&self, packet: &Packet, way: Way, chain: ChainName, outcome: &mut Outcome) -> Step {
        for (index, rule) in self.rules(chain).iter().enumerate() {
            if !rule.matches.iter().all(|property| packet.has(property, way, outcome)) {
                continue;
            }
            let decided = match rule.verdict {
                Verdict::Return => {
                    outcome.by = Some((chain, index));
                    return Step::On;
                }
                Verdict::Drop => Decision::Dropped,
                Verdict::Redirect(_, port) => Decision::Redirected(port),
                Verdict::Tproxy(port) => Decision::Transparent(port),
                Verdict::Jump(to) => match self.walk(packet, way, to, outcome) {
                    Step::On => continue,
                    other => return other,
                },
                Verdict::KeepDestination => return Step::Left,
                Verdict::Zone(zone) => {
                    outcome.zone = zone;
                    return Step::Left;
                }
                Verdict::Timeout => {
                    outcome.timeout = true;
                    return Step::Left;
                }
                Verdict::SetConnectionBit(bit) => {
                    outcome.connection_mark |= bit;
                    continue;
                }
                Verdict::SetPacketBit(bit) => {
                    outcome.mark |= bit;
                    continue;
                }
            };
            outcome.by = Some((chain, index));
            return Step::Decided(decided);
        }
        Step::On
    }
}
