//! The two files that every resolver obeys, read again when they change: a laptop that changes networks and a VM that
//! renews its lease get another resolv.conf, and a container runtime may rewrite /etc/hosts.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

/// What tells one content of a file from another.
type Stamp = (u64, u64, Option<SystemTime>);

type Parse<T> = Box<dyn Fn(&[u8]) -> Result<T, String> + Send + Sync>;

/// A value parsed from a file, parsed again when the file has changed.
pub(super) struct FromFile<T> {
    path: PathBuf,
    parse: Parse<T>,
    current: Mutex<(Option<Stamp>, T)>,
}

impl<T: Clone> FromFile<T> {
    /// Reads `path`; `otherwise` is used where it cannot be read or parsed, and its errors are this one's.
    pub(super) fn new<E>(
        path: &Path,
        parse: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
        otherwise: impl FnOnce(String) -> Result<T, E>,
    ) -> Result<Self, E> {
        let stamp = stamp(path).ok();
        let parsed = fs::read(path).map_err(|e| e.to_string()).and_then(|bytes| parse(&bytes));
        let value = match parsed {
            Ok(value) => value,
            Err(why) => otherwise(format!("{}: {why}", path.display()))?,
        };
        Ok(Self { path: path.to_owned(), parse: Box::new(parse), current: Mutex::new((stamp, value)) })
    }

    /// The value of the file as it is now. While the file is away or broken, the last good value.
    pub(super) fn get(&self) -> T {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.path).ok();
        if now.is_some() && now != current.0 {
            let read = fs::read(&self.path).map_err(|e| e.to_string()).and_then(|bytes| (self.parse)(&bytes));
            match read {
                Ok(value) => current.1 = value,
                Err(why) => tracing::warn!("{} has changed and cannot be used: {why}", self.path.display()),
            }
            current.0 = now;
        }
        current.1.clone()
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    Ok((meta.ino(), meta.len(), meta.modified().ok()))
}
