//! What can go wrong with the database, and what to do about it.

/// The database failed, or what is in it cannot be understood.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// SQLite reported a failure.
    #[error("the CA's database failed: {0}; check the disk's space and the permissions of ca.db")]
    Sqlite(String),
    /// In another mode `synchronous=FULL` would not keep what was committed through a loss of power.
    #[error(
        "ca.db stays in journal mode \"{0}\": its file system does not offer what SQLite's WAL needs; keep the CA's folder on a local disk"
    )]
    NoWal(String),
    /// A newer program has been here.
    #[error(
        "the CA's database has schema version {found} and this program knows up to {known}; use the newer outrigger-ca again"
    )]
    Newer {
        /// Version in the database.
        found: usize,
        /// The newest that this program knows.
        known: usize,
    },
    /// A row holds something that this program never writes.
    #[error("the CA's database holds {0}; restore it from a backup")]
    Damaged(String),
}
