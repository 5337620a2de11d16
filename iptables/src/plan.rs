//! Options in, wanted rules out. Pure: no I/O, no knowledge of a tool. The backends only translate.
//!
//! Why each rule is there, in the order in which a packet meets them:
//!
//! - Only the segment that opens a connection (SYN alone) is looked at. Matching more would reset connections that were
//!   open before the rules were; matching less is not possible, since NAT decides at a connection's first packet.
//! - Inbound, only what is addressed to this host is taken. A workload that forwards for others (containers in a VM)
//!   keeps forwarding.
//! - Inbound, 15020 alone is let through, for probes and scrapers. The sidecar's other ports are *not* excluded, and
//!   always included: a peer that dials 15001 or 15006 lands on the inbound port with that original port, and the
//!   sidecar refuses it; excluding 15001 would let outsiders use the sidecar as if they were the application. 15000 is
//!   bound to loopback, and taken like any other port in case an operator binds it wider: then it is behind mTLS.
//! - `INVALID` segments to this host are dropped. They pass NAT untouched, so the application's port would answer with
//!   a reset that kills the healthy connection of the sidecar (istio PR 36566).
//! - Outbound, `fe80::/10` is left alone: a redirected link-local connection loses its scope and times out. It comes
//!   before the self-call rule for the same reason.
//! - The sidecar's second leg to the application comes from 127.0.0.6 or ::6 and must not be taken again.
//! - The sidecar that balances onto its own pod arrives like any peer: through the inbound port, excluded ports as ever.
//! - Everything else of the sidecar, and every loopback connection of the application (which, unless `self_call` says
//!   otherwise, includes calls to its own address), is direct.
//! - An inclusion is a chain of its own, entered by what is included: iptables cannot say "none of these networks" in a
//!   rule. Of several inclusions each leads to the next, so that all must hold.
//!
//! TPROXY (`mode`): a connection that is taken bears a bit in connection tracking. Its later segments go to the same
//! listener, so that one whose handshake was kept in a SYN cookie finds it; without the bit, connections that were open
//! before would be cut. A user's own DNAT, which comes after, must not translate it: its socket bears the address that was
//! dialled. Where no transparent socket listens the packet is discarded: nft's own `tproxy` would let it go
//! on to the application. The sidecar's leg bears the client's address, so its answers would leave for the network: the
//! leg's connection bears another bit, and packets that answer it are marked and routed to `lo` ([`FWMARK`]). A client that
//! sends from the leg's own port is taken for the leg: what bears its bit and does not come by `lo` is dropped, or it
//! would be read by the application.
//!
//! DNS (`dns_port`): question and answer of the application are tracked in one zone, those of everybody else in another.
//! In one zone for both, a source port that the sidecar's own resolver uses shortly after the application would find the
//! application's translation and come back as a loop; the other way round a question would pass the sidecar by. What is
//! left alone otherwise is left alone here; inclusions do not speak of DNS, since resolvers are seldom in them.

mod evaluate;
mod model;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use evaluate::{Decision, Outcome, Packet, Way};
pub use model::{Chain, ChainName, Family, Hook, Match, Point, Protocol, Rule, Verdict};

use crate::{
    InvalidOption, LEG_ADDRESS_V6, Options,
    options::{Mode, SelfCall},
    values::{Interface, PortRange, UidRange},
};
use model::{Protocol::Tcp, Protocol::Udp};

/// The sidecar's health and metrics port, which probes and scrapers reach from outside without a certificate.
pub const TELEMETRY_PORT: u16 = 15020;
/// The source of the sidecar's leg to its application over IPv4; Istio's.
pub const LEG_ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The bit of a packet's mark by which answers to the sidecar's transparent leg are routed to it. Free of those of
/// kube-proxy (0x4000, 0x8000), Istio and Linkerd (1337), Cilium (0x0f00), Calico (the upper half), wg-quick (0xca6c).
pub const FWMARK: u32 = 0x1000;
/// The bit of a connection's mark that says: taken by TPROXY.
pub const INTERCEPTED: u32 = 0x1000;
/// The bit of a connection's mark that says: the sidecar's transparent leg.
pub const LEG: u32 = 0x2000;
/// Where DNS questions go (RFC 1035 section 4.2).
pub const DNS_PORT: u16 = 53;
/// The zone of DNS exchanges that nobody redirects.
pub const DIRECT_ZONE: u16 = 1;
/// The zone of DNS exchanges that are redirected.
pub const REDIRECTED_ZONE: u16 = 2;

/// The rules wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where packets enter our chains.
    pub hooks: Vec<Hook>,
    /// The chains, each after those that it calls.
    pub chains: Vec<Chain>,
    /// The families that the rules speak of.
    pub families: &'static [Family],
    /// What [`Verdict::Timeout`] sets: connection tracking's `close_wait`, in whole seconds.
    pub close_wait: Option<Duration>,
    /// Whether packets with [`FWMARK`] must be routed to `lo`.
    pub routes_to_loopback: bool,
}

impl Plan {
    /// The rules for these options.
    ///
    /// # Errors
    /// When options contradict each other.
    pub fn new(options: &Options) -> Result<Self, InvalidOption> {
        options.check()?;
        let mut plan = Self {
            hooks: Vec::new(),
            chains: Vec::new(),
            families: options.families(),
            close_wait: options.close_wait_timeout,
            routes_to_loopback: options.mode == Mode::Tproxy,
        };
        plan.zones(options);
        plan.timeouts(options);
        plan.arriving(options);
        plan.leaving(options);
        if let [only] = plan.families {
            plan.hooks.iter_mut().for_each(|hook| hook.guard.insert(0, Match::Family(*only)));
        }
        Ok(plan)
    }

    /// The rules of a chain; none when there is no such chain.
    pub fn rules(&self, name: ChainName) -> &[Rule] {
        self.chains.iter().find(|chain| chain.name == name).map(|chain| chain.rules.as_slice()).unwrap_or_default()
    }

    fn hook(&mut self, point: Point, guard: Vec<Match>, chain: ChainName) {
        self.hooks.push(Hook { point, guard, chain });
    }

    fn chain(&mut self, name: ChainName, rules: Vec<Rule>) {
        self.chains.push(Chain { name, rules });
    }

    fn zones(&mut self, options: &Options) {
        let Some(port) = options.dns_port else { return };
        let mut direct = left_alone(options, true);
        for each in &mut direct {
            each.verdict = Verdict::Zone(DIRECT_ZONE);
        }
        direct.push(rule("redirected", vec![], Verdict::Zone(REDIRECTED_ZONE)));
        self.chain(ChainName::Question, direct);
        let (mut outgoing, mut incoming) = (Vec::new(), Vec::new());
        if options.mode == Mode::Tproxy {
            // A workload that serves DNS: its answer to the leg must find the leg's connection to get its mark.
            outgoing.extend(identities(options).into_iter().map(|identity| {
                let matches = vec![Match::Protocol(Tcp), through_loopback(), identity, Match::FromElsewhere];
                rule("leg", matches, Verdict::Return)
            }));
        }
        for protocol in [Udp, Tcp] {
            // No owner is asked for: a SYN-ACK has none yet.
            for property in [Match::FromPorts(protocol, one(port)), Match::ToPorts(protocol, one(port))] {
                let matches = vec![through_loopback(), property];
                outgoing.push(rule("dns-port", matches, Verdict::Zone(REDIRECTED_ZONE)));
            }
            let question = vec![Match::ToPorts(protocol, one(DNS_PORT))];
            outgoing.push(rule("question", question, Verdict::Jump(ChainName::Question)));
            let answer = vec![Match::FromPorts(protocol, one(DNS_PORT))];
            incoming.push(rule("answer", answer, Verdict::Zone(DIRECT_ZONE)));
        }
        self.chain(ChainName::ZonesOut, outgoing);
        self.chain(ChainName::ZonesIn, incoming);
        self.hook(Point::RawPrerouting, vec![], ChainName::ZonesIn);
        self.hook(Point::RawOutput, vec![], ChainName::ZonesOut);
    }

    fn timeouts(&mut self, options: &Options) {
        if options.close_wait_timeout.is_none() {
            return;
        }
        let mut rules = Vec::new();
        // In iptables one target sets both, and a packet has one of it.
        if let Some(port) = options.dns_port {
            let ports = PortRange::normalise([DNS_PORT, port].into_iter().filter_map(PortRange::single).collect());
            rules.push(rule("dns", vec![Match::ToPorts(Tcp, ports.clone())], Verdict::Return));
            rules.push(rule("dns", vec![Match::FromPorts(Tcp, ports)], Verdict::Return));
        }
        rules.push(rule("close-wait", vec![Match::Protocol(Tcp)], Verdict::Timeout));
        self.chain(ChainName::Timeout, rules);
        self.hook(Point::TimeoutPrerouting, vec![Match::Opening], ChainName::Timeout);
        self.hook(Point::TimeoutOutput, vec![Match::Opening], ChainName::Timeout);
    }

    fn arriving(&mut self, options: &Options) {
        let redirect = [("redirect", Verdict::Redirect(Tcp, options.inbound_port))];
        self.chain(ChainName::Inbound, workload_ports(options, &redirect));
        if options.drop_invalid {
            let invalid = vec![rule("invalid", vec![Match::Invalid, Match::ToThisHost], Verdict::Drop)];
            self.chain(ChainName::Invalid, invalid);
            self.hook(Point::FilterPrerouting, vec![Match::Protocol(Tcp)], ChainName::Invalid);
        }
        let opened = vec![Match::Opening, Match::ToThisHost];
        match options.mode {
            Mode::Redirect => {
                self.peers(options, Verdict::Jump(ChainName::Inbound));
                self.hook(Point::NatPrerouting, opened, ChainName::Peers);
            }
            Mode::Tproxy => {
                // The bit first: a packet that has gone to its socket meets no further rule.
                let verdicts = [
                    ("tproxy", Verdict::SetConnectionBit(INTERCEPTED)),
                    ("tproxy", Verdict::Tproxy(options.inbound_port)),
                ];
                self.chain(ChainName::Intercept, workload_ports(options, &verdicts));
                self.peers(options, Verdict::Jump(ChainName::Intercept));
                let again = vec![Match::Protocol(Tcp), Match::Original, Match::ConnectionBit(INTERCEPTED)];
                let rules = vec![
                    rule("loopback", vec![Match::ArrivedBy(vec![lo()])], Verdict::Return),
                    rule("leg", vec![Match::Original, Match::ToThisHost, Match::ConnectionBit(LEG)], Verdict::Drop),
                    rule("intercepted", again, Verdict::Tproxy(options.inbound_port)),
                    rule("peers", opened, Verdict::Jump(ChainName::Peers)),
                ];
                self.chain(ChainName::Transparent, rules);
                self.hook(Point::FilterPrerouting, vec![Match::Protocol(Tcp)], ChainName::Transparent);
                self.chain(ChainName::Untranslated, vec![rule("untranslated", vec![], Verdict::KeepDestination)]);
                let taken = vec![Match::Opening, Match::ConnectionBit(INTERCEPTED)];
                self.hook(Point::NatPrerouting, taken, ChainName::Untranslated);
                self.leg(options);
            }
        }
    }

    /// Whom the workload is guarded from, ending with what happens to them.
    fn peers(&mut self, options: &Options, verdict: Verdict) {
        let mut rules = Vec::new();
        if !options.exclude_interfaces.is_empty() {
            let matches = vec![Match::ArrivedBy(options.exclude_interfaces.clone())];
            rules.push(rule("exclude-interfaces", matches, Verdict::Return));
        }
        if !options.exclude_inbound_cidrs.is_empty() {
            let matches = vec![Match::From(IpNet::aggregate(&options.exclude_inbound_cidrs))];
            rules.push(rule("exclude-cidrs", matches, Verdict::Return));
        }
        let from = (!options.include_inbound_cidrs.is_empty())
            .then(|| Match::From(IpNet::aggregate(&options.include_inbound_cidrs)));
        if options.include_interfaces.is_empty() {
            rules.push(rule("inbound", from.into_iter().collect(), verdict));
        } else {
            let by = vec![Match::ArrivedBy(options.include_interfaces.clone())];
            match from {
                None => rules.push(rule("include-interfaces", by, verdict)),
                Some(from) => {
                    self.chain(ChainName::PeersFrom, vec![rule("include-cidrs", vec![from], verdict)]);
                    rules.push(rule("include-interfaces", by, Verdict::Jump(ChainName::PeersFrom)));
                }
            }
        }
        self.chain(ChainName::Peers, rules);
    }

    fn leg(&mut self, options: &Options) {
        let mut rules: Vec<Rule> = identities(options)
            .into_iter()
            .map(|identity| {
                let matches = vec![through_loopback(), identity, Match::FromElsewhere, Match::Original];
                rule("leg", matches, Verdict::SetConnectionBit(LEG))
            })
            .collect();
        let answer = vec![Match::Reply, Match::ConnectionBit(LEG)];
        rules.push(rule("answer", answer, Verdict::SetPacketBit(FWMARK)));
        self.chain(ChainName::Leg, rules);
        self.hook(Point::RouteOutput, vec![Match::Protocol(Tcp)], ChainName::Leg);
    }

    fn leaving(&mut self, options: &Options) {
        let mut rules =
            vec![rule("leg", vec![through_loopback(), Match::From(vec![leg_v4(), leg_v6()])], Verdict::Return)];
        if options.mode == Mode::Tproxy {
            rules.push(rule("leg", vec![through_loopback(), Match::FromElsewhere], Verdict::Return));
        }
        rules.push(link_local_alone());
        for identity in identities(options) {
            for loopback in [loopback_v4(), loopback_v6()] {
                let matches = vec![through_loopback(), identity.clone(), Match::NotTo(loopback)];
                rules.push(rule("proxy-to-own-pod", matches, Verdict::Jump(ChainName::Inbound)));
            }
        }
        rules.extend(left_alone(options, false));
        if let Some(port) = options.dns_port {
            rules.push(rule("dns", vec![Match::ToPorts(Tcp, one(DNS_PORT))], Verdict::Redirect(Tcp, port)));
            let mut dns = left_alone(options, true);
            dns.push(rule("dns", vec![], Verdict::Redirect(Udp, port)));
            self.chain(ChainName::Dns, dns);
            self.hook(Point::NatOutput, vec![Match::ToPorts(Udp, one(DNS_PORT))], ChainName::Dns);
        }
        if options.self_call == SelfCall::Inbound {
            for loopback in [loopback_v4(), loopback_v6()] {
                let matches = vec![through_loopback(), Match::NotTo(loopback)];
                rules.push(rule("self-call", matches, Verdict::Jump(ChainName::Inbound)));
            }
        }
        rules.push(rule("loopback", vec![through_loopback()], Verdict::Return));
        if !options.exclude_outbound_ports.is_empty() {
            let ports = PortRange::normalise(options.exclude_outbound_ports.clone());
            rules.push(rule("exclude-ports", vec![Match::ToPorts(Tcp, ports)], Verdict::Return));
        }
        rules.push(self.included_outbound(options));
        self.chain(ChainName::Outbound, rules);
        self.hook(Point::NatOutput, vec![Match::Opening], ChainName::Outbound);
    }

    /// The last rule of the outbound chain. Each inclusion leads to the next; the chains behind the first are made here.
    fn included_outbound(&mut self, options: &Options) -> Rule {
        let interfaces = (!options.include_interfaces.is_empty())
            .then(|| ("include-interfaces", Match::LeavingThrough(options.include_interfaces.clone())));
        let cidrs = (!options.include_outbound_cidrs.is_empty())
            .then(|| ("include-cidrs", Match::To(IpNet::aggregate(&options.include_outbound_cidrs))));
        let ports = (!options.include_outbound_ports.is_empty()).then(|| {
            ("include-ports", Match::ToPorts(Tcp, PortRange::normalise(options.include_outbound_ports.clone())))
        });
        let mut verdict = Verdict::Redirect(Tcp, options.outbound_port);
        let mut stages = [(ChainName::OutboundPorts, ports), (ChainName::OutboundTo, cidrs)]
            .into_iter()
            .filter_map(|(chain, stage)| stage.map(|(name, property)| (chain, name, property)))
            .peekable();
        while let Some((chain, name, property)) = stages.next() {
            let stage = rule(name, vec![property], verdict);
            if stages.peek().is_none() && interfaces.is_none() {
                return stage;
            }
            self.chain(chain, vec![stage]);
            verdict = Verdict::Jump(chain);
        }
        match interfaces {
            Some((name, property)) => rule(name, vec![property], verdict),
            None => rule("redirect", vec![], verdict),
        }
    }
}

/// Which ports of the workload get these verdicts, one after the other.
fn workload_ports(options: &Options, verdicts: &[(&'static str, Verdict)]) -> Vec<Rule> {
    let mut excluded = options.exclude_inbound_ports.clone();
    excluded.extend(PortRange::single(TELEMETRY_PORT));
    let mut rules =
        vec![rule("exclude-ports", vec![Match::ToPorts(Tcp, PortRange::normalise(excluded))], Verdict::Return)];
    let mut matches = Vec::new();
    if !options.include_inbound_ports.is_empty() {
        let mut included = options.include_inbound_ports.clone();
        // What dials the sidecar's own ports from outside must meet its refusal, not its listeners.
        included.extend([options.inbound_port, options.outbound_port].into_iter().filter_map(PortRange::single));
        matches.push(Match::ToPorts(Tcp, PortRange::normalise(included)));
    }
    rules.extend(verdicts.iter().map(|(name, verdict)| rule(name, matches.clone(), *verdict)));
    rules
}

/// Whose connections go out as they are; `dns` for questions, whose chains have not yet met the link-local rule.
fn left_alone(options: &Options, dns: bool) -> Vec<Rule> {
    let mut rules = Vec::new();
    if dns {
        rules.push(link_local_alone());
    }
    let alone = |name, matches| rule(name, matches, Verdict::Return);
    rules.extend(identities(options).into_iter().map(|identity| alone("proxy", vec![identity])));
    if !options.exclude_uids.is_empty() {
        let uids = UidRange::normalise(options.exclude_uids.clone());
        rules.push(alone("exclude-uids", vec![Match::Uids(uids)]));
    }
    if !options.exclude_interfaces.is_empty() {
        let through = Match::LeavingThrough(options.exclude_interfaces.clone());
        rules.push(alone("exclude-interfaces", vec![through]));
    }
    if !options.exclude_outbound_cidrs.is_empty() {
        let nets = IpNet::aggregate(&options.exclude_outbound_cidrs);
        rules.push(alone("exclude-cidrs", vec![Match::To(nets)]));
    }
    rules
}

/// By what the sidecar's own connections are known: any one of these.
fn identities(options: &Options) -> Vec<Match> {
    let proxy = &options.proxy;
    let uid = proxy.uid.and_then(UidRange::single).map(|uid| Match::Uids(vec![uid]));
    uid.into_iter().chain(proxy.gid.map(Match::Gid)).chain(proxy.mark.map(Match::Mark)).collect()
}

fn rule(name: &'static str, matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { name, matches, verdict }
}

fn one(port: u16) -> Vec<PortRange> {
    PortRange::single(port).into_iter().collect()
}

fn lo() -> Interface {
    Interface::LOOPBACK
}

fn through_loopback() -> Match {
    Match::LeavingThrough(vec![lo()])
}

fn link_local_alone() -> Rule {
    rule("link-local", vec![Match::To(vec![link_local()])], Verdict::Return)
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
