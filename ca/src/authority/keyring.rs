//! The key files of a CA's folder. Each lies beside its certificate, as `NAME.pem` and `NAME-key.pem`, and is found by the
//! certificate, so that a file may have any name that begins with `root` or `intermediate`.

use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{AuthorityError, files, members::fingerprint};

/// A certificate's file and the key's that belongs beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyFile {
    pub(super) fingerprint: String,
    pub(super) certificate: PathBuf,
    /// May be missing: an offline root's key is elsewhere.
    pub(super) key: PathBuf,
}

/// What lies in a folder.
#[derive(Debug, Clone, Default)]
pub(super) struct Keyring {
    pub(super) files: Vec<KeyFile>,
    /// Files that hold no certificate, or a key without one.
    pub(super) unreadable: Vec<PathBuf>,
}

impl Keyring {
    pub(super) fn of(dir: &Path) -> Result<Self, AuthorityError> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|e| files::error("look into", dir, e))? {
            let name = entry.map_err(|e| files::error("look into", dir, e))?.file_name();
            if let Some(name) = name.to_str()
                && is_ours(name)
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        let mut ring = Self::default();
        for name in &names {
            let path = dir.join(name);
            // "intermediate-key.pem" is the key of "intermediate.pem", never a certificate.
            if let Some(stem) = name.strip_suffix("-key.pem") {
                if !names.contains(&format!("{stem}.pem")) {
                    ring.unreadable.push(path);
                }
                continue;
            }
            let stem = name.strip_suffix(".pem").unwrap_or(name);
            match CertificateDer::from_pem_file(&path) {
                Ok(der) => ring.files.push(KeyFile {
                    fingerprint: fingerprint(&der),
                    key: dir.join(format!("{stem}-key.pem")),
                    certificate: path,
                }),
                Err(_) => ring.unreadable.push(path),
            }
        }
        Ok(ring)
    }

    pub(super) fn get(&self, fingerprint: &str) -> Option<&KeyFile> {
        self.files.iter().find(|file| file.fingerprint == fingerprint)
    }

    /// The key's file, if it is there.
    pub(super) fn key_of(&self, fingerprint: &str) -> Option<&Path> {
        self.get(fingerprint).map(|file| file.key.as_path()).filter(|path| path.exists())
    }
}

/// Whether a file's name is one that `init` or a rotation gives.
pub(super) fn is_ours(name: &str) -> bool {
    let stem = name
        .strip_suffix(".pem")
        .and_then(|stem| stem.strip_prefix("root").or_else(|| stem.strip_prefix("intermediate")));
    stem.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}
