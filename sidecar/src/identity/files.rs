//! The identity's folder: `cert.pem` (leaf first), `key.pem`, `bundle.pem`.
//!
//! Writing has to survive a crash between two files, and a key that was used up with a single-use token must not be
//! lost. So all three are first written beside their places and synced, then renamed: bundle, certificate, key. The only
//! moment with a pair that does not match is between the last two, and then the right key still lies in
//! `.key.pem.next`. In a folder that was empty each rename leaves fewer files missing, and those that are lie beside their
//! places. The next start finishes it, see `kept.rs`; nobody else looks there. Plain files, so every tool reads them; a folder
//! swapped by symlink would be as safe but would not let somebody else's three files (`outrigger-ca issue`) become ours.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use outrigger_identity::TrustDomain;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{
    BundleError, CertificateFault, CrlError, Identity, TrustBundle, WorkloadCertificate,
    assemble::{Misfit, assemble},
    kept::beside,
};

/// The issuers' revocation lists.
pub(super) const LISTS: &str = "crl.pem";
/// No honest file is longer, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is not there.
    #[error(
        "{} is missing; put cert.pem, key.pem and bundle.pem there (\"outrigger-ca issue --out\"), or set identity.ca to enrol", .0.display()
    )]
    Missing(PathBuf),
    /// A file cannot be read.
    #[error("cannot read {}: {why}; the sidecar runs as uid {uid}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The system's word.
        why: io::Error,
        /// Ours.
        uid: u32,
    },
    /// Everybody on the machine could be us.
    #[error(
        "{} may be read by every user (mode {mode:04o}); run \"chmod 600 {}\", in Kubernetes set defaultMode: 0400", path.display(), path.display()
    )]
    KeyMode {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file holds something else than it should.
    #[error("{} {why}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The leaf is not a workload certificate.
    #[error("{} cannot be our identity: {fault}; issue it again (\"outrigger-ca issue\")", path.display())]
    Certificate {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        fault: CertificateFault,
    },
    /// The bundle is unusable.
    #[error("{} cannot be used: {fault}; write the output of \"outrigger-ca bundle show\" there", path.display())]
    Bundle {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        fault: BundleError,
    },
    /// The revocation lists are unusable.
    #[error(
        "{} cannot be used: {why}; write the CA's /crl.pem there (\"curl --cacert bundle.pem https://CA:15012/crl.pem\")", path.display()
    )]
    Lists {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: CrlError,
    },
    /// A revocation list is not of whom it says.
    #[error("{} cannot be used: the list of {issuer} is not signed by it; fetch the CA's /crl.pem again", path.display())]
    Forged {
        /// Which.
        path: PathBuf,
        /// Who it says has signed it.
        issuer: String,
    },
    /// Certificate and key do not belong together.
    #[error(
        "{} is not the key of {}; put both there from the same issuance (\"outrigger-ca issue --out\")", key.display(), certificate.display()
    )]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

/// The three PEM texts. The key stays out of every `Debug`.
#[derive(Clone)]
pub(super) struct Material {
    pub(super) chain_pem: Vec<u8>,
    pub(super) key_pem: Vec<u8>,
    pub(super) bundle_pem: Vec<u8>,
}

/// An identity and what it was read from.
pub(super) struct Loaded {
    pub(super) identity: Identity,
    pub(super) material: Material,
    pub(super) warnings: Vec<String>,
}

/// Reads an identity from a folder. Dates are not judged: an expired certificate loads, see [`Identity::check_valid`].
pub fn load(dir: &Path, trust_domain: Option<&TrustDomain>) -> Result<Identity, IdentityError> {
    load_placed(dir, trust_domain).map(|loaded| loaded.identity)
}

pub(super) fn load_placed(dir: &Path, trust_domain: Option<&TrustDomain>) -> Result<Loaded, IdentityError> {
    let mut warnings = Vec::new();
    let material = Material {
        chain_pem: read(&dir.join("cert.pem"))?,
        key_pem: read_key(&dir.join("key.pem"), &mut warnings)?,
        bundle_pem: read(&dir.join("bundle.pem"))?,
    };
    let identity = parse(&material, dir, trust_domain)?;
    Ok(Loaded { identity, material, warnings })
}

/// Whether the folder holds exactly these texts, with a key that nobody else may read.
pub(super) fn holds(dir: &Path, material: &Material) -> bool {
    read(&dir.join("cert.pem")).is_ok_and(|pem| pem == material.chain_pem)
        && read_key(&dir.join("key.pem"), &mut Vec::new()).is_ok_and(|pem| pem == material.key_pem)
        && read(&dir.join("bundle.pem")).is_ok_and(|pem| pem == material.bundle_pem)
}

/// Makes an identity of PEM texts; `dir` is for the words of errors.
pub(super) fn parse(
    material: &Material,
    dir: &Path,
    trust_domain: Option<&TrustDomain>,
) -> Result<Identity, IdentityError> {
    let (cert_path, key_path) = (dir.join("cert.pem"), dir.join("key.pem"));
    let content = |path: &Path, why: String| IdentityError::Content { path: path.to_owned(), why };
    let unusable = |why: String| content(&key_path, format!("holds no usable private key: {why}; issue it again"));
    let chain = CertificateDer::pem_slice_iter(&material.chain_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| content(&cert_path, format!("is not PEM: {e}; issue it again")))?;
    let bundle = parse_bundle(&material.bundle_pem, dir);
    let key = PrivateKeyDer::from_pem_slice(&material.key_pem).map_err(|e| unusable(e.to_string()));
    // What is wrong with the certificate is said first.
    if let Some(leaf) = chain.first() {
        let fault = |fault| IdentityError::Certificate { path: cert_path.clone(), fault };
        WorkloadCertificate::parse(leaf).map_err(fault)?;
    }
    assemble(chain, key?, bundle?, trust_domain).map_err(|misfit| match misfit {
        Misfit::Empty => content(&cert_path, "holds no certificate; issue it again".to_owned()),
        Misfit::Certificate(fault) => IdentityError::Certificate { path: cert_path.clone(), fault },
        Misfit::Key(why) => unusable(why),
        Misfit::OtherKey => IdentityError::KeyMismatch { certificate: cert_path.clone(), key: key_path.clone() },
        Misfit::Chain(why) => content(&cert_path, format!("cannot be used: {why}; issue it again")),
    })
}

pub(super) fn parse_bundle(pem: &[u8], dir: &Path) -> Result<TrustBundle, IdentityError> {
    TrustBundle::from_pem(pem).map_err(|fault| IdentityError::Bundle { path: dir.join("bundle.pem"), fault })
}

/// The texts of both bundles, each root once: `known` as it stands, and behind it what `more` has beyond it.
pub(super) fn join_bundles(known: &[u8], more: &[u8]) -> Result<Vec<u8>, BundleError> {
    let (have, all) = (TrustBundle::from_pem(known)?, TrustBundle::from_pem(more)?);
    let mut joined = known.to_vec();
    for root in all.roots().iter().filter(|root| !have.contains(&root.der)) {
        if !joined.ends_with(b"\n") {
            joined.push(b'\n');
        }
        joined.extend_from_slice(root.to_pem().as_bytes());
    }
    Ok(joined)
}

pub(super) fn read_bundle(dir: &Path) -> Result<(TrustBundle, Vec<u8>), IdentityError> {
    let pem = read(&dir.join("bundle.pem"))?;
    Ok((parse_bundle(&pem, dir)?, pem))
}

/// Reads a small file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    read_up_to(path, MAX_FILE)
}

/// Reads a file of at most `max` bytes.
pub(super) fn read_up_to(path: &Path, max: u64) -> Result<Vec<u8>, IdentityError> {
    match fs::metadata(path).and_then(|m| if m.len() > max { Err(too_long(max)) } else { fs::read(path) }) {
        Ok(bytes) => Ok(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(IdentityError::Missing(path.to_owned())),
        Err(why) => {
            let uid = nix::unistd::geteuid().as_raw();
            Err(IdentityError::Unreadable { path: path.to_owned(), why, uid })
        }
    }
}

fn too_long(max: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {} MiB", max / (1024 * 1024)))
}

pub(super) fn read_key(path: &Path, warnings: &mut Vec<String>) -> Result<Vec<u8>, IdentityError> {
    let bytes = read(path)?;
    let mode = fs::metadata(path).map_or(0, |m| m.mode() & 0o7777);
    if mode & 0o006 != 0 {
        return Err(IdentityError::KeyMode { path: path.to_owned(), mode });
    }
    if mode & 0o060 != 0 {
        // Kubernetes' fsGroup makes it so, hence no refusal.
        warnings.push(format!("{} may be read by its group (mode {mode:04o}); chmod 600 is better", path.display()));
    }
    Ok(bytes)
}

/// Writes an identity, see the module's comment for the order.
pub(super) fn persist(dir: &Path, material: &Material) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let next = |name: &str| beside(dir, name);
    let all = [
        ("bundle.pem", &material.bundle_pem, 0o644),
        ("cert.pem", &material.chain_pem, 0o644),
        ("key.pem", &material.key_pem, 0o600),
    ];
    for (name, bytes, mode) in all {
        write_new(&next(name), bytes, mode)?;
    }
    for (name, ..) in all {
        fs::rename(next(name), dir.join(name))?;
    }
    fs::File::open(dir)?.sync_all()
}

/// Replaces a file that everybody may read, in one step.
pub(super) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    // Not the name that `persist` uses: what lies under that is part of an interrupted renewal.
    let next = dir.join(format!(".{name}.new"));
    write_new(&next, bytes, 0o644)?;
    fs::rename(next, dir.join(name))?;
    fs::File::open(dir)?.sync_all()
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // A leftover may have another mode or be a link to elsewhere: never write into it.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// What tells that a file was changed or replaced, without reading it. Follows symlinks, so a swap of the folder behind
/// them (Kubernetes) is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    // Catches chmod and chown, which mend a file without touching its contents.
    changed: (i64, i64),
}

impl Fingerprint {
    /// Whether the file was touched less than `age` ago, by the system's clock, or in its future.
    pub(super) fn is_younger_than(&self, age: Duration) -> bool {
        let changed = Duration::from_secs(u64::try_from(self.changed.0).unwrap_or(0));
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + changed).map_or(true, |since| since < age)
    }
}

/// `None` for a file that is not there or cannot be looked at.
pub(super) fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let m = fs::metadata(path).ok()?;
    Some(Fingerprint {
        device: m.dev(),
        inode: m.ino(),
        size: m.size(),
        modified: (m.mtime(), m.mtime_nsec()),
        changed: (m.ctime(), m.ctime_nsec()),
    })
}
