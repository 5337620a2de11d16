//! The birth of a CA: two keys, two certificates, settings and an empty log, in a directory of their own.

use std::{
    fs::{DirBuilder, OpenOptions, rename},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::Issuer;
use time::OffsetDateTime;

use super::{
    Algorithm, Authority, AuthorityError, DATABASE, INTERMEDIATE_CERT, INTERMEDIATE_KEY, Password, ROOT_CERT, ROOT_KEY,
    SecretKey, ServerNameText, Settings, crl, files, hex, keyring::is_ours, profile, sealed,
};
use crate::store::Database;
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
    /// The kind of both keys.
    pub algorithm: Algorithm,
    /// Lifetime of the root.
    pub root_ttl: Duration,
    /// Lifetime of the intermediate; not longer than the root's.
    pub intermediate_ttl: Duration,
    /// Encrypts both keys on disk. `None`: plain files of mode 0600.
    pub password: Option<Password>,
    /// Where the root's key goes instead of the CA's folder; nothing may be there yet.
    pub offline_root: Option<PathBuf>,
}

impl InitOptions {
    /// The defaults for a trust domain: P-256, [`ROOT_LIFETIME`], [`INTERMEDIATE_LIFETIME`], nothing encrypted, every
    /// file in the CA's folder.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            names: Vec::new(),
            force: false,
            algorithm: Algorithm::default(),
            root_ttl: ROOT_LIFETIME,
            intermediate_ttl: INTERMEDIATE_LIFETIME,
            password: None,
            offline_root: None,
        }
    }
}

/// Makes a CA in `dir`, which is created if it is missing. Returns where a replaced CA's files went.
pub fn init(dir: &Path, options: InitOptions, now: OffsetDateTime) -> Result<Option<PathBuf>, AuthorityError> {
    if options.intermediate_ttl > options.root_ttl {
        return Err(AuthorityError::IntermediateOutlivesRoot {
            intermediate: days(options.intermediate_ttl),
            root: days(options.root_ttl),
        });
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| files::error("create", dir, e))?;
    if let Some(path) = &options.offline_root {
        refuse_inside(path, dir)?;
    }
    let replaced = make_room(dir, options.force, now)?;

    let (domain, password) = (options.trust_domain, options.password.as_ref());
    let window = profile::Window::new(now, options.root_ttl)?;
    let root_key = SecretKey::generate(options.algorithm)?;
    let root_params = profile::root(&domain, &window)?;
    let root = root_params.self_signed(&root_key)?;
    let window = profile::Window::new(now, options.intermediate_ttl)?;
    let key = SecretKey::generate(options.algorithm)?;
    let intermediate =
        profile::intermediate(&domain, &window)?.signed_by(&key, &Issuer::from_params(&root_params, &root_key))?;

    let names = match options.names {
        names if names.is_empty() => default_names(),
        names => names.into_iter().map(String::from).collect(),
    };
    let settings =
        serde_json::to_string_pretty(&Settings { trust_domain: domain, names, intermediate: None, prepared: None })
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
    let sealed_root_key = sealed::seal(&root_key, password)?;
    let key = sealed::seal(&key, password)?;
    match &options.offline_root {
        Some(path) => files::write_new_secret(path, &sealed_root_key),
        None => secret(ROOT_KEY, &sealed_root_key),
    }
    .and_then(|()| public(ROOT_CERT, &root.pem()))
    .and_then(|()| secret(INTERMEDIATE_KEY, &key))
    .and_then(|()| public(INTERMEDIATE_CERT, &intermediate.pem()))
    .and_then(|()| public(super::SETTINGS, &settings))
    .map_err(|e| AuthorityError::File { action: "write", path: e.path, source: e.source })?;
    // Read back what was written: better a failure now than at the first enrolment.
    let authority = Authority::open(dir, password)?;
    // While the root's key is at hand: its list needs it.
    let mut database = Database::open(&authority.database_path())?;
    let issuer = Issuer::from_params(&root_params, &root_key);
    database.transaction(|tx| {
        let (root, end) = (authority.active_root(), authority.expires_at());
        crl::publish(tx, root, &issuer, Some(end), now)?;
        crl::publish(tx, authority.active(), &authority.issuer, None, now)
    })?;
    Ok(replaced)
}

fn days(ttl: Duration) -> String {
    format!("{} days", ttl.as_secs_f64() / 86_400.0)
}

/// The key of an offline root must not land beside the key that it is to be kept from, nor in place of anything.
pub(super) fn refuse_inside(path: &Path, dir: &Path) -> Result<(), AuthorityError> {
    let exists = || files::error("write", path, io::ErrorKind::AlreadyExists.into());
    if path.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let real = |path: &Path| path.canonicalize().map_err(|e| files::error("look into", path, e));
    if real(parent)?.starts_with(real(dir)?) {
        return Err(AuthorityError::OfflineRootInside { path: path.display().to_string() });
    }
    Ok(())
}

/// Refuses, or with `force` moves the files of an earlier CA aside. A key is never deleted.
fn make_room(dir: &Path, force: bool, now: OffsetDateTime) -> Result<Option<PathBuf>, AuthorityError> {
    const OURS: [&str; 8] =
        [super::SETTINGS, ROOT_KEY, ROOT_CERT, INTERMEDIATE_KEY, INTERMEDIATE_CERT, DATABASE, "ca.db-wal", "ca.db-shm"];
    let found: Vec<_> = OURS.into_iter().filter(|name| dir.join(name).symlink_metadata().is_ok()).collect();
    let Some(&file) = found.first() else { return Ok(None) };
    let mut found: Vec<String> = found.into_iter().map(Into::into).collect();
    // What rotations have left has other names.
    for entry in std::fs::read_dir(dir).map_err(|e| files::error("look into", dir, e))? {
        let name = entry.map_err(|e| files::error("look into", dir, e))?.file_name();
        match name.to_str() {
            Some(name) if is_ours(name) && !OURS.contains(&name) => found.push(name.to_owned()),
            _ => {}
        }
    }
    if !force {
        return Err(AuthorityError::Exists { dir: dir.display().to_string(), file });
    }
    // The random part keeps two replacements within one second apart.
    let aside = dir.join(format!("replaced-{}-{}", now.unix_timestamp(), hex(&super::random_bytes::<2>()?)));
    DirBuilder::new().mode(0o700).create(&aside).map_err(|e| files::error("create", &aside, e))?;
    for name in found {
        let path = dir.join(&name);
        match rename(&path, aside.join(&name)) {
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
