//! `install` and `print`.

use std::time::Duration;

use serde::Serialize;

use crate::{
    Error, Options, Report,
    backend::{self, Choice, Kind, iptables, nft},
    ground::{self, Ground},
    netns,
    plan::Plan,
    verify,
};

/// Installs the redirection in the current network namespace. Repeating it is harmless: it ends in exactly one set of
/// rules, and connections that are open, redirected or not, live on. Waits for a lock for up to `wait`.
///
/// # Errors
/// After every error but [`Error::HalfApplied`] the rules are as they were.
pub fn install(options: &Options, choice: Choice, wait: Duration) -> Result<Report, Error> {
    let plan = Plan::new(options)?;
    let _lock = netns::lock(wait)?;
    let (backend, why) = backend::choose(choice, &plan, wait)?;
    let mut notices = options.notices();
    ground::warn_of_ipv6_bypass(options, &mut notices);
    let missing = ground::missing_interfaces(options);
    if !missing.is_empty() {
        notices.push(format!(
            "--include-interfaces names {}, which is not here now: nothing is redirected there until it is",
            missing.join(", ")
        ));
    }
    let ground = Ground::prepare(&plan, options, &mut notices)?;
    if let Err(error) = backend.install(&plan, &mut notices) {
        return Err(ground.take_back(error));
    }
    // The other tools may hold an older set of ours: two sets would decide differently as soon as options change.
    backend
        .remove_elsewhere(wait, &mut notices)
        .map_err(|error| error.with_undo_failure("the new rules are in, and so is an older set of ours".to_owned()))?;
    clean_up(&plan, backend.kind()).map_err(|error| {
        error.with_undo_failure("the new rules are in, and so is what an older set of ours needed".to_owned())
    })?;
    netns::warn_if_strict_conntrack(&mut notices);
    Ok(Report { command: "install", backends: vec![backend.kind()], why, notices })
}

/// What earlier runs needed and this one does not.
fn clean_up(plan: &Plan, kind: Kind) -> Result<(), Error> {
    Ground::remove_unneeded(plan)?;
    if kind == Kind::Nft {
        iptables::remove_policies()?;
    }
    verify::remove_traces()?;
    Ok(())
}

/// One script that `install` would hand to a tool.
#[derive(Debug, Serialize)]
pub struct Script {
    /// The command that reads it on its standard input.
    pub command: String,
    /// The script.
    pub text: String,
}

/// What `install` would do.
#[derive(Debug, Serialize)]
pub struct Printed {
    /// `print`.
    pub command: &'static str,
    /// The backend, by which tools exist.
    pub backend: Kind,
    /// Why this one.
    pub why: String,
    /// What it would do besides, as commands that do the same; it does them itself.
    pub before: Vec<String>,
    /// The scripts, in order.
    pub scripts: Vec<Script>,
    /// What the operator should know.
    pub notices: Vec<String>,
}

/// What `install` would apply onto a host that holds nothing of ours. Needs no privilege and changes nothing. `auto` is
/// decided by which tools exist, since asking the kernel needs a privilege.
///
/// # Errors
/// Only when the options contradict each other.
pub fn print(options: &Options, choice: Choice, wait: Duration) -> Result<Printed, Error> {
    let plan = Plan::new(options)?;
    let (backend, why) = backend::choose_unprivileged(choice, wait);
    let mut before = Ground::commands(&plan);
    let scripts = match backend {
        Kind::Nft => vec![Script { command: "nft -f -".to_owned(), text: nft::render(&plan) }],
        Kind::IptablesNft => iptables::render_both(&plan, "-nft"),
        Kind::IptablesLegacy => iptables::render_both(&plan, "-legacy"),
    };
    if backend != Kind::Nft {
        before.extend(iptables::policy_commands(&plan));
    }
    let mut notices = options.notices();
    ground::warn_of_ipv6_bypass(options, &mut notices);
    Ok(Printed { command: "print", backend, why, before, scripts, notices })
}
