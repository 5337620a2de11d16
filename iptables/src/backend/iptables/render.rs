//! A plan in the words of iptables, one family at a time.

use ipnet::IpNet;

use super::saved::{Table, Tables};
use crate::{
    PortRange, Script,
    plan::{ChainName, Family, Match, Plan, Point, Rule, Verdict},
};

/// How many ports the `multiport` match can hold; a range counts twice (iptables-extensions(8)).
const MULTIPORT_SLOTS: usize = 15;

/// Both families, as onto tables that hold nothing of ours.
pub(crate) fn render_both(plan: &Plan) -> Vec<Script> {
    let script = |family: Family, name: &str| Script {
        command: format!("{name}-restore --noflush -w 10"),
        text: Tables::default().way_to(&tables(plan, family)),
    };
    vec![script(Family::V4, "iptables"), script(Family::V6, "ip6tables")]
}

/// What the tables of a family are to hold of ours.
pub(super) fn tables(plan: &Plan, family: Family) -> Tables {
    let mut tables = Tables::default();
    for hook in &plan.hooks {
        // mangle is after connection tracking and before NAT.
        let (table, base) = match hook.point {
            Point::FilterPrerouting => ("mangle", "PREROUTING"),
            Point::NatPrerouting => ("nat", "PREROUTING"),
            Point::NatOutput => ("nat", "OUTPUT"),
        };
        let table = tables.0.entry(table.to_owned()).or_insert_with(Table::default);
        let jump = Rule { matches: hook.guard.clone(), verdict: Verdict::Jump(hook.chain) };
        table.jumps.extend(rule(&jump, family).into_iter().map(|words| format!("{base} {words}")));
        let chain = name(hook.chain);
        table.chains.push(chain.to_owned());
        let rules = plan.chains.iter().filter(|candidate| candidate.name == hook.chain).flat_map(|found| &found.rules);
        table.rules.extend(rules.flat_map(|each| rule(each, family)).map(|words| format!("-A {chain} {words}")));
    }
    tables
}

fn name(chain: ChainName) -> &'static str {
    match chain {
        ChainName::Invalid => "OUTRIGGER_INVALID",
        ChainName::Inbound => "OUTRIGGER_INBOUND",
        ChainName::Outbound => "OUTRIGGER_OUTBOUND",
    }
}

/// One rule becomes several where iptables knows no sets: one for each network, one for each 15 ports.
fn rule(rule: &Rule, family: Family) -> Vec<String> {
    let mut lines = vec![Vec::<String>::new()];
    let mut tcp = matches!(rule.verdict, Verdict::Redirect(_));
    for property in &rule.matches {
        tcp |= matches!(property, Match::Tcp | Match::Opening | Match::ToPorts(_));
        let choices = choices(property, family);
        lines = lines
            .iter()
            .flat_map(|line| choices.iter().map(|choice| line.iter().cloned().chain(choice.clone()).collect()))
            .collect();
    }
    let verdict = match rule.verdict {
        Verdict::Return => "-j RETURN".to_owned(),
        Verdict::Drop => "-j DROP".to_owned(),
        Verdict::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Verdict::Jump(to) => format!("-j {}", name(to)),
    };
    let start = tcp.then(|| "-p tcp".to_owned());
    lines
        .into_iter()
        .map(|line| start.iter().cloned().chain(line).chain([verdict.clone()]).collect::<Vec<_>>().join(" "))
        .collect()
}

/// The words of which any one makes the property hold; none when it cannot hold in this family.
fn choices(property: &Match, family: Family) -> Vec<Option<String>> {
    let each = |flag: &str, nets: &[IpNet]| {
        nets.iter().filter(|net| family.has(net)).map(|net| Some(format!("{flag} {net}"))).collect()
    };
    let one = |words: &str| vec![Some(words.to_owned())];
    match property {
        Match::Tcp => vec![None],
        Match::Opening => one("--syn"),
        Match::Invalid => one("-m conntrack --ctstate INVALID"),
        Match::ToThisHost => one("-m addrtype --dst-type LOCAL"),
        Match::ViaLoopback => one("-o lo"),
        Match::From(nets) => each("-s", nets),
        Match::To(nets) => each("-d", nets),
        Match::NotTo(net) => each("! -d", std::slice::from_ref(net)),
        Match::ToPorts(ranges) => multiport(ranges),
        Match::Uid(uid) => one(&format!("-m owner --uid-owner {uid}")),
    }
}

fn multiport(ranges: &[PortRange]) -> Vec<Option<String>> {
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
    chunks.into_iter().map(|(_, ports)| Some(format!("-m multiport --dports {ports}"))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::{Options, parse_cidr};

    fn scripts(options: &Options) -> [String; 2] {
        let plan = Plan::new(options).unwrap();
        let scripts: Vec<_> = render_both(&plan).into_iter().map(|script| script.text).collect();
        scripts.try_into().unwrap()
    }

    #[test]
    fn the_default_rules_word_for_word() {
        let [v4, v6] = scripts(&Options::default());
        let wanted = "*mangle
:OUTRIGGER_INVALID - [0:0]
-A OUTRIGGER_INVALID -m conntrack --ctstate INVALID -m addrtype --dst-type LOCAL -j DROP
-I PREROUTING 1 -p tcp -j OUTRIGGER_INVALID
COMMIT
*nat
:OUTRIGGER_INBOUND - [0:0]
:OUTRIGGER_OUTBOUND - [0:0]
-A OUTRIGGER_INBOUND -p tcp -m multiport --dports 15020 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -j REDIRECT --to-ports 15006
-A OUTRIGGER_OUTBOUND -o lo -s 127.0.0.6/32 -j RETURN
-A OUTRIGGER_OUTBOUND -o lo -m owner --uid-owner 1337 ! -d 127.0.0.0/8 -j OUTRIGGER_INBOUND
-A OUTRIGGER_OUTBOUND -m owner --uid-owner 1337 -j RETURN
-A OUTRIGGER_OUTBOUND -o lo -j RETURN
-A OUTRIGGER_OUTBOUND -p tcp -j REDIRECT --to-ports 15001
-I OUTPUT 1 -p tcp --syn -j OUTRIGGER_OUTBOUND
-I PREROUTING 1 -p tcp --syn -m addrtype --dst-type LOCAL -j OUTRIGGER_INBOUND
COMMIT
";
        assert_eq!(v4, wanted);
        assert!(v6.contains("-A OUTRIGGER_OUTBOUND -d fe80::/10 -j RETURN\n"), "{v6}");
        assert!(v6.contains("-A OUTRIGGER_OUTBOUND -o lo -s ::6/128 -j RETURN\n"), "{v6}");
        assert!(v6.contains("-o lo -m owner --uid-owner 1337 ! -d ::1/128 -j OUTRIGGER_INBOUND\n"), "{v6}");
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
        assert!(v4.contains("-d 10.0.0.0/8 -j RETURN\n") && v4.contains("-d 192.0.2.1/32 -j RETURN\n"), "{v4}");
        assert!(v6.contains("-d fd00::/8 -j RETURN\n") && !v6.contains("10.0.0.0"), "{v6}");
    }
}
