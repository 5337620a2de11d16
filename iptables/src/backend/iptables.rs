//! `iptables-restore` and `ip6tables-restore`, speaking to nf_tables or to the legacy interface of the kernel.
//!
//! A restore is atomic for one table only, so this backend reads what is there first ([`saved`]), renders the way
//! from that to what is wanted, and goes the way back when a later table or family refuses. Nothing that is not
//! ours is ever written: chains are called `OUTRIGGER_…`, and the only rules elsewhere are the jumps to them.

mod leftovers;
mod render;
mod saved;

use std::{ffi::OsStr, fs, path::Path, time::Duration};

pub(crate) use render::render_both;
pub(super) use saved::PREFIX;

use crate::{
    Error,
    backend::PART_IS_GONE,
    command::{Ended, Tool},
    netlink::timeout,
    plan::{Family, Plan},
};
use leftovers::Leftovers;
use saved::Tables;

const REMEDY: &str = "the kernel needs NAT, REDIRECT and the matches owner, multiport, conntrack, addrtype and comment \
                      (xt_*), for --mode tproxy TPROXY, CONNMARK, MARK and connmark, for --dns-port and \
                      --close-wait-timeout CT; otherwise try --backend nft";

/// The interface of the kernel that the programs speak to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// nf_tables.
    Nft,
    /// The older one.
    Legacy,
}

impl Variant {
    /// As the programs of this variant end, where they are called apart.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Variant::Nft => "-nft",
            Variant::Legacy => "-legacy",
        }
    }

    /// Why this backend cannot be chosen.
    pub(crate) fn missing(self) -> &'static str {
        match self {
            Variant::Nft => "there is no `iptables-restore` with its `iptables-save` that speaks to nf_tables in PATH",
            Variant::Legacy => "there is no `iptables-restore` with its `iptables-save` of the legacy kind in PATH",
        }
    }
}

/// The programs of one alternative, and what they speak to.
pub(crate) struct Iptables {
    v4: Programs,
    /// Without these a host with IPv6 is refused: its IPv6 connections would go past the sidecar.
    v6: Option<Programs>,
    pub(crate) variant: Variant,
    /// As `iptables-restore` itself says: `iptables-restore v1.8.9 (nf_tables)`.
    version: String,
    /// How long to wait for the lock of iptables.
    wait: Duration,
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

impl Programs {
    /// What they say of themselves, and what they speak to. `None` when they cannot even tell that.
    fn version(&self) -> Option<(String, Variant)> {
        let ended = self.restore.run(&["--version"], "").ok().filter(|ended| ended.success)?;
        let version = ended.stdout.trim().to_owned();
        // Before 1.8 there was only the legacy interface, and the version did not name it.
        let variant = if version.contains("nf_tables") { Variant::Nft } else { Variant::Legacy };
        Some((version, variant))
    }
}

impl Iptables {
    /// The administrator's choice if it is of this variant, else the programs that are named for it.
    pub(crate) fn find(variant: Variant, wait: Duration) -> Option<Self> {
        let mut found = ["", variant.suffix()].into_iter().filter_map(|suffix| Self::with_suffix(suffix, wait));
        found.find(|found| found.variant == variant)
    }

    /// `None` also for programs that cannot even tell their version.
    fn with_suffix(suffix: &str, wait: Duration) -> Option<Self> {
        let v4 = programs(Family::V4, suffix)?;
        let (version, variant) = v4.version()?;
        // The two families are alternatives of their own in Debian: what one speaks to says nothing about the other.
        let same = |v6: &Programs| v6.version().is_some_and(|(_, theirs)| theirs == variant);
        let v6 = [suffix, variant.suffix()].into_iter().filter_map(|suffix| programs(Family::V6, suffix)).find(same);
        Some(Self { v4, v6, variant, version, wait })
    }

    pub(crate) fn describe(&self) -> String {
        self.version.clone()
    }

    pub(crate) fn install(&self, plan: &Plan, notices: &mut Vec<String>) -> Result<(), Error> {
        let mut before: Vec<(&Programs, Tables)> = Vec::new();
        for programs in self.families(plan, notices)? {
            before.push((programs, self.read(programs)?));
        }
        let policies = Policies::read()?;
        if let Err(error) = policies.add(plan) {
            return Err(policies.put_back(error));
        }
        for index in 0..before.len() {
            let Some((programs, current)) = before.get(index) else { break };
            let mut wanted = render::tables(plan, programs.family);
            let outcome = self.leftovers(programs).mark(current, &mut wanted);
            let outcome = outcome.and_then(|()| self.lead(programs, current, &wanted, notices));
            if let Err(error) = outcome {
                let error = self.undo(error, before.get(..=index).unwrap_or_default(), notices);
                return Err(policies.put_back(error));
            }
        }
        Policies::remove_unwanted(plan)
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

    /// Our rules as `iptables-save` prints them, IPv4 before IPv6, each after its table: `nat -A OUTPUT …`.
    pub(crate) fn rules(&self) -> Result<Vec<(Family, String)>, Error> {
        let mut all = Vec::new();
        for programs in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            let rules = self.read(programs)?.rules();
            all.extend(rules.into_iter().map(|rule| (programs.family, rule)));
        }
        Ok(all)
    }

    /// Our chains that hold no rule, as `IPv4 nat OUTRIGGER_INBOUND`.
    pub(crate) fn empty_chains(&self) -> Result<Vec<String>, Error> {
        let mut all = Vec::new();
        for programs in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            let chains = self.read(programs)?.empty_chains();
            all.extend(chains.into_iter().map(|chain| format!("{} {chain}", programs.family)));
        }
        Ok(all)
    }

    /// The same as a plan wants it.
    pub(crate) fn wanted(&self, plan: &Plan) -> Vec<(Family, String)> {
        let families = Family::ALL.into_iter().filter(|family| *family == Family::V4 || self.has_v6());
        families.flat_map(|family| render::tables(plan, family).rules().into_iter().map(move |r| (family, r))).collect()
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

    /// Takes out what decides about new connections and leaves what carries the open ones.
    pub(crate) fn let_drain(&self, notices: &mut Vec<String>) -> Result<(), Error> {
        let target = |current: &Tables| {
            let mut target = current.clone();
            target.let_drain();
            target
        };
        self.take_out(target, notices).map(|_| ())
    }

    /// `false` when there was nothing of ours.
    pub(crate) fn remove(&self, notices: &mut Vec<String>) -> Result<bool, Error> {
        self.take_out(|_| Tables::default(), notices)
    }

    /// Leads each family to what is to stay of it; `false` when that was so already. What was to go and is gone is not
    /// put back when a later table or family refuses, and the error says so.
    fn take_out(&self, target: impl Fn(&Tables) -> Tables, notices: &mut Vec<String>) -> Result<bool, Error> {
        let mut changed = false;
        for programs in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            let outcome = self.read(programs).and_then(|current| {
                let outcome = self.converge(programs, &target(&current), notices);
                // One table after the other: some may be done.
                changed |= outcome.is_err() && self.read(programs).is_ok_and(|now| !now.holds_same(&current));
                outcome
            });
            match outcome {
                Ok(done) => changed |= done,
                Err(error) if changed => return Err(error.with_undo_failure(PART_IS_GONE.to_owned())),
                Err(error) => return Err(error),
            }
        }
        Ok(changed)
    }

    /// Makes the tables of a family hold this of ours and nothing else. `false` when they did already.
    fn converge(&self, programs: &Programs, target: &Tables, notices: &mut Vec<String>) -> Result<bool, Error> {
        let current = self.read(programs)?;
        if current.holds_same(target) {
            return Ok(false);
        }
        self.lead(programs, &current, target, notices)?;
        Ok(true)
    }

    /// Leads the tables of a family from one state to another, and deletes what nobody needs after that.
    fn lead(
        &self,
        programs: &Programs,
        current: &Tables,
        target: &Tables,
        notices: &mut Vec<String>,
    ) -> Result<(), Error> {
        // The notes of what can be deleted go last, for we may be killed before it.
        let leftovers = self.leftovers(programs);
        let mut first = target.clone();
        leftovers.keep_notes(current, &mut first);
        if !current.holds_same(&first) {
            self.restore(programs, &current.way_to(&first), notices)?;
        }
        if let Err(error) = leftovers.sweep(current, target) {
            // An nft that is here and does not work. What it would have deleted is empty and harms nobody.
            let left = self.read(programs)?;
            self.restore(programs, &left.way_to(target), notices)?;
            notices.push(format!("empty chains that iptables-nft made for us could not be deleted: {error}"));
        }
        Ok(())
    }

    fn leftovers(&self, programs: &Programs) -> Leftovers {
        Leftovers::new(programs.family, self.variant == Variant::Legacy)
    }

    /// The families whose tables must be looked at: also the one that is to hold nothing, for it may hold something.
    fn families(&self, plan: &Plan, notices: &mut Vec<String>) -> Result<Vec<&Programs>, Error> {
        match &self.v6 {
            Some(v6) if self.has_v6() => Ok(vec![&self.v4, v6]),
            None if self.has_v6() && plan.families.contains(&Family::V6) => Err(Error::NoBackend(format!(
                "{} is here without an ip6tables-restore and ip6tables-save of its kind, and IPv6 connections would go past the sidecar; \
                 --ipv6 off would accept that",
                self.version
            ))),
            _ => {
                if plan.families.contains(&Family::V6) {
                    notices.push("this kernel has no IPv6: only IPv4 rules are installed".to_owned());
                }
                Ok(vec![&self.v4])
            }
        }
    }

    fn has_v6(&self) -> bool {
        Path::new("/proc/sys/net/ipv6").exists()
    }

    /// What is there. Without `-t`, the save programs look at tables that exist, and so make none.
    fn read(&self, programs: &Programs) -> Result<Tables, Error> {
        // The legacy program is not even started when no legacy table exists: some versions load modules.
        if self.variant == Variant::Legacy && !has_legacy_tables(programs.family) {
            return Ok(Tables::default());
        }
        let ended = programs.save.run(&[], "")?;
        if !ended.success {
            return Err(ended.refusal(programs.save.name().to_owned(), "", REMEDY));
        }
        let mut tables = Tables::parse(&ended.stdout);
        // What is put back must be what was there, and 1.8.9 prints the name of a policy cut short.
        tables.name_policies(render::timeout_name(programs.family));
        Ok(tables)
    }

    fn restore(&self, programs: &Programs, script: &str, notices: &mut Vec<String>) -> Result<(), Error> {
        let seconds = self.wait.as_secs().to_string();
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

/// The time-out policies to which the rules refer, as they were before.
struct Policies(Vec<(Family, Option<Duration>)>);

impl Policies {
    fn read() -> Result<Self, Error> {
        let get = |family| Ok((family, timeout::get(render::timeout_name(family))?));
        Family::ALL.into_iter().map(get).collect::<Result<_, _>>().map(Self)
    }

    fn add(&self, plan: &Plan) -> Result<(), Error> {
        match plan.close_wait {
            Some(_) => plan
                .families
                .iter()
                .try_for_each(|family| timeout::set(render::timeout_name(*family), *family, plan.close_wait)),
            None => Ok(()),
        }
    }

    fn put_back(&self, error: Error) -> Error {
        for (family, before) in &self.0 {
            if let Err(undo) = timeout::set(render::timeout_name(*family), *family, *before) {
                return error.with_undo_failure(undo.to_string());
            }
        }
        error
    }

    fn remove_unwanted(plan: &Plan) -> Result<(), Error> {
        let wanted = |family: &Family| plan.close_wait.is_some() && plan.families.contains(family);
        Family::ALL
            .into_iter()
            .filter(|family| !wanted(family))
            .try_for_each(|family| timeout::set(render::timeout_name(family), family, None))
    }
}

/// What makes the policies that a plan needs, for `print`.
pub(crate) fn policy_commands(plan: &Plan) -> Vec<String> {
    let command = |(family, close_wait): (&Family, Duration)| {
        let layer = if *family == Family::V4 { "inet" } else { "inet6" };
        let (name, seconds) = (render::timeout_name(*family), close_wait.as_secs());
        format!("nfct timeout add {name} {layer} tcp close_wait {seconds}")
    };
    plan.families.iter().zip(plan.close_wait.iter().copied().cycle()).map(command).collect()
}

/// The time-out policies that are there, in words.
pub(crate) fn policies() -> Result<Vec<String>, Error> {
    let there = Policies::read()?.0.into_iter().filter(|(_, policy)| policy.is_some());
    Ok(there.map(|(family, _)| format!("the time-out policy {}", render::timeout_name(family))).collect())
}

/// Removes the time-out policies. `true` when there was one.
pub(crate) fn remove_policies() -> Result<bool, Error> {
    let mut found = false;
    for (family, policy) in Policies::read()?.0 {
        if policy.is_some() {
            timeout::set(render::timeout_name(family), family, None)?;
            found = true;
        }
    }
    Ok(found)
}

fn lock_file_is_out_of_reach(ended: &Ended) -> bool {
    !ended.success && ended.stderr.contains("can't open lock file")
}

/// Whether legacy tables exist in this network namespace. `/proc/net` would be that of the main thread.
pub(crate) fn has_legacy_tables(family: Family) -> bool {
    let name = match family {
        Family::V4 => "ip_tables_names",
        Family::V6 => "ip6_tables_names",
    };
    fs::read_to_string(format!("/proc/thread-self/net/{name}")).is_ok_and(|text| !text.trim().is_empty())
}
