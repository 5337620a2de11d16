//! A small reader of what `iptables-restore` reads: as much of it as our tables use, and not a word more.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use outrigger_iptables::{
    Script,
    plan::{Decision, Packet, Protocol, Way},
};

use crate::Fate;

pub(crate) struct Ruleset {
    v4: Tables,
    v6: Tables,
}

/// The rules of a chain, by table and name.
#[derive(Default)]
struct Tables(HashMap<(String, String), Vec<Rule>>);

struct Rule {
    matches: Vec<Match>,
    target: Target,
}

enum Match {
    Protocol(Protocol),
    Syn,
    Invalid,
    Reply(bool),
    ConnMark(u32, u32),
    Mark(u32, u32),
    ToLocal,
    FromNotLocal,
    Interface(Way, String),
    /// The source, negated, the network.
    Address(bool, bool, IpNet),
    Ports(bool, Vec<(u16, u16)>),
    Uid(u32, u32),
    Gid(u32),
}

enum Target {
    Return,
    Accept,
    Drop,
    Redirect(u16),
    Tproxy(u16),
    Chain(String),
    Zone(u16),
    Timeout,
    ConnMark(u32),
    Mark(u32),
}

fn number(text: &str) -> u32 {
    text.strip_prefix("0x").map_or_else(|| text.parse().unwrap(), |digits| u32::from_str_radix(digits, 16).unwrap())
}

fn under_mask(text: &str) -> (u32, u32) {
    let (value, mask) = text.split_once('/').unwrap();
    (number(value), number(mask))
}

fn rule(words: &[&str]) -> Rule {
    let mut rest = words.iter().copied();
    let (mut matches, mut target, mut module, mut negated) = (Vec::new(), None, "", false);
    while let Some(word) = rest.next() {
        let mut value = || rest.next().unwrap_or_else(|| panic!("nothing after {word} in {words:?}"));
        match word {
            "!" => {
                negated = true;
                continue;
            }
            "-m" => module = value(),
            "-p" => matches.push(Match::Protocol(match value() {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                other => panic!("unknown protocol {other}"),
            })),
            "--syn" => matches.push(Match::Syn),
            "--comment" => {
                assert_eq!(module, "comment");
                value();
            }
            "--ctstate" => matches.push(match value() {
                "INVALID" => Match::Invalid,
                other => panic!("unknown state {other}"),
            }),
            "--ctdir" => matches.push(Match::Reply(value() == "REPLY")),
            "--mark" => {
                let (bits, mask) = under_mask(value());
                matches.push(if module == "connmark" { Match::ConnMark(bits, mask) } else { Match::Mark(bits, mask) });
            }
            "--dst-type" => {
                assert_eq!((value(), negated), ("LOCAL", false));
                matches.push(Match::ToLocal);
            }
            "--src-type" => {
                assert_eq!((value(), negated), ("LOCAL", true));
                matches.push(Match::FromNotLocal);
            }
            "-i" => matches.push(Match::Interface(Way::Arriving, value().to_owned())),
            "-o" => matches.push(Match::Interface(Way::Leaving, value().to_owned())),
            "-s" | "-d" => matches.push(Match::Address(word == "-s", negated, value().parse().unwrap())),
            "--dports" | "--sports" => {
                assert_eq!(module, "multiport");
                let ranges: Vec<(u16, u16)> = value()
                    .split(',')
                    .map(|range| {
                        let (first, last) = range.split_once(':').unwrap_or((range, range));
                        (first.parse().unwrap(), last.parse().unwrap())
                    })
                    .collect();
                let slots: usize = ranges.iter().map(|(first, last)| if first == last { 1 } else { 2 }).sum();
                assert!(slots <= 15, "multiport cannot hold {slots} in {words:?}");
                assert!(
                    matches.iter().any(|each| matches!(each, Match::Protocol(_))),
                    "multiport without -p: {words:?}"
                );
                matches.push(Match::Ports(word == "--sports", ranges));
            }
            "--uid-owner" => {
                let text = value();
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                matches.push(Match::Uid(number(first), number(last)));
            }
            "--gid-owner" => matches.push(Match::Gid(number(value()))),
            "-j" => {
                target = Some(match value() {
                    "RETURN" => Target::Return,
                    "ACCEPT" => Target::Accept,
                    "DROP" => Target::Drop,
                    "REDIRECT" => {
                        assert_eq!(value(), "--to-ports");
                        Target::Redirect(value().parse().unwrap())
                    }
                    "TPROXY" => {
                        assert_eq!(value(), "--on-port");
                        Target::Tproxy(value().parse().unwrap())
                    }
                    "CT" => match value() {
                        "--zone" => Target::Zone(value().parse().unwrap()),
                        "--timeout" => {
                            assert!(value().starts_with("outrigger"));
                            Target::Timeout
                        }
                        other => panic!("unknown {other}"),
                    },
                    kind @ ("CONNMARK" | "MARK") => {
                        assert_eq!(value(), "--set-xmark");
                        let (bits, mask) = under_mask(value());
                        assert_eq!(bits, mask, "bits beside ours would be cleared");
                        if kind == "MARK" { Target::Mark(bits) } else { Target::ConnMark(bits) }
                    }
                    chain => Target::Chain(chain.to_owned()),
                });
            }
            other => panic!("unknown word {other:?} in {words:?}"),
        }
        negated = false;
    }
    Rule { matches, target: target.unwrap_or_else(|| panic!("no target in {words:?}")) }
}

impl Tables {
    fn parse(script: &str) -> Self {
        let (mut tables, mut table) = (Self::default(), String::new());
        for line in script.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let key = |chain: &str| (table.clone(), chain.to_owned());
            match words[0] {
                "-A" => tables.0.entry(key(words[1])).or_default().push(rule(&words[2..])),
                "-I" => {
                    assert_eq!(words[2], "1");
                    tables.0.entry(key(words[1])).or_default().insert(0, rule(&words[3..]));
                }
                "COMMIT" => {}
                word if word.starts_with('*') => table = word[1..].to_owned(),
                word if word.starts_with(':') => _ = tables.0.entry(key(&word[1..])).or_default(),
                other => panic!("unknown line {other:?}"),
            }
        }
        tables
    }
}

impl Ruleset {
    pub(crate) fn parse(scripts: &[Script]) -> Self {
        let of = |name: &str| {
            let script = scripts.iter().find(|script| script.command.starts_with(name));
            script.map(|script| Tables::parse(&script.text)).unwrap_or_default()
        };
        Self { v4: of("iptables"), v6: of("ip6tables") }
    }

    pub(crate) fn decide(&self, packet: &Packet, way: Way) -> Fate {
        let tables = if packet.to.is_ipv4() { &self.v4 } else { &self.v6 };
        let base = if way == Way::Arriving { "PREROUTING" } else { "OUTPUT" };
        let mut fate = Fate::of(packet);
        let mut template = false;
        for table in ["raw", "mangle", "nat"] {
            if let Some(decision) = tables.walk(table, base, packet, way, &mut fate, &mut template) {
                fate.decision = decision;
                return fate;
            }
        }
        fate
    }
}

impl Tables {
    fn walk(
        &self,
        table: &str,
        chain: &str,
        packet: &Packet,
        way: Way,
        fate: &mut Fate,
        template: &mut bool,
    ) -> Option<Decision> {
        for rule in self.0.get(&(table.to_owned(), chain.to_owned())).into_iter().flatten() {
            if !rule.matches.iter().all(|each| holds(each, packet, way, fate)) {
                continue;
            }
            match &rule.target {
                Target::Return => return None,
                // Only in nat, which is the last table.
                Target::Accept => return Some(Decision::Direct),
                Target::Drop => return Some(Decision::Dropped),
                Target::Redirect(port) => return Some(Decision::Redirected(*port)),
                Target::Tproxy(port) => return Some(Decision::Transparent(*port)),
                Target::Chain(to) => {
                    if let Some(decision) = self.walk(table, to, packet, way, fate, template) {
                        return Some(decision);
                    }
                }
                // net/netfilter/xt_CT.c: a packet that has a template, or is tracked, is left as it is.
                Target::Zone(_) | Target::Timeout if *template => {}
                Target::Zone(zone) => {
                    fate.zone = *zone;
                    *template = true;
                }
                Target::Timeout => {
                    fate.timeout = true;
                    *template = true;
                }
                Target::ConnMark(bits) => fate.connection_mark |= bits,
                Target::Mark(bits) => fate.mark |= bits,
            }
        }
        None
    }
}

fn holds(property: &Match, packet: &Packet, way: Way, fate: &Fate) -> bool {
    match property {
        Match::Protocol(protocol) => packet.protocol == *protocol,
        Match::Syn => packet.protocol == Protocol::Tcp && packet.opening,
        Match::Invalid => packet.invalid,
        Match::Reply(reply) => !packet.invalid && packet.reply == *reply,
        Match::ConnMark(bits, mask) => !packet.invalid && fate.connection_mark & mask == *bits,
        Match::Mark(bits, mask) => fate.mark & mask == *bits,
        Match::ToLocal => packet.to_this_host,
        Match::FromNotLocal => !packet.from_this_host,
        Match::Interface(of, name) => {
            *of == way
                && match name.strip_suffix('+') {
                    Some(start) => packet.interface.starts_with(start),
                    None => packet.interface == *name,
                }
        }
        Match::Address(source, negated, net) => {
            let address: IpAddr = if *source { packet.from } else { packet.to };
            net.contains(&address) != *negated
        }
        Match::Ports(source, ranges) => {
            let port = if *source { packet.from_port } else { packet.to_port };
            ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
        }
        Match::Uid(first, last) => packet.uid.is_some_and(|uid| (*first..=*last).contains(&uid)),
        Match::Gid(gid) => packet.gid == Some(*gid),
    }
}
