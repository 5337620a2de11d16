//! What each command does. Reading and writing for people and programs; the work is in the library.

mod attestation;
mod bundle;
mod check;
mod failure;
mod init;
mod inspect;
mod issue;
mod log;
mod revoke;
mod rotate;
mod serve;
mod sign;
mod status;
mod token;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

pub(crate) use bundle::{Format, export as bundle_export, set as bundle_set, show as bundle_show};
pub(crate) use check::check;
pub(crate) use failure::{EXIT_STATUSES, Failure, Kind};
pub(crate) use init::{Init, init};
pub(crate) use inspect::{Verify, inspect, verify};
pub(crate) use issue::{Issue, issue};
pub(crate) use log::{list as log_list, prune as log_prune, verify as log_verify};
use outrigger_ca::{
    admin::AdminSocket,
    authority::{MAX_TTL, PASSWORD_ENV, Password},
};
pub(crate) use revoke::{Which, revoke, unblock};
pub(crate) use rotate::{
    Prepare, RevokeAuthority, activate as rotate_activate, prepare as rotate_prepare, revoke as rotate_revoke,
    status as rotate_status, taint as rotate_taint,
};
pub(crate) use serve::{Serve, serve};
pub(crate) use sign::{Sign, sign};
pub(crate) use status::status;
pub(crate) use token::{Revoke, create as token_create, list as token_list, revoke as token_revoke};

/// A hundred years: more is a slip of the keyboard.
const LONGEST: Duration = Duration::from_secs(36_500 * 86_400);

/// Which CA is meant.
pub(crate) enum Ca {
    /// The one in this folder, with its keys.
    Folder(PathBuf),
    /// One that runs.
    Running(AdminSocket),
}

pub(crate) type Outcome = Result<(), Failure>;

/// Where results go: stdout, as lines for people or as JSON, one object a line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Writes a result: `lines` for people, or `value`.
    fn result(self, lines: &[String], value: &serde_json::Value) -> Outcome {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{value}")?;
        } else {
            lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        Ok(out.flush()?)
    }
}

/// What a stranger wrote, as one line that cannot move the cursor or pass for a line of ours.
fn printable(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// The password of the CA's keys: from the file, else from the environment. `None`: there is neither.
pub(crate) fn password(file: Option<&Path>) -> Result<Option<Password>, Failure> {
    let password = match (file, std::env::var_os(PASSWORD_ENV)) {
        (Some(file), _) => Password::from_file(file)?,
        (None, Some(text)) => Password::new(text.into_encoded_bytes())?,
        (None, None) => return Ok(None),
    };
    Ok(Some(password))
}

/// Nothing that is there is replaced unasked.
fn refuse_to_overwrite(path: &Path, force: bool) -> Outcome {
    if !force && path.symlink_metadata().is_ok() {
        let message = format!("{} is already there; choose another --out, or replace it with --force", path.display());
        return Err(Failure::new(Kind::Refused, "file_exists", message));
    }
    Ok(())
}

/// A span of time as people write it: a whole number and s, m, h or d.
fn span(text: &str) -> Result<Duration, String> {
    let bad = || format!("\"{text}\" is not a span of time; write a number and a unit, as 90s, 15m, 24h or 7d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(bad)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(bad)
}

/// The lifetime of a workload's certificate or of a token.
pub(crate) fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = span(text)?;
    if lifetime.is_zero() || lifetime > MAX_TTL {
        return Err(format!("{text} is out of range; choose from 1s to {}d", MAX_TTL.as_secs() / 86_400));
    }
    Ok(lifetime)
}

/// The lifetime of a CA's own certificate.
pub(crate) fn ca_lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = span(text)?;
    if lifetime < Duration::from_secs(60) || lifetime > LONGEST {
        return Err(format!("{text} is out of range; choose from 1m to {}d", LONGEST.as_secs() / 86_400));
    }
    Ok(lifetime)
}

/// How often verifiers look for a new bundle: what a sidecar will do.
pub(crate) fn refresh_hint(text: &str) -> Result<Duration, String> {
    let hint = span(text)?;
    if hint < Duration::from_secs(5) || hint > Duration::from_secs(3600) {
        return Err(format!("{text} is out of range; choose from 5s to 1h"));
    }
    Ok(hint)
}

/// When a server forgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PruneAfter {
    /// Never by itself.
    Off,
    /// What expired so long ago.
    Age(Duration),
}

/// An age, or "off".
pub(crate) fn prune_after(text: &str) -> Result<PruneAfter, String> {
    if text == "off" {
        return Ok(PruneAfter::Off);
    }
    age(text).map(PruneAfter::Age).map_err(|why| format!("{why}, or off"))
}

/// How long ago: up to a hundred years.
pub(crate) fn age(text: &str) -> Result<Duration, String> {
    let age = span(text)?;
    if age > LONGEST {
        return Err(format!("{text} is out of range; choose from 0s to {}d", LONGEST.as_secs() / 86_400));
    }
    Ok(age)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_read_as_people_write_them_and_bounded() {
        assert_eq!(lifetime("90s").unwrap().as_secs(), 90);
        assert_eq!(lifetime("15m").unwrap().as_secs(), 900);
        assert_eq!(lifetime("24h").unwrap().as_secs(), 86_400);
        assert_eq!(lifetime("30d").unwrap(), MAX_TTL);
        for bad in ["", "s", "24", "1w", "-1h", "0s", "31d", "1.5h", "18446744073709551615d", "5é"] {
            assert!(lifetime(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(age("0s").unwrap(), Duration::ZERO);
        assert!(age("36501d").is_err());
        assert_eq!(prune_after("off"), Ok(PruneAfter::Off));
        assert_eq!(prune_after("90d"), Ok(PruneAfter::Age(Duration::from_secs(90 * 86_400))));
        assert!(prune_after("never").unwrap_err().ends_with("or off"));
    }
}
