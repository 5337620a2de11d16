//! Native nftables: the table `inet outrigger` holds everything, both families, and is replaced in one transaction.
//!
//! `add table; delete table; table …` in one `nft -f` is idempotent: the kernel sees the new table and the end of the
//! old one at the same moment. Connections that were redirected by the old table keep their translation, which lives
//! in connection tracking.

use std::fmt::Write;

use crate::{
    Error,
    command::{Ended, Tool},
    plan::{ChainName, Family, Hook, Match, Plan, Point, Rule, Verdict},
};

/// Why this backend cannot be chosen.
pub(crate) const MISSING: &str = "there is no `nft` in PATH";
const REMEDY: &str = "the kernel needs nf_tables, nft_fib and NAT for `inet` (Linux 5.2 and its modules); otherwise try \
                      --backend iptables";

/// The `nft` program.
pub(crate) struct Nft {
    tool: Tool,
}

impl Nft {
    pub(crate) fn find() -> Option<Self> {
        Tool::find("nft").map(|tool| Self { tool })
    }

    /// Whether the kernel would take the rules; nothing is changed.
    pub(crate) fn check(&self, plan: &Plan) -> Result<(), Error> {
        self.apply(&["--check", "-f", "-"], &render(plan))
    }

    pub(crate) fn install(&self, plan: &Plan) -> Result<(), Error> {
        self.apply(&["-f", "-"], &render(plan))
    }

    /// Whether our table is there.
    pub(crate) fn holds_ours(&self) -> Result<bool, Error> {
        let tables = self.list(&["list", "tables", "inet"])?;
        Ok(tables.stdout.lines().any(|line| line.trim() == "table inet outrigger"))
    }

    /// `false` when the table was not there.
    pub(crate) fn remove(&self) -> Result<bool, Error> {
        if !self.holds_ours()? {
            return Ok(false);
        }
        self.apply(&["-f", "-"], "delete table inet outrigger\n")?;
        Ok(true)
    }

    /// What is in a chain or table of iptables-nft, as lines; `None` when it is not there.
    pub(crate) fn list_lines(&self, what: &[&str]) -> Result<Option<Vec<String>>, Error> {
        let ended = self.tool.run(&[&["list"], what].concat(), "")?;
        let lines = ended.stdout.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(ended.success.then(|| lines.map(str::to_owned).collect()))
    }

    /// Deletes a chain or table that the caller has seen to be empty.
    pub(crate) fn delete(&self, what: &[&str]) -> Result<(), Error> {
        self.apply(&["-f", "-"], &format!("delete {}\n", what.join(" ")))
    }

    fn list(&self, arguments: &[&str]) -> Result<Ended, Error> {
        let ended = self.tool.run(arguments, "")?;
        if ended.success { Ok(ended) } else { Err(ended.refusal(self.line(arguments), "", REMEDY)) }
    }

    fn apply(&self, arguments: &[&str], script: &str) -> Result<(), Error> {
        let ended = self.tool.run(arguments, script)?;
        if ended.success { Ok(()) } else { Err(ended.refusal(self.line(arguments), script, REMEDY)) }
    }

    fn line(&self, arguments: &[&str]) -> String {
        format!("{} {}", self.tool.name(), arguments.join(" "))
    }
}

/// The plan as a script for `nft -f -`.
pub fn render(plan: &Plan) -> String {
    let mut text = String::from("add table inet outrigger\ndelete table inet outrigger\ntable inet outrigger {\n");
    for chain in &plan.chains {
        text.push_str(&format!("\tchain {} {{\n", name(chain.name)));
        for line in chain.rules.iter().flat_map(rule) {
            text.push_str(&format!("\t\t{line}\n"));
        }
        text.push_str("\t}\n");
    }
    for hook in &plan.hooks {
        let _ = writeln!(text, "\tchain {}\n", base_chain(hook));
    }
    text.truncate(text.trim_end().len());
    text.push_str("\n}\n");
    text
}

fn base_chain(hook: &Hook) -> String {
    // -150 is after connection tracking (-200); -101 is before anybody's DNAT (-100).
    let (own_name, place) = match hook.point {
        Point::FilterPrerouting => ("filter_prerouting", "filter hook prerouting priority -150"),
        Point::NatPrerouting => ("nat_prerouting", "nat hook prerouting priority -101"),
        Point::NatOutput => ("nat_output", "nat hook output priority -101"),
    };
    let guarded = rule(&Rule { matches: hook.guard.clone(), verdict: Verdict::Jump(hook.chain) }).join("\n\t\t");
    format!("{own_name} {{\n\t\ttype {place}; policy accept;\n\t\t{guarded}\n\t}}")
}

fn name(chain: ChainName) -> &'static str {
    match chain {
        ChainName::Invalid => "invalid",
        ChainName::Inbound => "inbound",
        ChainName::Outbound => "outbound",
    }
}

/// One rule, or one for each family when it names addresses.
fn rule(rule: &Rule) -> Vec<String> {
    let of_family = |family: Family| rule.matches.iter().all(|property| speaks_of(property, Some(family)));
    if rule.matches.iter().all(|property| speaks_of(property, None)) {
        vec![line(rule, None)]
    } else {
        Family::ALL.into_iter().filter(|family| of_family(*family)).map(|family| line(rule, Some(family))).collect()
    }
}

/// Whether the property can hold for packets of this family; without a family, whether it can be said of both at once.
fn speaks_of(property: &Match, family: Option<Family>) -> bool {
    match (property, family) {
        (Match::From(nets) | Match::To(nets), Some(family)) => nets.iter().any(|net| family.has(net)),
        (Match::NotTo(net), Some(family)) => family.has(net),
        (Match::From(_) | Match::To(_) | Match::NotTo(_), None) => false,
        _ => true,
    }
}

fn line(rule: &Rule, family: Option<Family>) -> String {
    let ip = match family {
        Some(Family::V6) => "ip6",
        _ => "ip",
    };
    let nets = |nets: &[ipnet::IpNet]| {
        one_or_set(nets.iter().filter(|net| family.is_none_or(|family| family.has(net))).map(ToString::to_string))
    };
    let mut words: Vec<String> = Vec::new();
    for property in &rule.matches {
        words.push(match property {
            Match::Tcp => "meta l4proto tcp".to_owned(),
            Match::Opening => "tcp flags & (fin | syn | rst | ack) == syn".to_owned(),
            Match::Invalid => "ct state invalid".to_owned(),
            Match::ToThisHost => "fib daddr type local".to_owned(),
            Match::ViaLoopback => "oifname \"lo\"".to_owned(),
            Match::From(list) => format!("{ip} saddr {}", nets(list)),
            Match::To(list) => format!("{ip} daddr {}", nets(list)),
            Match::NotTo(net) => format!("{ip} daddr != {net}"),
            Match::ToPorts(ranges) => format!("tcp dport {}", one_or_set(ranges.iter().map(ToString::to_string))),
            Match::Uid(uid) => format!("meta skuid {uid}"),
        });
    }
    words.push(match rule.verdict {
        Verdict::Return => "return".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        // Saying the protocol is a must for nft wherever a port is translated.
        Verdict::Redirect(port) => format!("meta l4proto tcp redirect to :{port}"),
        Verdict::Jump(to) => format!("jump {}", name(to)),
    });
    words.join(" ")
}

fn one_or_set(values: impl Iterator<Item = String>) -> String {
    let values: Vec<_> = values.collect();
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
	chain invalid {
		ct state invalid fib daddr type local drop
	}
	chain inbound {
		tcp dport 15020 return
		meta l4proto tcp redirect to :15006
	}
	chain outbound {
		oifname "lo" ip saddr 127.0.0.6/32 return
		oifname "lo" ip6 saddr ::6/128 return
		ip6 daddr fe80::/10 return
		oifname "lo" meta skuid 1337 ip daddr != 127.0.0.0/8 jump inbound
		oifname "lo" meta skuid 1337 ip6 daddr != ::1/128 jump inbound
		meta skuid 1337 return
		oifname "lo" return
		meta l4proto tcp redirect to :15001
	}
	chain filter_prerouting {
		type filter hook prerouting priority -150; policy accept;
		meta l4proto tcp jump invalid
	}

	chain nat_prerouting {
		type nat hook prerouting priority -101; policy accept;
		tcp flags & (fin | syn | rst | ack) == syn fib daddr type local jump inbound
	}

	chain nat_output {
		type nat hook output priority -101; policy accept;
		tcp flags & (fin | syn | rst | ack) == syn jump outbound
	}
}
"#;
        assert_eq!(render(&Plan::new(&Options::default()).unwrap()), wanted);
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
            "tcp dport { 22, 9000-9010, 15020 } return\n",
            "ip daddr { 10.0.0.0/8, 192.0.2.1/32 } return\n",
            "ip6 daddr fd00::/8 return\n",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
        }
    }
}
