//! A plan in the words of iptables, one family at a time.

use ipnet::IpNet;

use super::saved::{Table, Tables};
use crate::{
    PortRange, Script,
    backend::comment,
    plan::{ChainName, Family, Match, Plan, Point, Protocol, Rule, Verdict},
    values::Interface,
};

/// How many ports the `multiport` match can hold; a range counts twice (iptables-extensions(8)).
const MULTIPORT_SLOTS: usize = 15;

/// Both families, as onto tables that hold nothing of ours; `suffix` is that of the program, as `-legacy`.
pub(crate) fn render_both(plan: &Plan, suffix: &str) -> Vec<Script> {
    let names = [(Family::V4, "iptables"), (Family::V6, "ip6tables")];
    names
        .into_iter()
        .filter(|(family, _)| plan.families.contains(family))
        .map(|(family, name)| Script {
            command: format!("{name}{suffix}-restore --noflush"),
            text: Tables::default().way_to(&tables(plan, family)),
        })
        .collect()
}

/// The name of the time-out policy that the rules of a family refer to.
pub(super) fn timeout_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "outrigger4",
        Family::V6 => "outrigger6",
    }
}

/// What the tables of a family are to hold of ours.
pub(super) fn tables(plan: &Plan, family: Family) -> Tables {
    let mut tables = Tables::default();
    if !plan.families.contains(&family) {
        return tables;
    }
    let mut hooks: Vec<_> = plan.hooks.iter().collect();
    hooks.sort_by_key(|hook| hook.point);
    for hook in hooks {
        let (table, base) = place(hook.point);
        let table = tables.0.entry(table.to_owned()).or_insert_with(Table::default);
        let jump = Rule { name: hook.chain.name(), matches: hook.guard.clone(), verdict: Verdict::Jump(hook.chain) };
        table.jumps.extend(lines(&jump, family).into_iter().map(|words| format!("{base} {words}")));
        with_all_that_it_calls(plan, hook.chain, family, table);
    }
    tables
}

/// mangle is after connection tracking and before NAT, raw before connection tracking.
fn place(point: Point) -> (&'static str, &'static str) {
    match point {
        Point::RawPrerouting | Point::TimeoutPrerouting => ("raw", "PREROUTING"),
        Point::RawOutput | Point::TimeoutOutput => ("raw", "OUTPUT"),
        Point::FilterPrerouting => ("mangle", "PREROUTING"),
        Point::RouteOutput => ("mangle", "OUTPUT"),
        Point::NatPrerouting => ("nat", "PREROUTING"),
        Point::NatOutput => ("nat", "OUTPUT"),
    }
}

fn with_all_that_it_calls(plan: &Plan, chain: ChainName, family: Family, table: &mut Table) {
    let name = name(chain);
    if table.chains.contains(&name) {
        return;
    }
    table.chains.push(name.clone());
    for rule in plan.rules(chain) {
        table.rules.extend(lines(rule, family).into_iter().map(|words| format!("-A {name} {words}")));
    }
    for rule in plan.rules(chain) {
        if let Verdict::Jump(to) = rule.verdict {
            with_all_that_it_calls(plan, to, family, table);
        }
    }
}

pub(super) fn name(chain: ChainName) -> String {
    format!("OUTRIGGER_{}", chain.name().to_ascii_uppercase())
}

/// One rule becomes several where iptables knows no sets: one for each network, one for each 15 ports.
fn lines(rule: &Rule, family: Family) -> Vec<String> {
    let mut lines = vec![Vec::<String>::new()];
    let mut protocol = match rule.verdict {
        Verdict::Redirect(protocol, _) => Some(protocol),
        Verdict::Tproxy(_) => Some(Protocol::Tcp),
        _ => None,
    };
    for property in &rule.matches {
        protocol = match property {
            Match::Protocol(each) | Match::ToPorts(each, _) | Match::FromPorts(each, _) => Some(*each),
            Match::Opening => Some(Protocol::Tcp),
            _ => protocol,
        };
        let choices = choices(property, family);
        lines = lines
            .iter()
            .flat_map(|line| choices.iter().map(|choice| line.iter().cloned().chain(choice.clone()).collect()))
            .collect();
    }
    let start = protocol.map(|protocol| match protocol {
        Protocol::Tcp => "-p tcp".to_owned(),
        Protocol::Udp => "-p udp".to_owned(),
    });
    let verdict = verdict(rule.verdict, family);
    let with_comment = |line: Vec<String>| {
        let matches = start.iter().cloned().chain(line).collect::<Vec<_>>();
        let comment = comment(rule.name, &[matches.as_slice(), std::slice::from_ref(&verdict)].concat().join(" "));
        let end = [format!("-m comment --comment {comment}"), verdict.clone()];
        matches.into_iter().chain(end).collect::<Vec<_>>().join(" ")
    };
    lines.into_iter().map(with_comment).collect()
}

fn verdict(verdict: Verdict, family: Family) -> String {
    match verdict {
        Verdict::Return => "-j RETURN".to_owned(),
        Verdict::Drop => "-j DROP".to_owned(),
        Verdict::Redirect(_, port) => format!("-j REDIRECT --to-ports {port}"),
        // Where no socket listens, this target drops (net/netfilter/xt_TPROXY.c).
        Verdict::Tproxy(port) => format!("-j TPROXY --on-port {port}"),
        // Ours come first in the table, and there is no other.
        Verdict::KeepDestination => "-j ACCEPT".to_owned(),
        Verdict::Jump(to) => format!("-j {}", name(to)),
        // A packet keeps what the first CT target has given it.
        Verdict::Zone(zone) => format!("-j CT --zone {zone}"),
        Verdict::Timeout => format!("-j CT --timeout {}", timeout_name(family)),
        Verdict::SetConnectionBit(bit) => format!("-j CONNMARK --set-xmark {bit:#x}/{bit:#x}"),
        Verdict::SetPacketBit(bit) => format!("-j MARK --set-xmark {bit:#x}/{bit:#x}"),
    }
}

/// The words of which any one makes the property hold; none when it cannot hold in this family.
fn choices(property: &Match, family: Family) -> Vec<Option<String>> {
    let each = |flag: &str, nets: &[IpNet]| {
        nets.iter().filter(|net| family.has(net)).map(|net| Some(format!("{flag} {net}"))).collect()
    };
    let interfaces = |flag: &str, list: &[Interface]| {
        let wildcard = |interface: &Interface| if interface.is_wildcard() { "+" } else { "" };
        list.iter().map(|interface| Some(format!("{flag} {}{}", interface.name(), wildcard(interface)))).collect()
    };
    let one = |words: &str| vec![Some(words.to_owned())];
    match property {
        Match::Family(only) if *only != family => Vec::new(),
        Match::Family(_) | Match::Protocol(_) => vec![None],
        Match::Opening => one("--syn"),
        Match::Invalid => one("-m conntrack --ctstate INVALID"),
        Match::Original => one("-m conntrack --ctdir ORIGINAL"),
        Match::Reply => one("-m conntrack --ctdir REPLY"),
        Match::ConnectionBit(bit) => one(&format!("-m connmark --mark {bit:#x}/{bit:#x}")),
        Match::ToThisHost => one("-m addrtype --dst-type LOCAL"),
        Match::FromElsewhere => one("-m addrtype ! --src-type LOCAL"),
        Match::ArrivedBy(list) => interfaces("-i", list),
        Match::LeavingThrough(list) => interfaces("-o", list),
        Match::From(nets) => each("-s", nets),
        Match::To(nets) => each("-d", nets),
        Match::NotTo(net) => each("! -d", std::slice::from_ref(net)),
        Match::ToPorts(_, ranges) => multiport("--dports", ranges),
        Match::FromPorts(_, ranges) => multiport("--sports", ranges),
        Match::Uids(ranges) => ranges.iter().map(|range| Some(format!("-m owner --uid-owner {range}"))).collect(),
        Match::Gid(gid) => one(&format!("-m owner --gid-owner {gid}")),
        Match::Mark(mark) => one(&format!("-m mark --mark {:#x}/{:#x}", mark.value(), mark.mask())),
    }
}

fn multiport(flag: &str, ranges: &[PortRange]) -> Vec<Option<String>> {
    let mut chunks: Vec<(usize, String)> = Vec::new();
    for range in ranges {
        let (slots, text) = if range.first() == range.last() {
            (1, range.first().to_string())
        } else {
            (2, format!("{}:{}", range.first(), range.last()))
        };
        match chunks.last_mut() {
            Some((used, chunk)) if *used + slots <= MULTIPORT_SLOTS => {
                *used += slots;
                chunk.push(',');
                chunk.push_str(&text);
            }
            _ => chunks.push((slots, text)),
        }
    }
    chunks.into_iter().map(|(_, ports)| Some(format!("-m multiport {flag} {ports}"))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::{Options, parse_cidr};

    /// Without the hashes in the comments.
    fn scripts(options: &Options) -> [String; 2] {
        let plan = Plan::new(options).unwrap();
        let plain = |word: &str| match word.rsplit_once('_') {
            Some((name, hash))
                if hash.len() == 8 && hash.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()) =>
            {
                name.to_owned()
            }
            _ => word.to_owned(),
        };
        let line = |line: &str| line.split(' ').map(plain).collect::<Vec<_>>().join(" ") + "\n";
        let scripts: Vec<_> =
            render_both(&plan, "-nft").into_iter().map(|script| script.text.lines().map(line).collect()).collect();
        scripts.try_into().unwrap()
    }

    #[test]
    fn the_default_rules_word_for_word() {
        let [v4, v6] = scripts(&Options::default());
        let wanted = "*mangle
:OUTRIGGER_INVALID - [0:0]
-A OUTRIGGER_INVALID -m conntrack --ctstate INVALID -m addrtype --dst-type LOCAL -m comment --comment invalid -j DROP
-I PREROUTING 1 -p tcp -m comment --comment invalid -j OUTRIGGER_INVALID
COMMIT
*nat
:OUTRIGGER_PEERS - [0:0]
:OUTRIGGER_INBOUND - [0:0]
:OUTRIGGER_OUTBOUND - [0:0]
-A OUTRIGGER_PEERS -m comment --comment inbound -j OUTRIGGER_INBOUND
-A OUTRIGGER_INBOUND -p tcp -m multiport --dports 15020 -m comment --comment exclude-ports -j RETURN
-A OUTRIGGER_INBOUND -p tcp -m comment --comment redirect -j REDIRECT --to-ports 15006
-A OUTRIGGER_OUTBOUND -o lo -s 127.0.0.6/32 -m comment --comment leg -j RETURN
-A OUTRIGGER_OUTBOUND -o lo -m owner --uid-owner 1337 ! -d 127.0.0.0/8 -m comment --comment proxy-to-own-pod -j OUTRIGGER_INBOUND
-A OUTRIGGER_OUTBOUND -m owner --uid-owner 1337 -m comment --comment proxy -j RETURN
-A OUTRIGGER_OUTBOUND -o lo -m comment --comment loopback -j RETURN
-A OUTRIGGER_OUTBOUND -p tcp -m comment --comment redirect -j REDIRECT --to-ports 15001
-I OUTPUT 1 -p tcp --syn -m comment --comment outbound -j OUTRIGGER_OUTBOUND
-I PREROUTING 1 -p tcp --syn -m addrtype --dst-type LOCAL -m comment --comment peers -j OUTRIGGER_PEERS
COMMIT
";
        assert_eq!(v4, wanted);
        assert!(v6.contains("-A OUTRIGGER_OUTBOUND -d fe80::/10 -m comment --comment link-local -j RETURN\n"), "{v6}");
        assert!(v6.contains("-A OUTRIGGER_OUTBOUND -o lo -s ::6/128 -m comment --comment leg -j RETURN\n"), "{v6}");
        assert!(v6.contains("-o lo -m owner --uid-owner 1337 ! -d ::1/128 -m comment"), "{v6}");
    }

    #[test]
    fn any_number_of_ports_fits_into_multiport() {
        // 20 single ports and 10 ranges: 40 slots, so three rules, none with more than 15.
        let mut ports: Vec<PortRange> = (0..20).map(|n| PortRange::single(100 + 2 * n).unwrap()).collect();
        ports.extend((0..10).map(|n| format!("{}-{}", 1000 + 10 * n, 1005 + 10 * n).parse::<PortRange>().unwrap()));
        let [v4, _] = scripts(&Options { exclude_outbound_ports: ports, ..Options::default() });
        let rules: Vec<_> =
            v4.lines().filter(|line| line.starts_with("-A OUTRIGGER_OUTBOUND -p tcp -m multi")).collect();
        assert_eq!(rules.len(), 3, "{v4}");
        for rule in &rules {
            let ports = rule.split(' ').skip_while(|word| *word != "--dports").nth(1).unwrap();
            assert!(ports.split([',', ':']).count() <= MULTIPORT_SLOTS, "{rule}");
        }
        let all = rules.join(" ");
        assert!(all.contains("138") && all.contains("1090:1095"), "{all}");
    }

    #[test]
    fn each_family_gets_its_own_networks() {
        let nets = ["10.0.0.0/8", "fd00::/8", "192.0.2.1"].map(|text| parse_cidr(text).unwrap()).to_vec();
        let [v4, v6] = scripts(&Options { exclude_outbound_cidrs: nets, ..Options::default() });
        assert!(v4.contains("-d 10.0.0.0/8 -m comment") && v4.contains("-d 192.0.2.1/32 -m comment"), "{v4}");
        assert!(v6.contains("-d fd00::/8 -m comment") && !v6.contains("10.0.0.0"), "{v6}");
    }
}
