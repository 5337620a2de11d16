//! A plan in the words of nft: one table, both families.

use std::fmt::Write;

use crate::{
    backend::comment,
    plan::{Family, Hook, Match, Plan, Point, Protocol, Rule, Verdict},
    values::Interface,
};

/// The script that makes the table hold this plan and nothing else.
pub fn render(plan: &Plan) -> String {
    let mut text = String::from("add table inet outrigger\ndelete table inet outrigger\ntable inet outrigger {\n");
    if let Some(timeout) = plan.close_wait {
        for family in plan.families {
            let (name, layer) = (timeout_name(*family), ip(*family));
            let _ = writeln!(
                text,
                "\tct timeout {name} {{\n\t\tprotocol tcp\n\t\tl3proto {layer}\n\t\tpolicy = {{ close_wait: {} }}\n\t}}",
                timeout.as_secs()
            );
        }
    }
    for chain in &plan.chains {
        let _ = writeln!(text, "\tchain {} {{", chain.name.name());
        for line in chain.rules.iter().flat_map(|rule| lines(rule, plan.families)) {
            let _ = writeln!(text, "\t\t{line}");
        }
        text.push_str("\t}\n");
    }
    let mut points: Vec<Point> = plan.hooks.iter().map(|hook| hook.point).collect();
    points.sort_unstable();
    points.dedup();
    for point in points {
        let (name, place) = base_chain(point);
        let _ = writeln!(text, "\tchain {name} {{\n\t\ttype {place}; policy accept;");
        for hook in plan.hooks.iter().filter(|hook| hook.point == point) {
            let _ = writeln!(text, "\t\t{}", entry(hook));
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}

/// The rules in each chain of a table, in order, each with its comment: of a script, or of a listing of the kernel's.
pub(crate) fn rules(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut chains: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            chains.push((name.to_owned(), Vec::new()));
        } else if let (Some((_, rules)), false) = (chains.last_mut(), is_no_rule(line)) {
            let (words, comment) = line.split_once(" comment \"").unwrap_or((line, ""));
            rules.push((words.to_owned(), comment.trim_end_matches('"').to_owned()));
        }
    }
    chains
}

fn is_no_rule(line: &str) -> bool {
    line.is_empty() || line.starts_with('}') || line.starts_with("type ") || line.ends_with('{')
}

/// A chain that the kernel calls. -150 is after connection tracking (-200) and -300 before it; -101 is before anybody's
/// DNAT (-100), so that an own rule of the user's, appended or not, does not win.
fn base_chain(point: Point) -> (&'static str, &'static str) {
    match point {
        Point::RawPrerouting => ("raw_prerouting", "filter hook prerouting priority -300"),
        Point::RawOutput => ("raw_output", "filter hook output priority -300"),
        Point::TimeoutPrerouting => ("timeout_prerouting", "filter hook prerouting priority -150"),
        Point::TimeoutOutput => ("timeout_output", "filter hook output priority -150"),
        Point::FilterPrerouting => ("filter_prerouting", "filter hook prerouting priority -150"),
        Point::RouteOutput => ("route_output", "route hook output priority -150"),
        Point::NatPrerouting => ("nat_prerouting", "nat hook prerouting priority -101"),
        Point::NatOutput => ("nat_output", "nat hook output priority -101"),
    }
}

/// Where a base chain hands packets over; no guard names addresses or interfaces, so it is one line.
fn entry(hook: &Hook) -> String {
    let mut words: Vec<String> = hook.guard.iter().filter_map(|property| words(property, None, None)).collect();
    words.push(format!("jump {}", hook.chain.name()));
    with_comment(hook.chain.name(), &words.join(" "))
}

/// One rule in the plan is several here where it names addresses (one for each family) or interfaces (one for each: a
/// set of names with wildcards in it is more than older kernels can do).
fn lines(rule: &Rule, all: &[Family]) -> Vec<String> {
    let named: Vec<&Interface> = rule
        .matches
        .iter()
        .find_map(|property| match property {
            Match::ArrivedBy(list) | Match::LeavingThrough(list) => Some(list.iter().collect()),
            _ => None,
        })
        .unwrap_or_default();
    let interfaces: Vec<Option<&Interface>> =
        if named.is_empty() { vec![None] } else { named.into_iter().map(Some).collect() };
    let split = rule.matches.iter().any(|property| matches!(property, Match::From(_) | Match::To(_) | Match::NotTo(_)));
    let families: Vec<Option<Family>> = if split { all.iter().copied().map(Some).collect() } else { vec![None] };
    let mut lines = Vec::new();
    for family in families.into_iter().filter(|family| rule.matches.iter().all(|each| can_hold(each, *family))) {
        for interface in &interfaces {
            let before: Vec<String> =
                rule.matches.iter().filter_map(|property| words(property, family, *interface)).collect();
            for verdict in verdicts(rule.verdict, all) {
                let words: Vec<&str> = before.iter().map(String::as_str).chain([verdict.as_str()]).collect();
                lines.push(with_comment(rule.name, &words.join(" ")));
            }
        }
    }
    lines
}

fn with_comment(name: &str, words: &str) -> String {
    format!("{words} comment \"{}\"", comment(name, words))
}

/// Whether a property that names addresses can hold for packets of this family.
fn can_hold(property: &Match, family: Option<Family>) -> bool {
    match (property, family) {
        (Match::From(nets) | Match::To(nets), Some(family)) => nets.iter().any(|net| family.has(net)),
        (Match::NotTo(net), Some(family)) => family.has(net),
        _ => true,
    }
}

fn words(property: &Match, family: Option<Family>, interface: Option<&Interface>) -> Option<String> {
    let ip = ip(family.unwrap_or(Family::V4));
    let of_family =
        |nets: &[ipnet::IpNet]| one_or_set(nets.iter().filter(|net| family.is_none_or(|family| family.has(net))));
    Some(match property {
        Match::Family(family) => nfproto(*family).to_owned(),
        Match::Protocol(protocol) => format!("meta l4proto {}", transport(*protocol)),
        Match::Opening => "tcp flags & (fin | syn | rst | ack) == syn".to_owned(),
        Match::Invalid => "ct state invalid".to_owned(),
        Match::Original => "ct direction original".to_owned(),
        Match::Reply => "ct direction reply".to_owned(),
        Match::ConnectionBit(bit) => format!("ct mark & {bit:#x} == {bit:#x}"),
        Match::ToThisHost => "fib daddr type local".to_owned(),
        Match::FromElsewhere => "fib saddr type != local".to_owned(),
        Match::ArrivedBy(_) => format!("iifname \"{}\"", interface?),
        Match::LeavingThrough(_) => format!("oifname \"{}\"", interface?),
        Match::From(nets) => format!("{ip} saddr {}", of_family(nets)),
        Match::To(nets) => format!("{ip} daddr {}", of_family(nets)),
        Match::NotTo(net) => format!("{ip} daddr != {net}"),
        Match::ToPorts(protocol, ranges) => format!("{} dport {}", transport(*protocol), one_or_set(ranges)),
        Match::FromPorts(protocol, ranges) => format!("{} sport {}", transport(*protocol), one_or_set(ranges)),
        Match::Uids(ranges) => format!("meta skuid {}", one_or_set(ranges)),
        Match::Gid(gid) => format!("meta skgid {gid}"),
        Match::Mark(mark) => format!("meta mark & {:#x} == {:#x}", mark.mask(), mark.value()),
    })
}

fn verdicts(verdict: Verdict, families: &[Family]) -> Vec<String> {
    match verdict {
        Verdict::Return => vec!["return".to_owned()],
        Verdict::Drop => vec!["drop".to_owned()],
        // Saying the protocol is a must for nft wherever a port is translated.
        Verdict::Redirect(protocol, port) => {
            vec![format!("meta l4proto {} redirect to :{port}", transport(protocol))]
        }
        // Where no socket listens, `tproxy` ends its rule and nothing else: the packet would go on to the application.
        Verdict::Tproxy(port) => families
            .iter()
            .map(|family| format!("{} meta l4proto tcp tproxy {} to :{port} accept", nfproto(*family), ip(*family)))
            .chain(["drop".to_owned()])
            .collect(),
        // `accept` would leave the packet to the next chain of NAT; a translation to what it is already settles it.
        Verdict::KeepDestination => families
            .iter()
            .map(|family| format!("{} dnat {ip} to {ip} daddr", nfproto(*family), ip = ip(*family)))
            .collect(),
        Verdict::Jump(to) => vec![format!("jump {}", to.name())],
        Verdict::Zone(zone) => vec![format!("ct zone set {zone} accept")],
        Verdict::Timeout => families
            .iter()
            .map(|family| format!("{} ct timeout set \"{}\"", nfproto(*family), timeout_name(*family)))
            .collect(),
        Verdict::SetConnectionBit(bit) => vec![format!("ct mark set ct mark | {bit:#x}")],
        Verdict::SetPacketBit(bit) => vec![format!("meta mark set meta mark | {bit:#x}")],
    }
}

fn nfproto(family: Family) -> &'static str {
    match family {
        Family::V4 => "meta nfproto ipv4",
        Family::V6 => "meta nfproto ipv6",
    }
}

fn timeout_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "close_wait_v4",
        Family::V6 => "close_wait_v6",
    }
}

fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn transport(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn one_or_set<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<_> = values.into_iter().map(|value| value.to_string()).collect();
    match values.as_slice() {
        [one] => one.clone(),
        many => format!("{{ {} }}", many.join(", ")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::{Options, parse_cidr};

    #[test]
    fn the_default_table_word_for_word() {
        let wanted = r#"add table inet outrigger
delete table inet outrigger
table inet outrigger {
	chain inbound {
		tcp dport 15020 return comment "exclude-ports"
		meta l4proto tcp redirect to :15006 comment "redirect"
	}
	chain invalid {
		ct state invalid fib daddr type local drop comment "invalid"
	}
	chain peers {
		jump inbound comment "inbound"
	}
	chain outbound {
		oifname "lo" ip saddr 127.0.0.6/32 return comment "leg"
		oifname "lo" ip6 saddr ::6/128 return comment "leg"
		ip6 daddr fe80::/10 return comment "link-local"
		oifname "lo" meta skuid 1337 ip daddr != 127.0.0.0/8 jump inbound comment "proxy-to-own-pod"
		oifname "lo" meta skuid 1337 ip6 daddr != ::1/128 jump inbound comment "proxy-to-own-pod"
		meta skuid 1337 return comment "proxy"
		oifname "lo" return comment "loopback"
		meta l4proto tcp redirect to :15001 comment "redirect"
	}
	chain filter_prerouting {
		type filter hook prerouting priority -150; policy accept;
		meta l4proto tcp jump invalid comment "invalid"
	}
	chain nat_prerouting {
		type nat hook prerouting priority -101; policy accept;
		tcp flags & (fin | syn | rst | ack) == syn fib daddr type local jump peers comment "peers"
	}
	chain nat_output {
		type nat hook output priority -101; policy accept;
		tcp flags & (fin | syn | rst | ack) == syn jump outbound comment "outbound"
	}
}
"#;
        // Without the hashes.
        let text: String = render(&Plan::new(&Options::default()).unwrap())
            .lines()
            .map(|line| match line.rsplit_once('_') {
                Some((before, hash)) if hash.len() == 9 && hash.ends_with('"') => format!("{before}\"\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        assert_eq!(text, wanted);
    }

    #[test]
    fn exclusions_of_both_families_become_one_rule_each() {
        let options = Options {
            exclude_inbound_ports: ["22", "9000-9010"].map(|text| text.parse().unwrap()).to_vec(),
            exclude_outbound_cidrs: ["10.0.0.0/8", "fd00::/8", "192.0.2.1"]
                .map(|text| parse_cidr(text).unwrap())
                .to_vec(),
            ..Options::default()
        };
        let text = render(&Plan::new(&options).unwrap());
        for wanted in [
            "tcp dport { 22, 9000-9010, 15020 } return comment",
            "ip daddr { 10.0.0.0/8, 192.0.2.1/32 } return comment",
            "ip6 daddr fd00::/8 return comment",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
        }
    }
}
