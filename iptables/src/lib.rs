//! Puts one workload's TCP connections into the hands of its sidecar, and takes them out again.
//!
//! Runs once, as the most privileged part of the product, on other people's machines. So: the rules are one
//! transaction for each table, a second run changes nothing, a failure leaves what was there, and `remove` leaves no
//! trace. What is wanted is decided in [`plan`] without any I/O; [`backend`] renders and applies it.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done |
//! | 2 | the command line is wrong |
//! | 3 | not permitted: NET_ADMIN is missing (SYS_ADMIN too, with `--netns`) |
//! | 4 | no usable backend: neither `nft` nor `iptables-restore` works here |
//! | 5 | the kernel or the tool refused; the rules are as they were before |
//! | 6 | refused, and undoing failed as well: `outrigger-iptables remove` repairs it |
//! | 7 | the network namespace of `--netns` cannot be entered |
//! | 8 | another run, or another program, held the lock for more than 10 seconds |

mod address;
pub mod backend;
mod command;
mod error;
mod netns;
mod options;
pub mod plan;

pub use address::LEG_ADDRESS_V6;
pub use error::Error;
pub use netns::enter as enter_netns;
pub use options::{InvalidOption, Options, PortRange, parse_cidr};

use backend::{Choice, Kind, iptables, nft};
use plan::Plan;
use serde::Serialize;

/// What a command did, for people (`Display` of its fields) and programs (`--json`).
#[derive(Debug, Serialize)]
pub struct Report {
    /// `install` or `remove`.
    pub command: &'static str,
    /// The backends that hold, or held, the rules.
    pub backends: Vec<Kind>,
    /// Why these.
    pub why: String,
    /// What the operator should know although nothing failed.
    pub notices: Vec<String>,
}

/// One script that `install` would hand to a tool.
#[derive(Debug, Serialize)]
pub struct Script {
    /// The command that reads it on its standard input.
    pub command: String,
    /// The script.
    pub text: String,
}

/// Installs the redirection in the current network namespace. Repeating it is harmless: it ends in exactly one set of
/// rules, and connections that are open, redirected or not, live on.
///
/// # Errors
/// After every error but [`Error::HalfApplied`] the rules are as they were.
pub fn install(options: &Options, choice: Choice) -> Result<Report, Error> {
    let plan = Plan::new(options)?;
    let _lock = netns::lock()?;
    let (backend, why) = backend::choose(choice, &plan)?;
    let mut notices = options.notices();
    let added = address::add(&mut notices)?;
    if let Err(error) = backend.install(&plan, &mut notices) {
        if added && let Err(undo) = address::remove() {
            return Err(error.with_undo_failure(undo.to_string()));
        }
        return Err(error);
    }
    // The other tools may hold an older set of ours: two sets would decide differently as soon as options change.
    backend
        .remove_elsewhere(&mut notices)
        .map_err(|error| error.with_undo_failure("the new rules are in, and so is an older set of ours".to_owned()))?;
    netns::warn_if_strict_conntrack(&mut notices);
    Ok(Report { command: "install", backends: vec![backend.kind()], why, notices })
}

/// Removes the redirection from the current network namespace, whoever installed it. Harmless when there is none.
/// Connections that are redirected at that moment end with it, unless NAT rules of somebody else keep the kernel
/// translating; those that never were redirected live on.
///
/// # Errors
/// When a tool refuses, or none is there.
pub fn remove(choice: Choice) -> Result<Report, Error> {
    let _lock = netns::lock()?;
    let mut notices = Vec::new();
    let mut backends = Vec::new();
    let (mut first_error, mut left) = (None, false);
    // A tool that fails must not keep the rules of another in place.
    for backend in backend::present(choice)? {
        match backend.remove(&mut notices) {
            Ok(true) => backends.push(backend.kind()),
            Ok(false) => {}
            Err(error) => {
                left |= backend.holds_ours().unwrap_or(false);
                first_error = first_error.or(Some((error, backend.describe())));
            }
        }
    }
    // Without rules of ours the address is somebody else's.
    if !backends.is_empty() {
        address::remove()?;
    }
    if let Some((error, tool)) = first_error {
        // A tool that cannot even read cannot be the one that wrote the rules which were found elsewhere.
        if left || backends.is_empty() {
            return Err(error);
        }
        notices.push(format!("could not look for rules of ours with {tool}: {error}"));
    }
    let why = if backends.is_empty() {
        "no rules of ours were there".to_owned()
    } else {
        "these held rules of ours".to_owned()
    };
    Ok(Report { command: "remove", backends, why, notices })
}

/// What `install` would apply. Needs no privilege and changes nothing. `auto` is decided by which tools exist, since
/// asking the kernel needs a privilege; the second value says what was chosen and why.
///
/// # Errors
/// Only when the options contradict each other.
pub fn print(options: &Options, choice: Choice) -> Result<(Vec<Script>, String), Error> {
    let plan = Plan::new(options)?;
    let (kind, why) = backend::choose_unprivileged(choice);
    let scripts = match kind {
        Kind::Nft => vec![Script { command: "nft -f -".to_owned(), text: nft::render(&plan) }],
        Kind::Iptables => iptables::render_both(&plan),
    };
    Ok((scripts, why))
}
