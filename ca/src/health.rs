//! The CA looks at itself: its keys, who can read them, how long its certificates live on, its database and its log.
//!
//! Life is judged by the share that is left, not by days: a week is much for one CA and nothing for another.

use std::{fs::Metadata, os::unix::fs::PermissionsExt, path::Path};

use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    authority::{AuthorityError, Directory, Password, is_encrypted, rfc3339},
    store::{ChainFault, Database},
};

/// Below this share of its life a certificate of the CA must be seen to.
pub const WARN_SHARE: f64 = 0.2;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, and somebody should look.
    Warning,
    /// Does not work, or is not safe.
    Failure,
}

impl Level {
    /// As `check` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone)]
pub struct Check {
    /// What was looked at, in lower-case words joined by underscores.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found, and what to do about it.
    pub detail: String,
}

/// Looks at everything. One failure keeps no other check from being made.
pub fn check(directory: Directory, password: Option<&Password>, now: OffsetDateTime) -> Vec<Check> {
    let mut checks = vec![
        folder(&directory),
        private_file("intermediate_key_file", &directory.intermediate_key_path()),
        root_key(&directory),
        life("root_life", "root", directory.root(), now),
        life("intermediate_life", "intermediate", directory.intermediate(), now),
        signed_by_root(&directory),
        files(&directory),
        lists(&directory, now),
    ];
    // A shared database has no file here.
    if directory.database_path().exists() {
        checks.insert(3, private_file("database_file", &directory.database_path()));
    }
    if let Some(prepared) = directory.prepared() {
        checks.push(private_file("prepared_key_file", &directory.key_path(prepared)));
        checks.push(life("prepared_life", "prepared intermediate", &prepared.der, now));
        checks.push(prepared_key(&directory, password));
    }
    match Database::of(&directory) {
        Ok(mut database) => {
            checks.push(pages(&mut database));
            checks.push(chain(&mut database));
        }
        Err(error) => checks.push(Check { name: "database", level: Level::Failure, detail: error.to_string() }),
    }
    checks.push(intermediate_key(directory, password));
    checks
}

fn metadata(name: &'static str, path: &Path) -> Result<Metadata, Check> {
    path.metadata().map_err(|e| {
        let detail = format!("cannot look at {}: {e}; restore it from a backup", path.display());
        Check { name, level: Level::Failure, detail }
    })
}

/// Who may write the folder may put other keys into it.
fn folder(directory: &Directory) -> Check {
    let (name, path) = ("folder", directory.path());
    let mode = match metadata(name, path) {
        Ok(meta) => meta.permissions().mode() & 0o777,
        Err(failed) => return failed,
    };
    let (level, what) = match mode {
        _ if mode & 0o022 != 0 => (Level::Failure, "others may write it; run \"chmod 700\" on it"),
        _ if mode & 0o077 != 0 => (Level::Warning, "others may look into it; run \"chmod 700\" on it"),
        _ => (Level::Ok, "its owner's alone"),
    };
    Check { name, level, detail: format!("{} has mode {mode:03o}: {what}", path.display()) }
}

/// Kubernetes mounts secrets readable by a group, so that is a warning; for everybody is a failure.
fn private_file(name: &'static str, path: &Path) -> Check {
    let mode = match metadata(name, path) {
        Ok(meta) => meta.permissions().mode() & 0o777,
        Err(failed) => return failed,
    };
    let (level, what) = match mode {
        _ if mode & 0o027 != 0 => (Level::Failure, "others may read or write it; run \"chmod 600\" on it"),
        _ if mode & 0o077 != 0 => (Level::Warning, "its group may read it; run \"chmod 600\" on it"),
        _ => (Level::Ok, "its owner's alone"),
    };
    Check { name, level, detail: format!("{} has mode {mode:03o}: {what}", path.display()) }
}

fn root_key(directory: &Directory) -> Check {
    let (name, path) = ("root_key", directory.root_key_path());
    if !path.exists() {
        return Check { name, level: Level::Ok, detail: "the root's key is not on this machine's disk".into() };
    }
    let file = private_file(name, &path);
    if file.level != Level::Ok {
        return file;
    }
    match is_encrypted(&path) {
        Ok(true) => Check { name, level: Level::Ok, detail: format!("{} is encrypted", path.display()) },
        Ok(false) => {
            let detail = format!(
                "{} lies unencrypted beside the CA that does not need it; move it to a place of its own",
                path.display()
            );
            Check { name, level: Level::Warning, detail }
        }
        Err(error) => Check { name, level: Level::Failure, detail: error.to_string() },
    }
}

fn intermediate_key(directory: Directory, password: Option<&Password>) -> Check {
    let name = "intermediate_key";
    let encrypted = is_encrypted(&directory.intermediate_key_path());
    let (level, detail) = match (directory.unlock(password), encrypted) {
        (Ok(_), Ok(true)) => (Level::Ok, "encrypted, and the password and the certificate fit it".to_owned()),
        (Ok(_), _) if password.is_some() => {
            (Level::Warning, "a password was given, and the key is not encrypted".to_owned())
        }
        (Ok(_), _) => (Level::Ok, "not encrypted; the certificate fits it".to_owned()),
        (Err(error @ AuthorityError::Locked { .. }), _) => (Level::Warning, format!("not checked: {error}")),
        (Err(error), _) => (Level::Failure, error.to_string()),
    };
    Check { name, level, detail }
}

fn life(name: &'static str, who: &str, der: &[u8], now: OffsetDateTime) -> Check {
    let remedy = match who {
        "root" => "begin with \"outrigger-ca rotate prepare --root\"",
        _ => "run \"outrigger-ca rotate prepare\" and \"outrigger-ca rotate activate\"",
    };
    let (_, certificate) = match X509Certificate::from_der(der) {
        Ok(parsed) => parsed,
        Err(error) => {
            let detail = format!("the {who}'s certificate cannot be read: {error}; restore it from a backup");
            return Check { name, level: Level::Failure, detail };
        }
    };
    let (from, until) =
        (certificate.validity().not_before.to_datetime(), certificate.validity().not_after.to_datetime());
    let share = (until - now).as_seconds_f64() / (until - from).as_seconds_f64();
    let end = rfc3339(until);
    let (level, detail) = if now < from {
        let clock = "compare this machine's clock";
        (Level::Failure, format!("the {who} is not valid before {}; {clock}", rfc3339(from)))
    } else if now >= until {
        (Level::Failure, format!("the {who} expired at {end}; {remedy}"))
    } else if share < WARN_SHARE {
        (Level::Warning, format!("{:.0} % of the {who}'s life is left, until {end}; {remedy} in time", share * 100.0))
    } else {
        (Level::Ok, format!("{:.0} % of the {who}'s life is left, until {end}", share * 100.0))
    };
    Check { name, level, detail }
}

fn signed_by_root(directory: &Directory) -> Check {
    let name = "intermediate_issuer";
    let signed = X509Certificate::from_der(directory.root()).is_ok_and(|(_, root)| {
        X509Certificate::from_der(directory.intermediate())
            .is_ok_and(|(_, it)| it.verify_signature(Some(root.public_key())).is_ok())
    });
    if signed {
        return Check { name, level: Level::Ok, detail: "the root signed the intermediate".into() };
    }
    let detail = "the intermediate is not signed by the root beside it; restore both from one backup";
    Check { name, level: Level::Failure, detail: detail.into() }
}

/// The folder's certificates are copies of what the database has; a file that is another one was put there.
fn files(directory: &Directory) -> Check {
    let name = "certificate_files";
    let unknown = directory.leftovers();
    let first = |file: &&String| file.ends_with("/root.pem") || file.ends_with("/intermediate.pem");
    let (level, detail) = match (unknown.iter().find(first), unknown.first()) {
        (Some(file), _) => {
            let detail = format!("{file} is not the certificate that the database has; restore both from one backup");
            (Level::Failure, detail)
        }
        (None, Some(_)) => {
            let detail = format!(
                "nothing refers to {}: a command was interrupted before it recorded them; remove them",
                unknown.join(", ")
            );
            (Level::Warning, detail)
        }
        (None, None) => (Level::Ok, "each is recorded in the database".to_owned()),
    };
    Check { name, level, detail }
}

/// Lists that are out of date are worth nothing to a verifier that looks at their dates.
fn lists(directory: &Directory, now: OffsetDateTime) -> Check {
    let name = "revocation_lists";
    let members = directory.members();
    let late = members.crls(now).find(|list| list.next_update < now);
    let missing = members.all().iter().find(|it| it.is_of_use(now) && members.crl_of(&it.row.fingerprint).is_none());
    let (level, detail) = match (late, missing) {
        (Some(list), _) => {
            let issuer = list.issuer.get(..16).unwrap_or(&list.issuer);
            let detail = format!(
                "the list of {issuer} was due at {}; start \"outrigger-ca serve\" on the replica that has its key",
                rfc3339(list.next_update)
            );
            (Level::Warning, detail)
        }
        (None, Some(it)) => {
            let detail = format!(
                "{} has none yet; it is made by \"outrigger-ca serve\" or \"outrigger-ca rotate prepare\" with its key",
                it.short()
            );
            // A root whose key is in a safe, of a CA from before there were lists.
            (Level::Ok, detail)
        }
        (None, None) => (Level::Ok, format!("{} lists, none of them overdue", members.crls(now).count())),
    };
    Check { name, level, detail }
}

fn prepared_key(directory: &Directory, password: Option<&Password>) -> Check {
    let name = "prepared_key";
    let (level, detail) = match directory.try_prepared(password) {
        Ok(()) => (Level::Ok, "the prepared intermediate's certificate fits its key".to_owned()),
        Err(error @ AuthorityError::Locked { .. }) => (Level::Warning, format!("not checked: {error}")),
        Err(error) => (Level::Failure, error.to_string()),
    };
    Check { name, level, detail }
}

fn pages(database: &mut Database) -> Check {
    let name = "database";
    let (level, detail) = match database.integrity() {
        Ok(wrong) if wrong.is_empty() => (Level::Ok, "SQLite finds nothing wrong with ca.db".to_owned()),
        Ok(wrong) => (Level::Failure, format!("ca.db is damaged ({}); restore it from a backup", wrong.join("; "))),
        Err(error) => (Level::Failure, error.to_string()),
    };
    Check { name, level, detail }
}

fn chain(database: &mut Database) -> Check {
    let name = "log";
    let proved = database.snapshot::<_, ChainFault>(|tx| Ok((tx.verify_chain(None)?, tx.verify_revocations()?)));
    let (level, detail) = match proved {
        Ok((report, (revocations, _))) => {
            let (records, head) = (report.records, report.head);
            let detail = format!("{records} records and {revocations} revocations, each of them proved; head {head}");
            (Level::Ok, detail)
        }
        Err(fault) => (Level::Failure, fault.to_string()),
    };
    Check { name, level, detail }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::authority::{InitOptions, init};
    use outrigger_identity::TrustDomain;

    #[test]
    fn life_is_judged_by_the_share_that_is_left() {
        let born = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut options = InitOptions::new(TrustDomain::parse("mesh.example").unwrap());
        let hour = Duration::from_secs(3600);
        (options.root_ttl, options.intermediate_ttl) = (hour * 1000, hour * 100);
        init(folder.path(), options, born).unwrap();
        let level = |name: &str, after: Duration| {
            let checks = check(Directory::open(folder.path()).unwrap(), None, born + after);
            checks.iter().find(|c| c.name == name).unwrap().level
        };
        let (root, intermediate) = ("root_life", "intermediate_life");
        assert_eq!(level(intermediate, hour * 79), Level::Ok);
        assert_eq!(level(intermediate, hour * 81), Level::Warning);
        assert_eq!(level(root, hour * 81), Level::Ok, "the same hour is another share of the root's life");
        assert_eq!(level(intermediate, hour * 100), Level::Failure);
        assert_eq!(level(root, hour * 801), Level::Warning);
        assert_eq!(level(root, hour * 1000), Level::Failure);
        let early = check(Directory::open(folder.path()).unwrap(), None, born - hour);
        assert!(early.iter().filter(|c| c.name.ends_with("_life")).all(|c| c.level == Level::Failure), "{early:?}");
    }
}
