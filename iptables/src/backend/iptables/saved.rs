//! What of ours is in the tables, and the way from one such state to another.

use std::collections::BTreeMap;

use super::render::name;
use crate::{
    backend::DECIDING,
    plan::ChainName::{self, Peers as PEERS, Transparent as TRANSPARENT, Untranslated as UNTRANSLATED},
};

const MANGLE: &str = "mangle";
const NAT: &str = "nat";

/// Our part of every table of one family, by the table's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tables(pub(super) BTreeMap<String, Table>);

/// Our part of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// Our chains, in the order in which they were made.
    pub(super) chains: Vec<String>,
    /// The rules in them, as `-A CHAIN …`.
    pub(super) rules: Vec<String>,
    /// The rules elsewhere that lead to them, as `CHAIN …`, without the `-A`.
    pub(super) jumps: Vec<String>,
}

/// Every chain of ours begins so, and none of anybody else.
pub(in crate::backend) const PREFIX: &str = "OUTRIGGER_";

impl Tables {
    /// Reads the output of `iptables-save`.
    pub(super) fn parse(saved: &str) -> Self {
        let mut tables = BTreeMap::<String, Table>::new();
        let mut current = None;
        for line in saved.lines() {
            if let Some(name) = line.strip_prefix('*') {
                current = Some(tables.entry(name.to_owned()).or_default());
            } else if let Some(table) = current.as_deref_mut() {
                table.read(line);
            }
        }
        Self(tables)
    }

    /// Whether our part of both is the same; tables that hold nothing of ours do not count.
    pub(super) fn holds_same(&self, other: &Self) -> bool {
        let ours = |tables: &Self| -> Vec<_> {
            tables.0.clone().into_iter().filter(|(_, table)| *table != Table::default()).collect()
        };
        ours(self) == ours(other)
    }

    /// Writes this name after every `--timeout` of our rules.
    pub(super) fn name_policies(&mut self, name: &str) {
        for rule in self.0.values_mut().flat_map(|table| &mut table.rules) {
            if let Some((before, _)) = rule.split_once(" --timeout ") {
                *rule = format!("{before} --timeout {name}");
            }
        }
    }

    /// Every rule of ours with its table in front of it.
    pub(super) fn rules(&self) -> Vec<String> {
        let of = |name: &String, table: &Table| -> Vec<String> {
            let jumps = table.jumps.iter().map(|jump| format!("{name} -A {jump}"));
            jumps.chain(table.rules.iter().map(|rule| format!("{name} {rule}"))).collect()
        };
        self.0.iter().flat_map(|(name, table)| of(name, table)).collect()
    }

    /// Our chains that hold no rule, each after its table.
    pub(super) fn empty_chains(&self) -> Vec<String> {
        let of = |name: &String, table: &Table| -> Vec<String> {
            let is_empty = |chain: &&String| !table.rules.iter().any(|rule| rule.starts_with(&format!("-A {chain} ")));
            table.chains.iter().filter(is_empty).map(|chain| format!("{name} {chain}")).collect()
        };
        self.0.iter().flat_map(|(name, table)| of(name, table)).collect()
    }

    /// Takes out the rules that decide about new connections. The jumps to their chains stay, and with them the hooks
    /// by which the kernel goes on translating.
    pub(super) fn let_drain(&mut self) {
        let decides = |rule: &String| {
            let chain = rule.strip_prefix("-A ").and_then(|rest| rest.split(' ').next());
            chain
                .and_then(|chain| chain.strip_prefix(PREFIX))
                .is_some_and(|chain| DECIDING.iter().any(|deciding| deciding.name().eq_ignore_ascii_case(chain)))
        };
        for table in self.0.values_mut() {
            table.rules.retain(|rule| !decides(rule));
        }
    }

    /// The script for `iptables-restore --noflush` that leads from here to there, table by table. Between REDIRECT and
    /// TPROXY `nat` is written twice ([`Self::crossing`]).
    pub(super) fn way_to(&self, target: &Self) -> String {
        let nothing = Table::default();
        let mut script = String::new();
        let crossing = self.crossing(target);
        if let Some(crossing) = &crossing {
            self.0.get(NAT).unwrap_or(&nothing).write_way(NAT, crossing, &mut script);
        }
        let mut names: Vec<&String> = self.0.keys().chain(target.0.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let from = crossing.as_ref().filter(|_| name == NAT).or(self.0.get(name)).unwrap_or(&nothing);
            from.write_way(name, target.0.get(name).unwrap_or(&nothing), &mut script);
        }
        script
    }

    /// What `nat` must hold while `mangle` changes, when one of both states takes inbound connections by REDIRECT and the
    /// other by TPROXY: each table is a commit of its own, and at every moment one of the two must take them, and only
    /// one. So REDIRECT is there first and goes last, and before it stands what keeps it from those that TPROXY has taken.
    fn crossing(&self, target: &Self) -> Option<Table> {
        let (redirect, tproxy) = match (self.takes(MANGLE, TRANSPARENT), target.takes(MANGLE, TRANSPARENT)) {
            (true, false) if target.takes(NAT, PEERS) => (target, self),
            (false, true) if self.takes(NAT, PEERS) => (self, target),
            _ => return None,
        };
        let mut nat = redirect.0.get(NAT)?.clone();
        let untranslated = name(UNTRANSLATED);
        let own = format!("-A {untranslated} ");
        let leads = |jump: &String| leads_to(jump, &untranslated);
        nat.chains.retain(|chain| *chain != untranslated);
        nat.rules.retain(|rule| !rule.starts_with(&own));
        nat.jumps.retain(|jump| !leads(jump));
        if let Some(other) = tproxy.0.get(NAT) {
            nat.chains.extend(other.chains.iter().filter(|chain| **chain == untranslated).cloned());
            nat.rules.extend(other.rules.iter().filter(|rule| rule.starts_with(&own)).cloned());
            let first: Vec<String> = other.jumps.iter().filter(|jump| leads(jump)).cloned().collect();
            nat.jumps.splice(..0, first);
        }
        Some(nat)
    }

    /// Whether packets enter this chain of this table.
    fn takes(&self, table: &str, chain: ChainName) -> bool {
        self.0.get(table).is_some_and(|table| table.jumps.iter().any(|jump| leads_to(jump, &name(chain))))
    }
}

impl Table {
    /// The way from here to there in one commit: our chains emptied or made, every old jump deleted (one `-D` for each, or
    /// repeating would add up), the new rules, the new jumps in first place, the chains that are no longer wanted deleted.
    fn write_way(&self, name: &str, to: &Self, script: &mut String) {
        let nothing = Self::default();
        if *self == nothing && *to == nothing {
            return;
        }
        let gone: Vec<_> = self.chains.iter().filter(|chain| !to.chains.contains(chain)).collect();
        let mut line = |words: &str, rest: &str| {
            script.push_str(words);
            script.push_str(rest);
            script.push('\n');
        };
        line("*", name);
        to.chains.iter().chain(gone.iter().copied()).for_each(|chain| line(":", &format!("{chain} - [0:0]")));
        self.jumps.iter().for_each(|jump| line("-D ", jump));
        to.rules.iter().for_each(|rule| line(rule, ""));
        // The last to be inserted comes first, so the first goes last.
        to.jumps.iter().rev().for_each(|jump| line("-I ", &at_first_place(jump)));
        gone.iter().for_each(|chain| line("-X ", chain));
        line("COMMIT", "");
    }

    fn read(&mut self, line: &str) {
        if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            if chain.starts_with(PREFIX) {
                self.chains.push(chain.to_owned());
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            if rule.starts_with(PREFIX) {
                self.rules.push(line.to_owned());
            } else if [" -j ", " -g "].iter().any(|word| rule.contains(&format!("{word}{PREFIX}"))) {
                self.jumps.push(rule.to_owned());
            }
        }
    }
}

/// Whether this rule jumps to this chain.
fn leads_to(jump: &str, chain: &str) -> bool {
    jump.split_once(" -j ").is_some_and(|(_, target)| target.split(' ').next() == Some(chain))
}

fn at_first_place(jump: &str) -> String {
    match jump.split_once(' ') {
        Some((chain, rest)) => format!("{chain} 1 {rest}"),
        None => jump.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{super::render::tables, *};
    use crate::{
        Mode, Options,
        plan::{Family, Plan},
    };

    const SAVED: &str = "# Generated\n*nat\n:PREROUTING ACCEPT [3:180]\n:OUTPUT ACCEPT [0:0]\n:OUTRIGGER_INBOUND - [0:0]\n\
        :DOCKER - [0:0]\n-A PREROUTING -p tcp -j OUTRIGGER_INBOUND\n-A PREROUTING -j DOCKER\n\
        -A PREROUTING -p tcp -j OUTRIGGER_INBOUND\n-A OUTRIGGER_INBOUND -p tcp -j REDIRECT --to-ports 1\nCOMMIT\n\
        *filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n";

    #[test]
    fn only_what_is_ours_is_read() {
        let tables = Tables::parse(SAVED);
        let nat = &tables.0["nat"];
        assert_eq!(nat.chains, ["OUTRIGGER_INBOUND"]);
        assert_eq!(nat.rules, ["-A OUTRIGGER_INBOUND -p tcp -j REDIRECT --to-ports 1"]);
        assert_eq!(nat.jumps, ["PREROUTING -p tcp -j OUTRIGGER_INBOUND"; 2]);
        assert_eq!(tables.0["filter"], Table::default());
    }

    #[test]
    fn the_way_to_nothing_takes_every_jump_and_chain() {
        let script = Tables::parse(SAVED).way_to(&Tables::default());
        let jump = "-D PREROUTING -p tcp -j OUTRIGGER_INBOUND\n";
        assert_eq!(script, format!("*nat\n:OUTRIGGER_INBOUND - [0:0]\n{jump}{jump}-X OUTRIGGER_INBOUND\nCOMMIT\n"));
    }

    #[test]
    fn the_way_to_a_state_from_double_jumps_has_one_jump_in_first_place() {
        let current = Tables::parse(SAVED);
        let mut target = current.clone();
        if let Some(nat) = target.0.get_mut("nat") {
            nat.jumps.truncate(1);
        }
        let script = current.way_to(&target);
        assert_eq!(script.matches("-D PREROUTING").count(), 2);
        assert_eq!(script.matches("-I PREROUTING 1 -p tcp -j OUTRIGGER_INBOUND").count(), 1);
        assert!(!script.contains("DOCKER"));
    }

    /// Each table's script of the way between two sets, in order.
    fn commits(from: &Options, to: &Options) -> Vec<String> {
        let [from, to] = [from, to].map(|options| tables(&Plan::new(options).unwrap(), Family::V4));
        from.way_to(&to).split_inclusive("COMMIT\n").map(str::to_owned).collect()
    }

    #[test]
    fn between_the_modes_nat_takes_connections_before_and_after_mangle_does() {
        let (redirect, tproxy) = (Options::default(), Options { mode: Mode::Tproxy, ..Options::default() });
        let (peers, untranslated) = ("-j OUTRIGGER_PEERS\n", "-j OUTRIGGER_UNTRANSLATED\n");
        for (from, to) in [(&redirect, &tproxy), (&tproxy, &redirect)] {
            let commits = commits(from, to);
            let tables: Vec<_> = commits.iter().map(|script| script.lines().next().unwrap()).collect();
            assert_eq!(tables, ["*nat", "*mangle", "*nat"]);
            let inserted: Vec<_> = commits[0]
                .lines()
                .filter(|line| line.starts_with("-I PREROUTING"))
                .map(|line| format!("{line}\n"))
                .collect();
            // The last to be inserted stands first: what TPROXY has taken is not translated.
            assert!(inserted[0].ends_with(peers) && inserted[1].ends_with(untranslated), "{inserted:?}");
            assert_eq!(inserted.len(), 2);
            assert_eq!(commits[2].matches("-D PREROUTING").count(), 2, "{}", commits[2]);
            assert_eq!(commits[2].matches("-I PREROUTING").count(), 1, "{}", commits[2]);
        }
        for mode in [&redirect, &tproxy] {
            assert_eq!(commits(mode, mode).len(), 2);
        }
    }
}
