use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use outrigger_ca::{
    authority::{
        Algorithm, Authority, Directory, Living, NewRoot, Password, PrepareOptions, Retired, RevokeOptions, StatusLine,
        rfc3339,
    },
    store::{AuthorityKind, Database, RevocationReason},
};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Outcome, Output};

pub(crate) struct Prepare {
    pub(crate) new_root: Option<NewRoot>,
    pub(crate) root_key: Option<PathBuf>,
    pub(crate) algorithm: Option<Algorithm>,
    pub(crate) ttl: Duration,
    pub(crate) password: Option<Password>,
}

pub(crate) fn prepare(dir: &Path, wish: Prepare, output: Output) -> Outcome {
    // With the wrong password the new key would be one that nobody can open; without one, less safe than the old.
    let authority = Authority::open(dir, wish.password.as_ref())?;
    let mut database = Database::of(&authority)?;
    let offline = wish.new_root.as_ref().and_then(|root| root.offline.clone());
    let options = PrepareOptions {
        new_root: wish.new_root,
        root_key: wish.root_key.as_deref(),
        algorithm: wish.algorithm.unwrap_or_else(|| authority.algorithm()),
        ttl: wish.ttl,
        password: wish.password.as_ref(),
    };
    let now = OffsetDateTime::now_utc();
    let prepared = authority.prepare(&mut database, &options, now)?;
    let (root, intermediate) = (&prepared.root, &prepared.intermediate);
    let (until, ready) = (rfc3339(intermediate.not_after), rfc3339(prepared.ready_at));
    let mut lines = Vec::new();
    if prepared.new_root {
        let end = rfc3339(root.not_after);
        lines.push(format!("made the root {}, until {end}; it is in the bundle from now on", root.short()));
    }
    if let Some(path) = &offline {
        lines.push(format!("its key is in {}; keep it away from this machine", path.display()));
    }
    lines.push(format!(
        "prepared the intermediate {} until {until}; the current one goes on signing",
        intermediate.short()
    ));
    let when = if prepared.ready_at > now { format!(", from {ready}") } else { String::new() };
    lines.push(format!("next: outrigger-ca rotate activate --dir {}{when}", dir.display()));
    let value = json!({
        "prepared_not_after": until,
        "intermediate": intermediate.row.fingerprint,
        "root": root.row.fingerprint,
        "new_root": prepared.new_root,
        "ready_at": ready,
    });
    output.result(&lines, &value)
}

pub(crate) fn activate(dir: &Path, password: Option<&Password>, force: bool, output: Output) -> Outcome {
    let directory = Directory::open(dir)?;
    let mut database = Database::of(&directory)?;
    let before = directory.active_root().row.fingerprint.clone();
    let authority = directory.activate(&mut database, password, force, OffsetDateTime::now_utc())?;
    let until = rfc3339(authority.expires_at());
    let mut lines = vec![format!(
        "the intermediate {} signs from now on, until {until}; a server that runs takes it up within seconds",
        authority.active().short()
    )];
    let root = authority.active_root();
    if root.row.fingerprint != before {
        let old = before.get(..16).unwrap_or(&before);
        lines.push(format!("the root {} is the active one, and {old} signs no more", root.short()));
        lines.push(format!("next: outrigger-ca rotate taint {old} --dir {}", dir.display()));
    }
    let value = json!({
        "intermediate_not_after": until,
        "intermediate": authority.active().row.fingerprint,
        "root": root.row.fingerprint,
    });
    output.result(&lines, &value)
}

pub(crate) fn taint(dir: &Path, named: &str, output: Output) -> Outcome {
    let directory = Directory::open(dir)?;
    let mut database = Database::of(&directory)?;
    let retired = directory.taint(&mut database, named, OffsetDateTime::now_utc())?;
    let name = retired.member.short();
    let mut lines = vec![format!("tainted the root {name}: who has a certificate under it renews now")];
    lines.push(match retired.living.last {
        Some(last) => format!("{}; the last until {}", of(&retired.living), rfc3339(last)),
        None => "no certificate under it is still good".to_owned(),
    });
    lines.push(format!("next: outrigger-ca rotate revoke {name} --dir {}", dir.display()));
    output.result(&lines, &retired_value(&retired, "tainted"))
}

pub(crate) struct RevokeAuthority<'a> {
    pub(crate) named: &'a str,
    pub(crate) force: bool,
    pub(crate) reason: RevocationReason,
    pub(crate) root_key: Option<&'a Path>,
    pub(crate) password: Option<&'a Password>,
}

pub(crate) fn revoke(dir: &Path, wish: &RevokeAuthority<'_>, output: Output) -> Outcome {
    let directory = Directory::open(dir)?;
    let mut database = Database::of(&directory)?;
    let options =
        RevokeOptions { force: wish.force, reason: wish.reason, root_key: wish.root_key, password: wish.password };
    let retired = directory.revoke_authority(&mut database, wish.named, &options, OffsetDateTime::now_utc())?;
    let name = retired.member.short();
    let mut lines = vec![match retired.member.kind() {
        AuthorityKind::Root => format!("revoked the root {name}: it is in the bundle no more"),
        AuthorityKind::Intermediate => format!("revoked the intermediate {name}: it is on its root's list"),
    }];
    if retired.living.count > 0 {
        lines.push(format!("{} and are no more", of(&retired.living)));
    }
    let key = directory.key_path(&retired.member);
    if retired.member.kind() == AuthorityKind::Root && key.exists() {
        lines.push(format!("its key {} has no use any more; destroy it", key.display()));
    }
    output.result(&lines, &retired_value(&retired, "revoked"))
}

fn of(living: &Living) -> String {
    format!("{} certificates under it were good ({} not renewed since)", living.count, living.not_renewed)
}

fn retired_value(retired: &Retired, state: &str) -> Value {
    json!({
        "fingerprint": retired.member.row.fingerprint,
        "kind": retired.member.kind().as_str(),
        "state": state,
        "living": living_value(&retired.living),
    })
}

fn living_value(living: &Living) -> Value {
    json!({ "count": living.count, "not_renewed": living.not_renewed, "last": living.last.map(rfc3339) })
}

pub(crate) fn status(dir: &Path, output: Output) -> Outcome {
    let directory = Directory::look(dir)?;
    let mut database = Database::of(&directory)?;
    let now = OffsetDateTime::now_utc();
    let status = directory.status(&mut database, now)?;
    let mut lines: Vec<String> = status.lines.iter().map(|line| words(line, now)).collect();
    lines.extend(
        status.leftovers.iter().map(|file| {
            format!("nothing refers to {file}: a command was interrupted before it recorded it; remove it")
        }),
    );
    if status.next.is_empty() {
        lines.push("nothing is to be done".to_owned());
    }
    lines.extend(status.next.iter().map(|next| format!("next: {next}")));
    let bundle = directory.members().bundle;
    let value = json!({
        "intermediate_not_after": rfc3339(directory.expires_at()),
        // Two digits: what follows them changes with every second.
        "life_left": (directory.lifetime_left(now) * 100.0).round() / 100.0,
        "prepared_not_after": directory.prepared().map(|member| rfc3339(member.not_after)),
        "bundle_sequence": bundle.sequence,
        "refresh_hint": bundle.refresh_hint.as_secs(),
        "authorities": status.lines.iter().map(|line| value_of(line, now)).collect::<Vec<_>>(),
        "leftovers": status.leftovers,
        "next": status.next,
    });
    output.result(&lines, &value)
}

fn words(line: &StatusLine, now: OffsetDateTime) -> String {
    let member = &line.member;
    let left = member.lifetime_left(now) * 100.0;
    let mut text = format!(
        "{:<12} {} {:<8} until {}, {left:.0} % of its life left, key {}",
        member.kind().as_str(),
        member.short(),
        member.state().as_str(),
        rfc3339(member.not_after),
        line.key
    );
    if let Some(issuer) = &member.row.issuer {
        text += &format!(", under {}", issuer.get(..16).unwrap_or(issuer));
    }
    if let Some(living) = &line.living {
        let last = living.last.map(|last| format!(", the last until {}", rfc3339(last))).unwrap_or_default();
        text += &format!("; {} good certificates ({} not renewed since){last}", living.count, living.not_renewed);
    }
    text
}

fn value_of(line: &StatusLine, now: OffsetDateTime) -> Value {
    let member = &line.member;
    json!({
        "fingerprint": member.row.fingerprint,
        "serial": member.serial,
        "kind": member.kind().as_str(),
        "state": member.state().as_str(),
        "since": rfc3339(member.row.changed_at),
        "issuer": member.row.issuer,
        "not_after": rfc3339(member.not_after),
        "life_left": (member.lifetime_left(now) * 100.0).round() / 100.0,
        "key": line.key,
        "living": line.living.as_ref().map(living_value),
    })
}
