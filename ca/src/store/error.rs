//! What can go wrong with the database, and what to do about it.

use super::UrlError;

/// The database failed, or what is in it cannot be understood.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// SQLite reported a failure.
    #[error("the CA's database failed: {0}; check the disk's space and the permissions of ca.db")]
    Sqlite(String),
    /// PostgreSQL reported a failure, or could not be reached.
    #[error("the CA's database failed ({database}): {why}; check that the server runs and lets this CA in")]
    Postgres {
        /// Where it is.
        database: String,
        /// What the server or the system said.
        why: String,
    },
    /// The connection broke while a commit was under way, and whether it was done could not be learned in time.
    #[error(
        "the connection to the CA's database broke during a commit, and whether it was done is unknown ({0}); look with \"outrigger-ca log list\" and \"outrigger-ca token list\", and try again"
    )]
    Unknown(String),
    /// The URL of the database.
    #[error("{0}: {1}")]
    Url(&'static str, UrlError),
    /// TLS to the database's server cannot be set up.
    #[error("TLS to the CA's database cannot be set up: {0}")]
    Tls(String),
    /// Nobody has made a CA in this database.
    #[error(
        "the database holds no CA yet ({0}); make one with \"outrigger-ca init --database\", or check which database is named"
    )]
    NoCa(String),
    /// There is one, and this would be another.
    #[error(
        "the database already belongs to a CA of trust domain {trust_domain} ({database}); join it with \"outrigger-ca init --replica\", or name another database"
    )]
    Taken {
        /// Where it is.
        database: String,
        /// Whose it is.
        trust_domain: String,
    },
    /// The database of others.
    #[error(
        "the database belongs to the trust domain {found} and this CA to {own} ({database}); check which database is named"
    )]
    OtherTrustDomain {
        /// Where it is.
        database: String,
        /// Whose it is.
        found: String,
        /// Who asked.
        own: String,
    },
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
    /// An older program's, and looking must not change it.
    #[error(
        "the CA's database has schema version {found}, and this program needs {known}; looking does not change it: start \"outrigger-ca serve\" of this version, or look with the older outrigger-ca"
    )]
    Older {
        /// Version in the database.
        found: usize,
        /// The one that this program needs.
        known: usize,
    },
    /// A row holds something that this program never writes.
    #[error("the CA's database holds {0}; restore it from a backup")]
    Damaged(String),
}
