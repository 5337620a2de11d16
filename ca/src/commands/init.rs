use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use outrigger_ca::{
    authority::{
        Algorithm, Directory, InitOptions, Password, ServerNameText, SharedDatabase, SharedRoot, init as make_ca,
        rfc3339,
    },
    store::{Claim, DATABASE_ENV, Database, Location, PostgresUrl},
};
use outrigger_identity::TrustDomain;
use serde_json::json;
use time::OffsetDateTime;

use super::{Failure, Kind, Outcome, Output};

pub(crate) struct Init {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) names: Vec<ServerNameText>,
    pub(crate) force: bool,
    pub(crate) algorithm: Algorithm,
    pub(crate) root_ttl: Duration,
    pub(crate) intermediate_ttl: Duration,
    pub(crate) password: Option<Password>,
    pub(crate) no_password: bool,
    pub(crate) offline_root: Option<PathBuf>,
    pub(crate) database: Option<PostgresUrl>,
    pub(crate) shared_root: Option<SharedRoot>,
}

pub(crate) fn init(dir: &Path, wish: Init, output: Output) -> Outcome {
    let setting = wish.database.as_ref().map(PostgresUrl::as_given);
    if wish.database.as_ref().is_some_and(PostgresUrl::has_password) {
        let message = format!(
            "--database holds a password, which would stand in ca.json and in the list of processes; leave it out and set PGPASSWORD, or give the whole URL in {DATABASE_ENV}"
        );
        return Err(Failure::new(Kind::Usage, "database_password", message));
    }
    let location = Location::choose(setting, &dir.join("ca.db"))?;
    if let (Some(url), Location::Postgres(chosen)) = (&setting, &location)
        && *url != chosen.as_given()
    {
        let message = format!("{DATABASE_ENV} names another database than --database; give one of them");
        return Err(Failure::new(Kind::Usage, "database_conflict", message));
    }
    let (shared, replica) = (matches!(location, Location::Postgres(_)), wish.shared_root.is_some());
    if replica && !shared {
        let message =
            format!("a replica shares the database of the other replicas; name it with --database or {DATABASE_ENV}");
        return Err(Failure::new(Kind::Usage, "database_missing", message));
    }
    // Before anything is made: whether the database is there, and whose it is.
    let claim = if replica { Claim::Existing } else { Claim::New };
    let database = match &location {
        Location::File(_) => None,
        Location::Postgres(_) => {
            let database = Database::at(&location, &wish.trust_domain, claim)?;
            Some(SharedDatabase { database, url: setting.map(str::to_owned) })
        }
    };
    let encrypted = wish.password.is_some();
    let offline_root = wish.offline_root.clone();
    let options = InitOptions {
        trust_domain: wish.trust_domain,
        names: wish.names,
        force: wish.force,
        algorithm: wish.algorithm,
        root_ttl: wish.root_ttl,
        intermediate_ttl: wish.intermediate_ttl,
        password: wish.password,
        offline_root: wish.offline_root,
        shared_root: wish.shared_root,
        database,
    };
    let aside = make_ca(dir, options, OffsetDateTime::now_utc())?;
    let directory = Directory::open(dir)?;
    let mut lines = Vec::new();
    if let Some(aside) = &aside {
        lines.push(format!("moved the CA that was there to {}", aside.display()));
    }
    let what = if replica { "a replica of the CA" } else { "a CA" };
    lines.push(format!("made {what} for {} in {}", directory.trust_domain(), dir.display()));
    lines.push(format!("its server is known as {}", directory.server_names().join(", ")));
    lines.push(format!("its intermediate expires at {}", rfc3339(directory.expires_at())));
    if shared {
        lines.push(format!("its log and its tokens are in {location}"));
    }
    if let Some(path) = &offline_root {
        let path = path.display();
        lines.push(format!("its root's key is in {path}; keep it away from this machine, no command needs it daily"));
    }
    if encrypted {
        lines.push("its keys are encrypted with the password (Argon2id, AES-256-GCM)".into());
    } else if !wish.no_password {
        lines.push("its keys are not encrypted; to have them so give --password-file, and --no-password if not".into());
    }
    lines.push(format!("next: outrigger-ca serve --dir {}", dir.display()));
    let value = json!({
        "dir": dir,
        "trust_domain": directory.trust_domain(),
        "server_names": directory.server_names(),
        "intermediate_not_after": rfc3339(directory.expires_at()),
        "algorithm": wish.algorithm.as_str(),
        "encrypted": encrypted,
        "offline_root": offline_root,
        "database": if shared { Some(location.to_string()) } else { None },
        "replica": replica,
        "replaced": aside,
    });
    output.result(&lines, &value)
}
