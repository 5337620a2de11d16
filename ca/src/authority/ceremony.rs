//! The birth of a CA: two keys, two certificates, settings and an empty log, in a directory of their own.

use std::{
    fs::{DirBuilder, OpenOptions, rename},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{Issuer, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{
    Algorithm, Authority, AuthorityError, DATABASE, INTERMEDIATE_CERT, INTERMEDIATE_KEY, Password, ROOT_CERT, ROOT_KEY,
    SecretKey, ServerNameText, Settings, crl, files, hex,
    keyring::is_ours,
    members::{fingerprint, to_pem},
    profile, sealed,
};
use crate::store::{AuthorityState, Database};
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
    /// The root of the CA that this one shall be a replica of. `None`: a new one is made.
    pub shared_root: Option<SharedRoot>,
    /// The database that replicas share. `None`: a file in the folder.
    pub database: Option<SharedDatabase>,
}

/// The root that several replicas share. Its key is read once, to sign the new replica's intermediate, and not kept.
#[derive(Debug)]
pub struct SharedRoot {
    /// File of its certificate, PEM.
    pub certificate: PathBuf,
    /// File of its key, encrypted with the password of the new folder if at all.
    pub key: PathBuf,
}

/// A database that replicas share: a new CA's that nobody has [taken](Database::take), a replica's that of the others.
#[derive(Debug)]
pub struct SharedDatabase {
    /// Open.
    pub database: Database,
    /// What the settings will hold. `None`: the environment names it.
    pub url: Option<String>,
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
            shared_root: None,
            database: None,
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
    let (domain, password) = (options.trust_domain, options.password.as_ref());
    let mut shared = options.database;
    let root = match &options.shared_root {
        Some(root) => Root::read(root, &domain, password, now)?,
        None => Root::make(&domain, options.algorithm, options.root_ttl, now)?,
    };
    if let (Some(_), Some(shared)) = (&options.shared_root, &mut shared) {
        let known = shared.database.snapshot(|tx| tx.authority_state(&fingerprint(&root.der)))?;
        if known != Some(AuthorityState::Active) {
            return Err(AuthorityError::NotTheRoot { path: "--root".into(), domain: domain.to_string() });
        }
    }
    // To the end: a server that starts meanwhile, or another one who replaces, would find half a CA.
    let _alone = match options.force {
        true => Some(files::hold(dir, true)?.ok_or_else(|| AuthorityError::Served { dir: dir.display().to_string() })?),
        false => None,
    };
    let replaced = make_room(dir, options.force, now)?;
    let window = profile::Window::new(now, options.intermediate_ttl)?;
    let window = profile::Window { not_after: window.not_after.min(root.not_after), ..window };
    let key = SecretKey::generate(options.algorithm)?;
    let issuer = Issuer::from_ca_cert_der(&root.der, &root.key)?;
    let intermediate = profile::intermediate(&domain, &window)?.signed_by(&key, &issuer)?;

    let names = match options.names {
        names if names.is_empty() => default_names(),
        names => names.into_iter().map(String::from).collect(),
    };
    let settings = serde_json::to_string_pretty(&Settings {
        trust_domain: domain.clone(),
        names,
        database: shared.as_ref().and_then(|shared| shared.url.clone()),
        intermediate: None,
        prepared: None,
    })
    .map_err(|e| files::damaged(&dir.join(super::SETTINGS), e.to_string()))?;

    // SQLite gives its journal files the mode of the database, so this one call keeps all of them private.
    if shared.is_none() {
        let database = dir.join(DATABASE);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&database)
            .map_err(|e| files::error("create", &database, e))?;
    }
    let secret = |name: &str, text: &str| files::write_secret(&dir.join(name), text);
    let public = |name: &str, text: &str| files::write_public(&dir.join(name), text);
    // The settings come last: a directory without them is not a CA, so an interrupted init leaves none.
    let sealed_root_key = sealed::seal(&root.key, password)?;
    let key = sealed::seal(&key, password)?;
    match (&options.offline_root, &options.shared_root) {
        (_, Some(_)) => Ok(()),
        (Some(path), None) => files::write_new_secret(path, &sealed_root_key),
        (None, None) => secret(ROOT_KEY, &sealed_root_key),
    }
    .and_then(|()| public(ROOT_CERT, &root.pem))
    .and_then(|()| secret(INTERMEDIATE_KEY, &key))
    .and_then(|()| public(INTERMEDIATE_CERT, &intermediate.pem()))
    .and_then(|()| public(super::SETTINGS, &settings))
    .map_err(|e| AuthorityError::File { action: "write", path: e.path, source: e.source })?;
    // Read back what was written: better a failure now than at the first enrolment.
    if let (None, Some(shared)) = (&options.shared_root, &mut shared) {
        shared.database.take(&domain)?;
    }
    let authority = Authority::open(dir, password)?;
    // While the root's key is at hand: its list needs it.
    let mut database = match shared {
        Some(shared) => shared.database,
        None => Database::open(&authority.database_path())?,
    };
    let ends = authority.members().under(&authority.active_root().row.fingerprint).map(|member| member.not_after);
    let end = ends.max().unwrap_or_else(|| authority.expires_at());
    database.transaction(|tx| {
        crl::publish(tx, authority.active_root(), &issuer, Some(end), now)?;
        crl::publish(tx, authority.active(), &authority.issuer, None, now)
    })?;
    Ok(replaced)
}

/// The root that signs the first intermediate of a folder.
struct Root {
    key: SecretKey,
    der: CertificateDer<'static>,
    pem: String,
    not_after: OffsetDateTime,
}

impl Root {
    fn make(
        domain: &TrustDomain,
        algorithm: Algorithm,
        ttl: Duration,
        now: OffsetDateTime,
    ) -> Result<Self, AuthorityError> {
        let window = profile::Window::new(now, ttl)?;
        let key = SecretKey::generate(algorithm)?;
        let certificate = profile::root(domain, &window)?.self_signed(&key)?;
        Ok(Self { key, der: certificate.der().clone(), pem: certificate.pem(), not_after: window.not_after })
    }

    /// A root that another folder's `init` made: of this trust domain, in its time, with its key.
    fn read(
        shared: &SharedRoot,
        domain: &TrustDomain,
        password: Option<&Password>,
        now: OffsetDateTime,
    ) -> Result<Self, AuthorityError> {
        let path = &shared.certificate;
        let file = super::read_certificate(path)?;
        let (_, parsed) = X509Certificate::from_der(&file.der).map_err(|e| files::damaged(path, e.to_string()))?;
        let uri = format!("spiffe://{domain}");
        let names = parsed.subject_alternative_name().map_err(|e| files::damaged(path, e.to_string()))?;
        if !parsed.is_ca() || !names.is_some_and(|san| san.value.general_names.contains(&GeneralName::URI(&uri))) {
            return Err(AuthorityError::NotTheRoot { path: path.display().to_string(), domain: domain.to_string() });
        }
        let not_after = parsed.validity().not_after.to_datetime();
        if now >= not_after {
            return Err(AuthorityError::RootExpired { at: super::rfc3339(not_after) });
        }
        let key = sealed::open(&shared.key, password)?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(files::damaged(&shared.key, format!("it is not the key of {}", path.display())));
        }
        Ok(Self { key, pem: to_pem(&file.der), not_after, der: file.der })
    }
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
