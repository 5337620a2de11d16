//! Whatever the options: the rules of every backend, read as text by an evaluator of its language, do to a packet what
//! the plan decides for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod iptables;
mod nft;
mod random;

use std::time::Duration;

use fastrand::Rng;
use outrigger_iptables::{
    Mode, Options,
    backend::{Choice, Kind},
    plan::{Outcome, Packet, Plan, Protocol, Way},
    print,
};

const OPTION_SETS: usize = 40;
const PACKETS: usize = 10_000;

/// What the tools' languages say of a packet, apart from who said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fate {
    decision: outrigger_iptables::plan::Decision,
    zone: u16,
    timeout: bool,
    connection_mark: u32,
    mark: u32,
}

impl From<Outcome> for Fate {
    fn from(outcome: Outcome) -> Self {
        let Outcome { decision, zone, timeout, connection_mark, mark, .. } = outcome;
        Self { decision, zone, timeout, connection_mark, mark }
    }
}

impl Fate {
    /// Before any rule.
    fn of(packet: &Packet) -> Self {
        Self {
            decision: outrigger_iptables::plan::Decision::Direct,
            zone: 0,
            timeout: false,
            connection_mark: packet.connection_mark,
            mark: packet.mark,
        }
    }
}

#[test]
fn every_backend_decides_as_the_plan_for_random_options_and_packets() {
    let seed = std::env::var("PROPERTY_SEED").ok().map_or_else(|| fastrand::u64(..), |text| text.parse().unwrap());
    println!("PROPERTY_SEED={seed} repeats this run");
    let mut random = Rng::with_seed(seed);
    let mut fates = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..OPTION_SETS {
        let options = random::options(&mut random);
        let plan = Plan::new(&options).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        let scripts = |kind| print(&options, Choice::Fixed(kind), Duration::ZERO).unwrap().scripts;
        let nft = nft::Ruleset::parse(&scripts(Kind::Nft)[0].text);
        let iptables = [Kind::IptablesNft, Kind::IptablesLegacy].map(|kind| iptables::Ruleset::parse(&scripts(kind)));
        for _ in 0..PACKETS {
            let way = if random.bool() { Way::Arriving } else { Way::Leaving };
            let packet = random::packet(&mut random, &options, way);
            let wanted = Fate::from(plan.decide(&packet, way));
            for (name, fate) in [
                ("nft", nft.decide(&packet, way)),
                ("iptables-nft", iptables[0].decide(&packet, way)),
                ("iptables-legacy", iptables[1].decide(&packet, way)),
            ] {
                assert_eq!(fate, wanted, "PROPERTY_SEED={seed}: {name} for {way:?} {packet:?} with {options:?}");
            }
            *fates.entry(format!("{:?}", wanted.decision).split('(').next().unwrap().to_owned()).or_default() += 1;
            for (what, happened) in [
                ("a zone", wanted.zone > 0),
                ("a time-out", wanted.timeout),
                ("a connection's mark", wanted.connection_mark != packet.connection_mark),
                ("a packet's mark", wanted.mark != packet.mark),
                ("UDP", packet.protocol == Protocol::Udp),
            ] {
                *fates.entry(what.to_owned()).or_default() += usize::from(happened);
            }
        }
    }
    // Packets that nobody looks at would prove nothing.
    for fate in [
        "Direct",
        "Redirected",
        "Transparent",
        "Dropped",
        "a zone",
        "a time-out",
        "a connection's mark",
        "a packet's mark",
        "UDP",
    ] {
        assert!(fates.get(fate).is_some_and(|count| *count > 100), "PROPERTY_SEED={seed}: too few {fate}: {fates:?}");
    }
}

type Decider = Box<dyn Fn(&Packet, Way) -> Fate>;

/// What a set of scripts does after each has been changed so.
fn changed(kind: Kind, options: &Options, good: &str, bad: &str) -> Decider {
    let mut scripts = print(options, Choice::Fixed(kind), Duration::ZERO).unwrap().scripts;
    assert!(scripts.iter().any(|script| script.text.contains(good)), "{kind} has no {good:?}");
    for script in &mut scripts {
        script.text = script.text.replace(good, bad);
    }
    match kind {
        Kind::Nft => {
            let rules = nft::Ruleset::parse(&scripts[0].text);
            Box::new(move |packet, way| rules.decide(packet, way))
        }
        _ => {
            let rules = iptables::Ruleset::parse(&scripts);
            Box::new(move |packet, way| rules.decide(packet, way))
        }
    }
}

/// Each of these changes of a script must be noticed by some packet.
fn all_are_noticed(kinds: &[Kind], options: &Options, changes: &[(&str, &str)]) {
    let plan = Plan::new(options).unwrap();
    for kind in kinds {
        for (good, bad) in changes {
            let broken = changed(*kind, options, good, bad);
            let mut random = Rng::with_seed(7);
            let noticed = (0..100_000).any(|_| {
                let way = if random.bool() { Way::Arriving } else { Way::Leaving };
                let packet = random::packet(&mut random, options, way);
                broken(&packet, way) != plan.decide(&packet, way).into()
            });
            assert!(noticed, "{kind}: nobody noticed that {good:?} became {bad:?}");
        }
    }
}

#[test]
fn the_evaluators_see_a_rule_that_is_wrong() {
    let redirect = Options { dns_port: Some(15053), ..Options::default() };
    let tproxy = Options { mode: Mode::Tproxy, ..Options::default() };
    all_are_noticed(
        &[Kind::Nft],
        &redirect,
        &[
            ("tcp dport 15020 return", "tcp dport 15021 return"),
            ("meta skuid 1337 return", "meta skuid 1338 return"),
            ("redirect to :15001", "redirect to :15002"),
            ("ct zone set 2", "ct zone set 3"),
            ("ip daddr != 127.0.0.0/8", "ip daddr 127.0.0.0/8"),
            ("fib daddr type local jump peers", "jump peers"),
        ],
    );
    all_are_noticed(
        &[Kind::Nft],
        &tproxy,
        &[
            ("iifname \"lo\" return", "iifname \"eth0\" return"),
            ("ct mark & 0x2000 == 0x2000 drop", "ct mark & 0x2000 == 0x2000 return"),
        ],
    );
    let both = [Kind::IptablesNft, Kind::IptablesLegacy];
    all_are_noticed(
        &both,
        &redirect,
        &[
            ("--dports 15020", "--dports 15021"),
            ("--uid-owner 1337", "--uid-owner 1338"),
            ("REDIRECT --to-ports 15001", "REDIRECT --to-ports 15002"),
            ("CT --zone 2", "CT --zone 3"),
            ("! -d 127.0.0.0/8", "-d 127.0.0.0/8"),
            ("--syn -m addrtype --dst-type LOCAL", "--syn"),
        ],
    );
    all_are_noticed(
        &both,
        &tproxy,
        &[
            ("-A OUTRIGGER_TRANSPARENT -i lo", "-A OUTRIGGER_TRANSPARENT -i eth0"),
            ("--mark 0x2000/0x2000 -m comment --comment leg_", "--mark 0x4000/0x4000 -m comment --comment leg_"),
            ("--ctdir REPLY", "--ctdir ORIGINAL"),
        ],
    );
}
