//! Files of keys and certificates: whole or not at all, and private from their first byte.

use std::{
    fs::{File, Permissions, TryLockError},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::AuthorityError;

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}; check that the directory exists and that this user may write there")]
pub struct OutputError {
    pub(super) path: String,
    pub(super) source: io::Error,
}

/// Writes `text` with mode 0600, so that a reader sees the old content or the new, and a crash loses neither.
pub fn write_secret(path: &Path, text: &str) -> Result<(), OutputError> {
    write(path, text, 0o600).map_err(|source| OutputError { path: path.display().to_string(), source })
}

/// As [`write_secret`], with mode 0644.
pub fn write_public(path: &Path, text: &str) -> Result<(), OutputError> {
    write(path, text, 0o644).map_err(|source| OutputError { path: path.display().to_string(), source })
}

/// As [`write_secret`], but never in place of something that is there.
pub(super) fn write_new_secret(path: &Path, text: &str) -> Result<(), OutputError> {
    write_with(path, text, 0o600, |file| file.persist_noclobber(path).map(drop).map_err(|e| e.error))
        .map_err(|source| OutputError { path: path.display().to_string(), source })
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    write_with(path, text, mode, |file| file.persist(path).map(drop).map_err(|e| e.error))
}

fn write_with(
    path: &Path,
    text: &str,
    mode: u32,
    persist: impl FnOnce(tempfile::NamedTempFile) -> io::Result<()>,
) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    // The temporary file is made with mode 0600, so a key is at no moment readable by others.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    persist(file)?;
    // The rename itself must survive a power cut too.
    File::open(dir)?.sync_all()
}

pub(super) fn error(action: &'static str, path: &Path, source: io::Error) -> AuthorityError {
    AuthorityError::File { action, path: path.display().to_string(), source }
}

pub(super) fn damaged(path: &Path, why: String) -> AuthorityError {
    AuthorityError::Damaged { path: path.display().to_string(), why }
}

/// Says so when others on the machine can read a key. Not an error: Kubernetes mounts secrets with group access.
pub(super) fn warn_if_shared(path: &Path) {
    if let Ok(meta) = std::fs::metadata(path)
        && meta.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(file = %path.display(), "others on this machine can read this secret of the CA; run \"chmod 600\" on it");
    }
}

/// A lock on a CA's folder until the file is dropped: servers share it, and who puts another CA there has it `alone`.
/// `None`: somebody has it who is in the way.
pub(super) fn hold(dir: &Path, alone: bool) -> Result<Option<File>, AuthorityError> {
    let folder = File::open(dir).map_err(|e| error("open", dir, e))?;
    match if alone { folder.try_lock() } else { folder.try_lock_shared() } {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => Ok(None),
        // A file system without locks keeps nobody from serving; but what cannot be seen to be nobody's is not replaced.
        Err(TryLockError::Error(why)) if alone => Err(error("lock", dir, why)),
        Err(TryLockError::Error(why)) => {
            tracing::warn!(dir = %dir.display(), %why, "the folder cannot be locked");
            Ok(Some(folder))
        }
    }
}
