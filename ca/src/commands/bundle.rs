use std::{path::Path, str::FromStr, time::Duration};

use outrigger_ca::{
    authority::{Directory, Member, rfc3339, write_public},
    store::Database,
};
use serde_json::json;
use time::OffsetDateTime;

use super::{Failure, Kind, Outcome, Output};

/// How roots are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Certificates as PEM.
    Pem,
    /// The SPIFFE bundle document.
    Spiffe,
}

impl FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pem" => Ok(Self::Pem),
            "spiffe" => Ok(Self::Spiffe),
            _ => Err(format!("\"{text}\" is not a format of bundles; choose pem or spiffe")),
        }
    }
}

pub(crate) fn show(dir: &Path, output: Output) -> Outcome {
    let directory = Directory::look(dir)?;
    let pem = directory.bundle_pem();
    let roots: Vec<_> = directory.members().roots().map(root).collect();
    let value = json!({
        "trust_domain": directory.trust_domain(),
        "bundle": pem,
        "sequence": directory.members().bundle.sequence,
        "refresh_hint": directory.members().bundle.refresh_hint.as_secs(),
        "roots": roots,
    });
    output.result(&[pem.trim_end().to_owned()], &value)
}

fn root(root: &Member) -> serde_json::Value {
    json!({
        "fingerprint": root.row.fingerprint,
        "state": root.state().as_str(),
        "not_after": rfc3339(root.not_after),
    })
}

pub(crate) fn export(dir: &Path, format: Format, out: Option<&Path>, force: bool, output: Output) -> Outcome {
    let directory = Directory::look(dir)?;
    let text = match format {
        Format::Pem => directory.bundle_pem().to_owned(),
        Format::Spiffe => directory.members().bundle_json() + "\n",
    };
    let roots = directory.members().roots().count();
    let line = match out {
        Some(out) => {
            super::refuse_to_overwrite(out, force)?;
            write_public(out, &text)?;
            format!("wrote {roots} roots of {} into {}", directory.trust_domain(), out.display())
        }
        None => text.trim_end().to_owned(),
    };
    let value = json!({ "trust_domain": directory.trust_domain(), "roots": roots, "out": out, "bundle": text });
    output.result(&[line], &value)
}

pub(crate) fn set(dir: &Path, file: Option<&Path>, replace: bool, hint: Option<Duration>, output: Output) -> Outcome {
    if file.is_none() && hint.is_none() {
        let message = "nothing to set; give a file of roots, or --refresh-hint";
        return Err(Failure::new(Kind::Usage, "usage", message));
    }
    let directory = Directory::open(dir)?;
    let mut database = Database::of(&directory)?;
    let mut lines = Vec::new();
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    if let Some(file) = file {
        let outcome = directory.set_bundle(&mut database, file, replace, OffsetDateTime::now_utc())?;
        let short = |name: &String| name.get(..16).unwrap_or(name).to_owned();
        lines.extend(outcome.added.iter().map(|name| format!("added the root {}; it signs nothing yet", short(name))));
        lines.extend(outcome.removed.iter().map(|name| format!("took the root {} out", short(name))));
        lines.push(format!("the bundle of {} has {} roots", directory.trust_domain(), outcome.roots));
        (added, removed) = (outcome.added, outcome.removed);
    }
    if let Some(hint) = hint {
        database.transaction(|tx| tx.set_refresh_hint(hint))?;
        lines.push(format!("verifiers are told to look for a new bundle every {hint:?}"));
    }
    let value = json!({ "added": added, "removed": removed, "refresh_hint": hint.map(|hint| hint.as_secs()) });
    output.result(&lines, &value)
}
