//! iptables-nft makes the tables and base chains that it needs and never deletes them. To leave no trace, `install`
//! notes which of them were not there, and `remove` deletes those if nobody else has used them since.
//!
//! The note is kept where the rules are, as empty chains, because there is no other place that lives and dies with a
//! network namespace. Only `nft` can tell whether a base chain exists; without it nobody sees the difference, since
//! `iptables-save` prints all base chains of a table anyway. Legacy tables cannot be deleted by anything.

use super::saved::{PREFIX, Tables};
use crate::{Error, backend::nft::Nft, plan::Family};

/// In a table that we made.
const MADE_TABLE: &str = "MADE_TABLE";
/// In a table in which we made this base chain.
const MADE: &str = "MADE_";

pub(super) struct Leftovers {
    nft: Option<Nft>,
    family: &'static str,
}

impl Leftovers {
    pub(super) fn new(family: Family, legacy: bool) -> Self {
        let family = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        Self { nft: if legacy { None } else { Nft::find() }, family }
    }

    /// Adds the notes to what is wanted: the ones that are there already, and new ones for what we are about to make.
    pub(super) fn mark(&self, current: &Tables, wanted: &mut Tables) -> Result<(), Error> {
        for (name, table) in &mut wanted.0 {
            let old = current.0.get(name);
            let mut bases: Vec<String> =
                table.jumps.iter().filter_map(|jump| jump.split(' ').next().map(str::to_owned)).collect();
            bases.sort_unstable();
            bases.dedup();
            // A base chain that only an earlier set needed is not kept.
            let still = |chain: &&String| {
                note(chain).is_some_and(|note| {
                    note == MADE_TABLE
                        || note.strip_prefix(MADE).is_some_and(|base| bases.iter().any(|each| each == base))
                })
            };
            table.chains.extend(old.into_iter().flat_map(|table| &table.chains).filter(still).cloned());
            let Some(nft) = &self.nft else { continue };
            if old.is_none() {
                table.chains.push(format!("{PREFIX}{MADE_TABLE}"));
            }
            for base in bases {
                let note = format!("{PREFIX}{MADE}{base}");
                if !table.chains.contains(&note) && nft.list_lines(&["chain", self.family, name, &base])?.is_none() {
                    table.chains.push(note);
                }
            }
        }
        Ok(())
    }

    /// Adds the notes that are there to a state on the way, so that they outlive it.
    pub(super) fn keep_notes(&self, current: &Tables, state: &mut Tables) {
        if self.nft.is_none() {
            return;
        }
        for (name, table) in &current.0 {
            let notes = table.chains.iter().filter(|chain| note(chain).is_some());
            let kept = &mut state.0.entry(name.clone()).or_default().chains;
            notes.for_each(|note| {
                if !kept.contains(note) {
                    kept.push(note.clone())
                }
            });
        }
    }

    /// Deletes what the notes that were in `before` and are not in `after` speak of, unless it is in use, and with it
    /// the notes: one transaction for each table.
    pub(super) fn sweep(&self, before: &Tables, after: &Tables) -> Result<(), Error> {
        let Some(nft) = &self.nft else { return Ok(()) };
        for (name, table) in &before.0 {
            let kept = after.0.get(name).map(|table| table.chains.as_slice()).unwrap_or_default();
            let gone: Vec<(&str, &str)> = table
                .chains
                .iter()
                .filter(|chain| !kept.contains(chain))
                .filter_map(|chain| Some((chain.as_str(), note(chain)?)))
                .collect();
            if gone.is_empty() {
                continue;
            }
            let mut notes: Vec<String> = Vec::new();
            let mut bases: Vec<String> = Vec::new();
            for (chain, note) in &gone {
                notes.push(format!("delete chain {} {name} {chain}", self.family));
                let Some(base) = note.strip_prefix(MADE).filter(|_| *note != MADE_TABLE) else { continue };
                if is_empty_chain(nft.list_lines(&["chain", self.family, name, base])?.as_deref()) {
                    bases.push(format!("delete chain {} {name} {base}", self.family));
                }
            }
            let mut script = notes.clone();
            script.extend(bases.iter().cloned());
            // Nothing in it but what we made and may delete.
            let lines = nft.list_lines(&["table", self.family, name])?.unwrap_or_default();
            if gone.iter().any(|(_, note)| *note == MADE_TABLE)
                && lines.iter().filter(|line| line.starts_with("chain ")).count() == notes.len() + bases.len()
                && !lines
                    .iter()
                    .any(|line| ["set ", "map ", "flowtable ", "ct "].iter().any(|kind| line.starts_with(kind)))
            {
                script = vec![format!("delete table {} {name}", self.family)];
            }
            // Somebody has begun to use it at this very moment: it is theirs now.
            if nft.run_script(&script.join("\n")).is_err() {
                nft.run_script(&notes.join("\n"))?;
            }
        }
        Ok(())
    }
}

/// The note that a chain's name is, if it is one.
fn note(chain: &str) -> Option<&str> {
    chain.strip_prefix(PREFIX).filter(|rest| rest.starts_with(MADE))
}

/// `table ip nat {`, `chain OUTPUT {`, `type nat hook … policy accept;`, `}`, `}`: no rule, and no policy of anybody's.
fn is_empty_chain(lines: Option<&[String]>) -> bool {
    lines.is_some_and(|lines| lines.len() == 5 && lines.get(2).is_some_and(|line| line.ends_with("policy accept;")))
}
