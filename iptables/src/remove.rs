//! `remove`.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    Error, Report,
    backend::{self, Backend, Choice, PART_IS_GONE, iptables},
    ground::Ground,
    netlink::{conntrack, refused},
    netns, verify,
};

/// How often open connections are counted while they drain.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Removes the redirection from the current network namespace, whoever installed it. Harmless when there is none.
/// Without `drain`, connections that are redirected at that moment end with it, unless NAT rules of somebody else keep
/// the kernel translating; those that never were redirected live on. With `drain`, new connections go their own way at
/// once, and the open ones may take that long. Waits for a lock for up to `wait`.
///
/// # Errors
/// When a tool refuses, or none is there.
pub fn remove(choice: Choice, wait: Duration, drain: Option<Duration>) -> Result<Report, Error> {
    let mut notices = Vec::new();
    if let Some(limit) = drain {
        let_drain(choice, wait, limit, &mut notices)?;
    }
    let _lock = netns::lock(wait)?;
    let found = backend::present(choice, wait)?;
    // Others may have worked while connections drained.
    let decides = |backend: &Backend| backend.held().is_ok_and(|held| held.decides());
    if drain.is_some() && found.iter().any(decides) {
        let why = "another run has installed the redirection anew in the meantime: it stays".to_owned();
        return Ok(Report { command: "remove", backends: Vec::new(), why, notices });
    }
    remove_now(&found, wait, notices)
}

/// Lets new connections go their own way, and waits until the open ones have ended or the time is up.
fn let_drain(choice: Choice, wait: Duration, limit: Duration, notices: &mut Vec<String>) -> Result<(), Error> {
    let mut ports = Vec::new();
    // Whether they can be counted must be known before anything is changed.
    let count = |ports: &[u16]| {
        let look = "the kernel needs CONFIG_NF_CT_NETLINK; remove without --drain needs it not";
        conntrack::carried(ports).map_err(refused("count the open connections", look))
    };
    count(&[])?;
    {
        let _lock = netns::lock(wait)?;
        let mut changed = false;
        for backend in backend::present(choice, wait)? {
            // A tool that cannot read is told of when the rules are removed.
            let Ok(held) = backend.held() else { continue };
            if !held.0.is_empty() {
                ports.extend(held.ports());
                backend.let_drain(notices).map_err(|error| half_done(error, changed))?;
                changed = true;
            }
        }
    }
    let deadline = Instant::now() + limit;
    let mut open = count(&ports)?;
    while open > 0 && Instant::now() < deadline {
        thread::sleep(LOOK_AGAIN);
        open = count(&ports)?;
    }
    if open > 0 {
        notices.push(format!("{open} connections were still open after {limit:?}, and ended with the rules"));
    }
    Ok(())
}

/// The error of a tool that refused after something else of ours had been taken out.
fn half_done(error: Error, changed: bool) -> Error {
    match error {
        error @ Error::HalfApplied { .. } => error,
        error if changed => error.with_undo_failure(PART_IS_GONE.to_owned()),
        error => error,
    }
}

fn remove_now(found: &[Backend], wait: Duration, mut notices: Vec<String>) -> Result<Report, Error> {
    let mut backends = Vec::new();
    let (mut first_error, mut left) = (None, false);
    // A tool that fails must not keep the rules of another in place.
    for backend in found {
        match backend.remove(&mut notices) {
            Ok(true) => backends.push(backend.kind()),
            Ok(false) => {}
            Err(error) => {
                left |= backend.holds_ours().unwrap_or(false);
                first_error = first_error.or(Some((error, backend.describe())));
            }
        }
    }
    notices.extend(backend::legacy_out_of_reach(wait));
    // Each is known as ours by itself, whatever became of the rules.
    let mut others = Ground::remove()?;
    others |= iptables::remove_policies()?;
    others |= verify::remove_traces()?;
    if let Some((error, tool)) = first_error {
        // A tool that cannot even read cannot be the one that wrote the rules which were found elsewhere.
        if left || backends.is_empty() {
            return Err(half_done(error, others || !backends.is_empty()));
        }
        notices.push(format!("could not look for rules of ours with {tool}: {error}"));
    }
    let why = match (backends.is_empty(), others) {
        (false, _) => "these held rules of ours",
        (true, true) => "no rules of ours were there, but what a run that was cut off had left",
        (true, false) => "no rules of ours were there",
    };
    Ok(Report { command: "remove", backends, why: why.to_owned(), notices })
}
