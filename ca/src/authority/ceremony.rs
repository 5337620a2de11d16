//! The birth of a CA: two keys, two certificates, settings and an empty log, in a directory of their own.

use std::{
    fs::{DirBuilder, OpenOptions, rename},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use time::OffsetDateTime;

use super::{
    Authority, AuthorityError, DATABASE, INTERMEDIATE_CERT, INTERMEDIATE_KEY, ROOT_CERT, ROOT_KEY, ServerNameText,
    Settings, files, hex, profile,
};
use outrigger_identity::TrustDomain;

/// Lifetime of the root, ten years: what every verifier holds is the hardest thing to change.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Lifetime of the intermediate, one year.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// What `init` is told.
#[derive(Debug)]
pub struct InitOptions {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Names of the enrolment server. Empty: `localhost`, the loopback addresses and this machine's name.
    pub names: Vec<ServerNameText>,
    /// Whether to replace a CA that is there. Its files move to a directory `replaced-…` beside the new ones.
    pub force: bool,
}

/// Makes a CA in `dir`, which is created if it is missing. Returns where a replaced CA's files went.
pub fn init(dir: &Path, options: InitOptions, now: OffsetDateTime) -> Result<Option<PathBuf>, AuthorityError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| files::error("create", dir, e))?;
    let replaced = make_room(dir, options.force, now)?;

    let domain = options.trust_domain;
    let window = profile::Window::new(now, ROOT_LIFETIME)?;
    let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let root_params = profile::root(&domain, &window)?;
    let root = root_params.self_signed(&root_key)?;
    let window = profile::Window::new(now, INTERMEDIATE_LIFETIME)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let intermediate =
        profile::intermediate(&domain, &window)?.signed_by(&key, &Issuer::from_params(&root_params, &root_key))?;

    let names = match options.names {
        names if names.is_empty() => default_names(),
        names => names.into_iter().map(String::from).collect(),
    };
    let settings = serde_json::to_string_pretty(&Settings { trust_domain: domain, names })
        .map_err(|e| files::damaged(&dir.join(super::SETTINGS), e.to_string()))?;

    // SQLite gives its journal files the mode of the database, so this one call keeps all of them private.
    let database = dir.join(DATABASE);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&database)
        .map_err(|e| files::error("create", &database, e))?;
    let secret = |name: &str, text: &str| files::write_secret(&dir.join(name), text);
    let public = |name: &str, text: &str| files::write_public(&dir.join(name), text);
    // The settings come last: a directory without them is not a CA, so an interrupted init leaves none.
    secret(ROOT_KEY, &root_key.serialize_pem())
        .and_then(|()| public(ROOT_CERT, &root.pem()))
        .and_then(|()| secret(INTERMEDIATE_KEY, &key.serialize_pem()))
        .and_then(|()| public(INTERMEDIATE_CERT, &intermediate.pem()))
        .and_then(|()| public(super::SETTINGS, &settings))
        .map_err(|e| AuthorityError::File { action: "write", path: e.path, source: e.source })?;
    // Read back what was written: better a failure now than at the first enrolment.
    Authority::open(dir)?;
    Ok(replaced)
}

/// Refuses, or with `force` moves the files of an earlier CA aside. A key is never deleted.
fn make_room(dir: &Path, force: bool, now: OffsetDateTime) -> Result<Option<PathBuf>, AuthorityError> {
    const OURS: [&str; 8] =
        [super::SETTINGS, ROOT_KEY, ROOT_CERT, INTERMEDIATE_KEY, INTERMEDIATE_CERT, DATABASE, "ca.db-wal", "ca.db-shm"];
    let mut found = OURS.into_iter().filter(|name| dir.join(name).symlink_metadata().is_ok()).peekable();
    let Some(&file) = found.peek() else { return Ok(None) };
    if !force {
        return Err(AuthorityError::Exists { dir: dir.display().to_string(), file });
    }
    // The random part keeps two replacements within one second apart.
    let aside = dir.join(format!("replaced-{}-{}", now.unix_timestamp(), hex(&super::random_bytes::<2>()?)));
    DirBuilder::new().mode(0o700).create(&aside).map_err(|e| files::error("create", &aside, e))?;
    for name in found {
        let path = dir.join(name);
        match rename(&path, aside.join(name)) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(files::error("move aside", &path, e)),
        }
    }
    Ok(Some(aside))
}

fn default_names() -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if let Ok(host) = host.trim().to_ascii_lowercase().parse::<ServerNameText>()
        && !names.iter().any(|n| n == host.as_str())
    {
        names.push(host.into());
    }
    names
}
