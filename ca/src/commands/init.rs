use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use outrigger_ca::{
    authority::{Algorithm, Directory, InitOptions, Password, ServerNameText, init as make_ca, rfc3339},
    store::Database,
};
use outrigger_identity::TrustDomain;
use serde_json::json;
use time::OffsetDateTime;

use super::{Outcome, Output};

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
}

pub(crate) fn init(dir: &Path, wish: Init, output: Output) -> Outcome {
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
    };
    let aside = make_ca(dir, options, OffsetDateTime::now_utc())?;
    let directory = Directory::open(dir)?;
    // Makes the schema, so that the first enrolment does not have to.
    Database::of(&directory)?;
    let mut lines = Vec::new();
    if let Some(aside) = &aside {
        lines.push(format!("moved the CA that was there to {}", aside.display()));
    }
    lines.push(format!("made a CA for {} in {}", directory.trust_domain(), dir.display()));
    lines.push(format!("its server is known as {}", directory.server_names().join(", ")));
    lines.push(format!("its intermediate expires at {}", rfc3339(directory.expires_at())));
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
        "replaced": aside,
    });
    output.result(&lines, &value)
}
