//! `iptables-restore` and `ip6tables-restore`, speaking to nf_tables or to the legacy interface of the kernel.
//!
//! A restore is atomic for one table only, so this backend reads what is there first ([`saved`]), renders the way
//! from that to what is wanted, and goes the way back when a later table or family refuses. Nothing that is not
//! ours is ever written: chains are called `OUTRIGGER_…`, and the only rules elsewhere are the jumps to them.

mod leftovers;
mod render;
mod saved;

use std::{ffi::OsStr, fs, path::Path};

pub(crate) use render::render_both;

use crate::{
    Error,
    command::{Ended, Tool},
    netns::LOCK_WAIT,
    plan::{Family, Plan},
};
use leftovers::Leftovers;
use saved::Tables;

/// Why this backend cannot be chosen.
pub(crate) const MISSING: &str = "there is no `iptables-restore` with its `iptables-save` in PATH";
const REMEDY: &str = "the kernel needs NAT, REDIRECT and the matches owner, multiport, conntrack, addrtype (xt_*); \
                      otherwise try --backend nft";
/// The alternatives of Debian's packages and others; the plain name is the administrator's choice.
const SUFFIXES: [&str; 3] = ["", "-nft", "-legacy"];

/// Whether `install` could choose this backend.
pub(crate) fn is_here() -> bool {
    SUFFIXES.iter().any(|suffix| programs(Family::V4, suffix).is_some())
}

/// The programs of one alternative, and what they speak to.
pub(crate) struct Iptables {
    v4: Programs,
    /// Without these a host with IPv6 is refused: its IPv6 connections would go past the sidecar.
    v6: Option<Programs>,
    legacy: bool,
    /// As `iptables-restore` itself says: `iptables-restore v1.8.9 (nf_tables)`.
    version: String,
}

struct Programs {
    family: Family,
    save: Tool,
    restore: Tool,
}

fn programs(family: Family, suffix: &str) -> Option<Programs> {
    let name = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let tool = |what| Tool::find(&format!("{name}{suffix}-{what}"));
    Some(Programs { family, save: tool("save")?, restore: tool("restore")? })
}

impl Iptables {
    /// The administrator's choice if there is one, else the first that is there.
    pub(crate) fn find() -> Option<Self> {
        SUFFIXES.iter().find_map(|suffix| Self::with_suffix(suffix))
    }

    /// One for each interface of the kernel: nf_tables and legacy.
    pub(crate) fn find_all() -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for alternative in SUFFIXES.into_iter().filter_map(Self::with_suffix) {
            if !found.iter().any(|other| other.speaks_like(&alternative)) {
                found.push(alternative);
            }
        }
        found
    }

    /// `None` also for programs that cannot even tell their version.
    fn with_suffix(suffix: &str) -> Option<Self> {
        let v4 = programs(Family::V4, suffix)?;
        let ended = v4.restore.run(&["--version"], "").ok().filter(|ended| ended.success)?;
        let version = ended.stdout.trim().to_owned();
        // Before 1.8 there was only the legacy interface, and the version did not name it.
        let legacy = !version.contains("nf_tables");
        Some(Self { v4, v6: programs(Family::V6, suffix), legacy, version })
    }

    /// Whether both speak to the same interface of the kernel, and so to the same rules.
    pub(crate) fn speaks_like(&self, other: &Self) -> bool {
        self.legacy == other.legacy
    }

    pub(crate) fn describe(&self) -> String {
        self.version.clone()
    }

    pub(crate) fn install(&self, plan: &Plan, notices: &mut Vec<String>) -> Result<(), Error> {
        let families = self.families(notices)?;
        let mut before: Vec<(&Programs, Tables)> = Vec::new();
        for programs in families {
            before.push((programs, self.read(programs)?));
        }
        for index in 0..before.len() {
            let Some((programs, current)) = before.get(index) else { break };
            let mut wanted = render::tables(plan, programs.family);
            self.leftovers(programs).mark(current, &mut wanted)?;
            if let Err(error) = self.restore(programs, &current.way_to(&wanted), notices) {
                return Err(self.undo(error, before.get(..=index).unwrap_or_default(), notices));
            }
        }
        Ok(())
    }

    /// Puts back what the families held before, and returns the error that made it necessary.
    fn undo(&self, error: Error, before: &[(&Programs, Tables)], notices: &mut Vec<String>) -> Error {
        for (programs, target) in before {
            if let Err(undo) = self.converge(programs, target, notices) {
                return error.with_undo_failure(undo.to_string());
            }
        }
        error
    }

    /// Whether anything of ours is there.
    pub(crate) fn holds_ours(&self) -> Result<bool, Error> {
        for programs in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            if !self.read(programs)?.holds_same(&Tables::default()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `false` when there was nothing of ours.
    pub(crate) fn remove(&self, notices: &mut Vec<String>) -> Result<bool, Error> {
        let mut removed = false;
        for programs in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            removed |= self.converge(programs, &Tables::default(), notices)?;
        }
        Ok(removed)
    }

    /// Makes the tables of a family hold this of ours and nothing else. `false` when they did already.
    fn converge(&self, programs: &Programs, target: &Tables, notices: &mut Vec<String>) -> Result<bool, Error> {
        let current = self.read(programs)?;
        if current.holds_same(target) {
            return Ok(false);
        }
        self.restore(programs, &current.way_to(target), notices)?;
        self.leftovers(programs).sweep(&current, target)?;
        Ok(true)
    }

    fn leftovers(&self, programs: &Programs) -> Leftovers {
        Leftovers::new(programs.family, self.legacy)
    }

    fn families(&self, notices: &mut Vec<String>) -> Result<Vec<&Programs>, Error> {
        let has_v6 = Path::new("/proc/sys/net/ipv6").exists();
        match &self.v6 {
            Some(v6) if has_v6 => Ok(vec![&self.v4, v6]),
            None if has_v6 => Err(Error::NoBackend(format!(
                "{} is here without ip6tables-restore and ip6tables-save, and IPv6 connections would go past the sidecar",
                self.version
            ))),
            _ => {
                notices.push("this kernel has no IPv6: only IPv4 rules are installed".to_owned());
                Ok(vec![&self.v4])
            }
        }
    }

    /// What is there. Without `-t`, the save programs look at tables that exist, and so make none.
    fn read(&self, programs: &Programs) -> Result<Tables, Error> {
        // The legacy program is not even started when no legacy table exists: some versions load modules.
        if self.legacy && !has_legacy_tables(programs.family) {
            return Ok(Tables::default());
        }
        let ended = programs.save.run(&[], "")?;
        if !ended.success {
            return Err(ended.refusal(programs.save.name().to_owned(), "", REMEDY));
        }
        Ok(Tables::parse(&ended.stdout))
    }

    fn restore(&self, programs: &Programs, script: &str, notices: &mut Vec<String>) -> Result<(), Error> {
        let seconds = LOCK_WAIT.as_secs().to_string();
        // Without -w, legacy 1.8.9 waits for ever; nf_tables needs no lock and ignores it.
        let arguments = ["--noflush", "-w", &seconds];
        let mut ended = programs.restore.run(&arguments, script)?;
        if lock_file_is_out_of_reach(&ended) {
            // A read-only root. Runs of ours are serialised already; a lock file that others do not share is no worse
            // than none, and these are the rules of one network namespace.
            ended = programs.restore.run_with(&arguments, script, [("XTABLES_LOCKFILE", OsStr::new("/dev/null"))])?;
            let words = "the lock file of iptables cannot be opened here; went on without it".to_owned();
            if ended.success && !notices.contains(&words) {
                notices.push(words);
            }
        }
        if ended.success {
            return Ok(());
        }
        let command = format!("{} {}", programs.restore.name(), arguments.join(" "));
        if ended.code == Some(4) && ended.stderr.contains("xtables lock") {
            return Err(Error::Busy(format!("`{command}` did not get the lock of iptables: {}", ended.stderr)));
        }
        Err(ended.refusal(command, script, REMEDY))
    }
}

fn lock_file_is_out_of_reach(ended: &Ended) -> bool {
    !ended.success && ended.stderr.contains("can't open lock file")
}

/// `/proc/net` would be that of the main thread.
fn has_legacy_tables(family: Family) -> bool {
    let name = match family {
        Family::V4 => "ip_tables_names",
        Family::V6 => "ip6_tables_names",
    };
    fs::read_to_string(format!("/proc/thread-self/net/{name}")).is_ok_and(|text| !text.trim().is_empty())
}
