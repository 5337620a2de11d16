//! A small reader of nft's language: as much of it as our tables use, and not a word more.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use outrigger_iptables::plan::{Decision, Packet, Protocol, Way};

use crate::Fate;

pub(crate) struct Ruleset {
    chains: HashMap<String, Vec<Rule>>,
    /// Hook, priority, name; in the order in which the kernel calls them.
    bases: Vec<(String, i32, String)>,
}

struct Rule {
    matches: Vec<Match>,
    statement: Statement,
}

enum Match {
    Nfproto(bool),
    L4(Protocol),
    Syn,
    Invalid,
    Reply(bool),
    CtMark(u32, u32),
    Mark(u32, u32),
    ToLocal,
    FromNotLocal,
    Interface(Way, String),
    /// Of IPv4, the source, negated, the networks.
    Address(bool, bool, bool, Vec<IpNet>),
    Port(Protocol, bool, Vec<(u32, u32)>),
    Uid(Vec<(u32, u32)>),
    Gid(u32),
}

enum Statement {
    Return,
    Drop,
    Jump(String),
    Redirect(u16),
    Tproxy(u16),
    Zone(u16),
    Timeout,
    CtMark(u32),
    Mark(u32),
    SameDestination,
}

enum Step {
    On,
    Accepted,
    Decided(Decision),
}

fn number(text: &str) -> u32 {
    text.strip_prefix("0x").map_or_else(|| text.parse().unwrap(), |digits| u32::from_str_radix(digits, 16).unwrap())
}

/// One value or `{ a, b-c }`; takes its words.
fn set<'a>(words: &mut impl Iterator<Item = &'a str>) -> Vec<String> {
    let first = words.next().unwrap();
    if first != "{" {
        return vec![first.to_owned()];
    }
    words.take_while(|word| *word != "}").map(|word| word.trim_end_matches(',').to_owned()).collect()
}

fn ranges(values: &[String]) -> Vec<(u32, u32)> {
    let range = |text: &String| match text.split_once('-') {
        Some((first, last)) => (number(first), number(last)),
        None => (number(text), number(text)),
    };
    values.iter().map(range).collect()
}

fn transport(word: &str) -> Protocol {
    match word {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => panic!("unknown protocol {other}"),
    }
}

fn rule(line: &str) -> Rule {
    let line = line.split(" comment \"").next().unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let mut rest = words.iter().copied();
    let (mut matches, mut statement) = (Vec::new(), None);
    while let Some(word) = rest.next() {
        let after = rest.clone().collect::<Vec<_>>().join(" ");
        let mut eat = |text: &str| {
            let found = after.starts_with(text);
            if found {
                text.split(' ').for_each(|_| _ = rest.next());
            }
            found
        };
        match word {
            "meta" if eat("nfproto ipv4") => matches.push(Match::Nfproto(true)),
            "meta" if eat("nfproto ipv6") => matches.push(Match::Nfproto(false)),
            "meta" if eat("mark set meta mark |") => statement = Some(Statement::Mark(number(rest.next().unwrap()))),
            "meta" => match rest.next().unwrap() {
                "l4proto" => matches.push(Match::L4(transport(rest.next().unwrap()))),
                "skuid" => matches.push(Match::Uid(ranges(&set(&mut rest)))),
                "skgid" => matches.push(Match::Gid(number(rest.next().unwrap()))),
                "mark" => {
                    assert_eq!(rest.next(), Some("&"));
                    let mask = number(rest.next().unwrap());
                    assert_eq!(rest.next(), Some("=="));
                    matches.push(Match::Mark(mask, number(rest.next().unwrap())));
                }
                other => panic!("unknown meta {other} in {line}"),
            },
            "tcp" if eat("flags & (fin | syn | rst | ack) == syn") => matches.push(Match::Syn),
            "tcp" | "udp" => {
                let source = match rest.next().unwrap() {
                    "sport" => true,
                    "dport" => false,
                    other => panic!("unknown {word} {other} in {line}"),
                };
                matches.push(Match::Port(transport(word), source, ranges(&set(&mut rest))));
            }
            "ip" | "ip6" => {
                let source = match rest.next().unwrap() {
                    "saddr" => true,
                    "daddr" => false,
                    other => panic!("unknown {word} {other} in {line}"),
                };
                let mut ahead = rest.clone();
                let negated = ahead.next() == Some("!=");
                if negated {
                    rest = ahead;
                }
                let nets = set(&mut rest).iter().map(|net| net.parse().unwrap()).collect();
                matches.push(Match::Address(word == "ip", source, negated, nets));
            }
            "ct" if eat("state invalid") => matches.push(Match::Invalid),
            "ct" if eat("direction original") => matches.push(Match::Reply(false)),
            "ct" if eat("direction reply") => matches.push(Match::Reply(true)),
            "ct" if eat("mark set ct mark |") => statement = Some(Statement::CtMark(number(rest.next().unwrap()))),
            "ct" if eat("mark &") => {
                let mask = number(rest.next().unwrap());
                assert_eq!(rest.next(), Some("=="));
                matches.push(Match::CtMark(mask, number(rest.next().unwrap())));
            }
            "ct" if eat("zone set") => {
                statement = Some(Statement::Zone(rest.next().unwrap().parse().unwrap()));
                assert_eq!(rest.next(), Some("accept"));
            }
            "ct" if eat("timeout set") => {
                assert!(rest.next().unwrap().starts_with("\"close_wait_v"));
                statement = Some(Statement::Timeout);
            }
            "fib" if eat("daddr type local") => matches.push(Match::ToLocal),
            "fib" if eat("saddr type != local") => matches.push(Match::FromNotLocal),
            "iifname" => {
                matches.push(Match::Interface(Way::Arriving, rest.next().unwrap().trim_matches('"').to_owned()))
            }
            "oifname" => {
                matches.push(Match::Interface(Way::Leaving, rest.next().unwrap().trim_matches('"').to_owned()))
            }
            "return" => statement = Some(Statement::Return),
            "dnat" if eat("ip to ip daddr") || eat("ip6 to ip6 daddr") => statement = Some(Statement::SameDestination),
            "drop" => statement = Some(Statement::Drop),
            "jump" => statement = Some(Statement::Jump(rest.next().unwrap().to_owned())),
            "redirect" | "tproxy" => {
                if word == "tproxy" {
                    assert!(["ip", "ip6"].contains(&rest.next().unwrap()));
                }
                assert_eq!(rest.next(), Some("to"));
                let port = rest.next().unwrap().trim_start_matches(':').parse().unwrap();
                if word == "redirect" {
                    statement = Some(Statement::Redirect(port));
                } else {
                    assert_eq!(rest.next(), Some("accept"));
                    statement = Some(Statement::Tproxy(port));
                }
            }
            other => panic!("unknown word {other:?} in {line}"),
        }
    }
    Rule { matches, statement: statement.unwrap_or_else(|| panic!("no statement in {line}")) }
}

impl Ruleset {
    pub(crate) fn parse(script: &str) -> Self {
        let (mut chains, mut bases, mut current) = (HashMap::<String, Vec<Rule>>::new(), Vec::new(), None);
        for line in script.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
                current = Some(name.to_owned());
                chains.insert(name.to_owned(), Vec::new());
            } else if line == "}" {
                current = None;
            } else if let (Some(name), Some(rest)) = (&current, line.strip_prefix("type ")) {
                let words: Vec<&str> = rest.split(' ').collect();
                let priority = words[4].trim_end_matches(';').parse().unwrap();
                assert!(rest.ends_with("policy accept;"));
                bases.push((words[2].to_owned(), priority, name.clone()));
            } else if let Some(name) = &current {
                chains.get_mut(name).unwrap().push(rule(line));
            }
        }
        // Before, at and after connection tracking (-200), then NAT; among equals the order has no meaning here.
        bases.sort_by_key(|(_, priority, _)| *priority);
        Self { chains, bases }
    }

    pub(crate) fn decide(&self, packet: &Packet, way: Way) -> Fate {
        let mut fate = Fate::of(packet);
        let hook = if way == Way::Arriving { "prerouting" } else { "output" };
        for (_, _, chain) in self.bases.iter().filter(|(at, _, _)| at == hook) {
            if let Step::Decided(decision) = self.walk(packet, way, chain, &mut fate) {
                fate.decision = decision;
                return fate;
            }
        }
        fate
    }

    fn walk(&self, packet: &Packet, way: Way, chain: &str, fate: &mut Fate) -> Step {
        for rule in &self.chains[chain] {
            if !rule.matches.iter().all(|each| holds(each, packet, way, fate)) {
                continue;
            }
            match &rule.statement {
                Statement::Return => return Step::On,
                Statement::Drop => return Step::Decided(Decision::Dropped),
                Statement::Redirect(port) => return Step::Decided(Decision::Redirected(*port)),
                Statement::Tproxy(port) => return Step::Decided(Decision::Transparent(*port)),
                Statement::Jump(to) => match self.walk(packet, way, to, fate) {
                    Step::On => {}
                    other => return other,
                },
                Statement::Zone(zone) => {
                    fate.zone = *zone;
                    return Step::Accepted;
                }
                Statement::SameDestination => return Step::Accepted,
                Statement::Timeout => fate.timeout = true,
                Statement::CtMark(bits) => fate.connection_mark |= bits,
                Statement::Mark(bits) => fate.mark |= bits,
            }
        }
        Step::On
    }
}

fn holds(property: &Match, packet: &Packet, way: Way, fate: &Fate) -> bool {
    let within =
        |ranges: &[(u32, u32)], value: u32| ranges.iter().any(|(first, last)| (*first..=*last).contains(&value));
    match property {
        Match::Nfproto(v4) => packet.to.is_ipv4() == *v4,
        Match::L4(protocol) => packet.protocol == *protocol,
        Match::Syn => packet.protocol == Protocol::Tcp && packet.opening,
        Match::Invalid => packet.invalid,
        // No connection, no side and no mark: the expression ends its rule.
        Match::Reply(reply) => !packet.invalid && packet.reply == *reply,
        Match::CtMark(mask, value) => !packet.invalid && fate.connection_mark & mask == *value,
        Match::Mark(mask, value) => fate.mark & mask == *value,
        Match::ToLocal => packet.to_this_host,
        Match::FromNotLocal => !packet.from_this_host,
        Match::Interface(of, name) => {
            *of == way
                && match name.strip_suffix('*') {
                    Some(start) => packet.interface.starts_with(start),
                    None => packet.interface == *name,
                }
        }
        Match::Address(v4, source, negated, nets) => {
            let address: IpAddr = if *source { packet.from } else { packet.to };
            address.is_ipv4() == *v4 && nets.iter().any(|net| net.contains(&address)) != *negated
        }
        Match::Port(protocol, source, ranges) => {
            let port = if *source { packet.from_port } else { packet.to_port };
            packet.protocol == *protocol && within(ranges, port.into())
        }
        Match::Uid(ranges) => packet.uid.is_some_and(|uid| within(ranges, uid)),
        Match::Gid(gid) => packet.gid == Some(*gid),
    }
}
