//! `verify`: proves the redirection with real connections, both directions, both families, without any outside host.
//!
//! The rules are compared with those wanted first, so that a failure can name the rule at fault. Then a connection comes
//! in from [`outside`], and connections of the application and of the sidecar go out to it. Where each has landed is read
//! from the kernel's list of sockets, so that it does not matter who listens: where nobody does (an init container, before
//! the sidecar) we do so ourselves, for as long as it takes.
//!
//! What each connection should meet is asked of the plan ([`crate::plan::Plan::decide`]), with addresses that the options
//! do redirect.

mod connections;
mod outside;
mod packet;
mod place;
mod roles;
mod segment;
mod sockets;

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{
    Error, Options,
    backend::{self, Backend, Choice, Held, Kind},
    ground::{self, Ground},
    netlink::{refused, routing},
    netns,
    plan::{ChainName, Family, Plan},
};

/// How one thing turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As the options say.
    Passed,
    /// Otherwise.
    Failed,
    /// It could not be tried here.
    Skipped,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What, in words.
    pub name: String,
    /// How it turned out.
    pub outcome: Outcome,
    /// What was seen, or why it could not be tried.
    pub detail: String,
    /// The rule at fault.
    pub rule: Option<String>,
}

impl Check {
    fn passed(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), outcome: Outcome::Passed, detail: detail.into(), rule: None }
    }

    fn failed(name: impl Into<String>, detail: impl Into<String>, rule: Option<String>) -> Self {
        Self { name: name.into(), outcome: Outcome::Failed, detail: detail.into(), rule }
    }

    fn skipped(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), outcome: Outcome::Skipped, detail: detail.into(), rule: None }
    }
}

/// What `verify` found.
#[derive(Debug, Serialize)]
pub struct Verified {
    /// `verify`.
    pub command: &'static str,
    /// Whether everything that could be looked at is as it should be.
    pub works: bool,
    /// Whether that was shown by a connection too. Not where none could be made: the checks say why.
    pub proven: bool,
    /// Who holds the rules.
    pub backend: Option<Kind>,
    /// Everything that was looked at.
    pub checks: Vec<Check>,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

impl Verified {
    /// The exit code of the program, stable; see the crate's documentation.
    pub fn exit_code(&self) -> u8 {
        if self.works { 0 } else { 9 }
    }
}

/// Proves that the redirection in the current network namespace does what these options say. Takes well under two
/// seconds. Needs NET_ADMIN and NET_RAW; leaves nothing behind. Waits for a lock for up to `wait`.
///
/// # Errors
/// When it could not be tried; that it was tried and failed is a [`Verified`].
pub fn verify(options: &Options, choice: Choice, wait: Duration) -> Result<Verified, Error> {
    let start = Instant::now();
    let plan = Plan::new(options)?;
    let _lock = netns::lock(wait)?;
    let mut checks = Vec::new();
    let holder = holder(choice, wait, &mut checks)?;
    let mut proven = false;
    if let Some((backend, held)) = &holder {
        let missing = compare(&backend.wanted(&plan), held, &mut checks);
        let needed = Ground::missing(&plan)?;
        if needed.is_empty() {
            checks.push(Check::passed("addresses and routes", "all are there"));
        } else {
            let detail = format!("missing: {}", needed.join("; "));
            checks.push(Check::failed("addresses and routes", detail, None));
        }
        let absent = ground::missing_interfaces(options);
        if !absent.is_empty() {
            let detail = format!("not here: {}; see `ip link`", absent.join(", "));
            checks.push(Check::failed("included interfaces", detail, None));
        }
        let blame = |by: Option<(ChainName, usize)>, family: Family| fault(&plan, backend, &missing, by, family);
        let before = checks.len();
        connections::check(options, &plan, &blame, &mut checks)?;
        proven = checks.iter().skip(before).any(|check| check.outcome == Outcome::Passed);
    }
    let works = checks.iter().all(|check| check.outcome != Outcome::Failed);
    Ok(Verified {
        command: "verify",
        works,
        proven: works && proven,
        backend: holder.map(|(backend, _)| backend.kind()),
        checks,
        milliseconds: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Removes what a run that was killed has left. `true` when something was there.
pub(crate) fn remove_traces() -> Result<bool, Error> {
    let found = !traces()?.is_empty();
    outside::remove().map_err(refused("remove what `verify` left", "look at `ip link` and `ip rule`"))?;
    Ok(found)
}

/// What a run that was killed has left, in words.
pub(crate) fn traces() -> Result<Vec<String>, Error> {
    let mut traces = Vec::new();
    if nix::net::if_::if_nametoindex(outside::OUTER).is_ok() {
        traces.push(format!("the interface {} of a verify that was cut off", outside::OUTER));
    }
    for family in Family::ALL {
        if routing::has_probes(family)? {
            traces.push(format!("the {family} rule 15007 of a verify that was cut off"));
        }
    }
    Ok(traces)
}

/// The one backend that holds rules of ours.
fn holder(choice: Choice, wait: Duration, checks: &mut Vec<Check>) -> Result<Option<(Backend, Held)>, Error> {
    const NAME: &str = "one set of rules";
    let (mut holders, mut first_error) = (Vec::new(), None);
    for backend in backend::present(choice, wait)? {
        match backend.held() {
            Ok(held) if held.0.is_empty() => {}
            Ok(held) => holders.push((backend, held)),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    if holders.len() > 1 {
        let names: Vec<_> = holders.iter().map(|(backend, _)| backend.kind().name()).collect();
        checks.push(Check::failed(NAME, format!("{} hold one each", names.join(" and ")), None));
        return Ok(None);
    }
    match (holders.pop(), first_error) {
        (Some(holder), _) => {
            checks.push(Check::passed(NAME, format!("held by {}", holder.0.kind())));
            Ok(Some(holder))
        }
        (None, Some(error)) => Err(error),
        (None, None) => {
            checks.push(Check::failed(NAME, "no rules of ours are here", None));
            Ok(None)
        }
    }
}

/// Holds what is there against what is wanted, by chain and comment, which bears a hash of what the rule says; returns what is missing, in the tool's words.
fn compare(wanted: &Held, held: &Held, checks: &mut Vec<Check>) -> Vec<String> {
    let key = |rule: &backend::HeldRule| (rule.family, rule.chain.clone(), rule.comment.clone());
    let mut left: Vec<_> = held.0.iter().map(key).collect();
    let mut missing = Vec::new();
    for rule in &wanted.0 {
        match left.iter().position(|found| *found == key(rule)) {
            Some(index) => drop(left.remove(index)),
            None => missing.push(in_words(rule)),
        }
    }
    let extra: Vec<String> = left.iter().map(|(_, chain, comment)| format!("{chain}: {comment:?}")).collect();
    let in_order = || {
        let chain = |rules: &Held| {
            let mut all: Vec<_> = rules.0.iter().map(key).collect();
            // Between chains the order has no meaning, and the tools differ.
            all.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
            all
        };
        chain(wanted) == chain(held)
    };
    checks.push(if let Some(first) = missing.first() {
        let mut detail = format!("{} of {} are missing", missing.len(), wanted.0.len());
        if !extra.is_empty() {
            detail += &format!(
                ", and {} are there instead: installed with other options or by another version; install again",
                extra.len()
            );
        }
        Check::failed("rules", detail, Some(first.clone()))
    } else if let Some(first) = extra.first() {
        let detail = format!("{} are there that these options do not ask for", extra.len());
        Check::failed("rules", detail, Some(first.clone()))
    } else if in_order() {
        Check::passed("rules", format!("all {} are there", wanted.0.len()))
    } else {
        Check::failed("rules", "they are in another order", None)
    });
    missing
}

fn in_words(rule: &backend::HeldRule) -> String {
    // Those of iptables name their chain themselves.
    if rule.family.is_some() { rule.words.clone() } else { format!("{}: {}", rule.chain, rule.words) }
}

/// The rule that is to blame when a packet has not met what the plan decides for it.
fn fault(
    plan: &Plan,
    backend: &Backend,
    missing: &[String],
    by: Option<(ChainName, usize)>,
    family: Family,
) -> Option<String> {
    let (chain, index) = by?;
    let name = plan.rules(chain).get(index)?.name;
    let wanted = backend.wanted(plan);
    let deciding = wanted.0.iter().find(|rule| {
        rule.name() == name
            && rule.family.is_none_or(|of| of == family)
            && rule.chain.to_ascii_lowercase().ends_with(&format!("{}{}", separator(rule), chain.name()))
    })?;
    let words = in_words(deciding);
    if missing.contains(&words) {
        return Some(format!("{words} (missing)"));
    }
    match missing.first() {
        Some(first) => Some(format!("{first} (missing)")),
        None => Some(format!("{words} (there; a rule of somebody else decides before it, or it was changed)")),
    }
}

/// nft's chains have their names alone; in iptables `nat OUTRIGGER_OUTBOUND`.
fn separator(rule: &backend::HeldRule) -> &'static str {
    if rule.family.is_some() { "outrigger_" } else { "" }
}
