//! What an earlier run of ours left in the identity's folder, looked at once: when a process with `identity.ca` starts.
//!
//! A writer that was stopped leaves files beside their places, see `files.rs`. Only the writer's own successor may finish them,
//! and only before anybody looks at the folder: in a folder that somebody else fills, and later, a file that is missing was
//! removed on purpose, and what lies beside it must not bring it back. So nothing is left beside a pair that is good.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use outrigger_identity::TrustDomain;

use super::{
    Identity, IdentityError, NotValidNow,
    files::{Loaded, Material, load_placed, parse, read, read_key},
};

/// In the order in which they are renamed into their places.
const NAMES: [&str; 3] = ["bundle.pem", "cert.pem", "key.pem"];

/// Where a file lies before it is renamed.
pub(super) fn beside(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!(".{name}.next"))
}

/// Reads an identity from a folder of ours, ends what was interrupted after it was written, and clears away what is of no use.
pub(super) fn load_kept(
    dir: &Path,
    trust_domain: Option<&TrustDomain>,
    now: SystemTime,
) -> Result<Loaded, IdentityError> {
    let placed = load_placed(dir, trust_domain);
    let interrupted = match &placed {
        Ok(Loaded { identity, .. }) => match identity.check_valid(now) {
            // Worth nothing, and a single-use token may have been spent on the pair beside it.
            Err(NotValidNow::Expired { .. }) => Interrupted::find(dir, trust_domain, &["cert.pem", "key.pem"])
                .filter(|beside| beside.is_successor_of(identity)),
            _ => None,
        },
        Err(IdentityError::Missing(_)) => Interrupted::find(dir, trust_domain, &[]),
        // Stopped between the last two renames.
        Err(IdentityError::KeyMismatch { .. }) => Interrupted::find(dir, trust_domain, &["key.pem"]),
        Err(_) => None,
    };
    match interrupted {
        Some(interrupted) => Ok(interrupted.finish(dir)),
        None => placed.inspect(|_| clear(dir)),
    }
}

/// An identity of which a part lies beside its place.
struct Interrupted {
    loaded: Loaded,
    beside: Vec<&'static str>,
}

impl Interrupted {
    /// What is in its place counts, but for `unplaced`, which count from beside theirs. What was stopped before the first
    /// rename was synced whole, or does not make an identity.
    fn find(dir: &Path, trust_domain: Option<&TrustDomain>, unplaced: &[&str]) -> Option<Self> {
        let mut warnings = Vec::new();
        let mut used = Vec::new();
        let mut choose = |name: &'static str| {
            let placed = dir.join(name);
            if placed.exists() && !unplaced.contains(&name) {
                return placed;
            }
            used.push(name);
            beside(dir, name)
        };
        let [bundle, chain, key] = NAMES.map(&mut choose);
        let material = Material {
            chain_pem: read(&chain).ok()?,
            key_pem: read_key(&key, &mut warnings).ok()?,
            bundle_pem: read(&bundle).ok()?,
        };
        let identity = parse(&material, dir, trust_domain).ok()?;
        Some(Self { loaded: Loaded { identity, material, warnings }, beside: used })
    }

    fn is_successor_of(&self, placed: &Identity) -> bool {
        let identity = &self.loaded.identity;
        identity.id == placed.id && identity.not_after > placed.not_after
    }

    /// Puts the parts into their places. Where the folder is read-only they stay where they are, and are found again.
    fn finish(self, dir: &Path) -> Loaded {
        tracing::info!(dir = %dir.display(), files = ?self.beside, "found what an interrupted enrolment or renewal had written");
        for name in self.beside {
            if let Err(error) = fs::rename(beside(dir, name), dir.join(name)) {
                tracing::warn!(%error, file = name, dir = %dir.display(), "cannot finish what was interrupted; make the folder writable");
                return self.loaded;
            }
        }
        clear(dir);
        self.loaded
    }
}

/// Removes what would otherwise take the place of a file that somebody removes later.
fn clear(dir: &Path) {
    for name in NAMES {
        let path = beside(dir, name);
        match fs::remove_file(&path) {
            Ok(()) => {
                tracing::info!(file = %path.display(), "removed what an interrupted renewal had left; it is of no use")
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, file = %path.display(), "cannot remove what an interrupted renewal had left")
            }
        }
    }
}
