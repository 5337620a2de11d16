//! Everything durable: authorities, join tokens, the issuance log and revocations, in one SQLite file.
//!
//! Promise: what [`Database::transaction`] returned `Ok` for is on the disk (WAL with `synchronous=FULL`). SQLite's
//! own locking lets the command line work beside a running server.

mod authorities;
mod chain;
mod crls;
mod log;
mod migrations;
mod prune;
mod revocations;
mod thread;
mod tokens;

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

pub use authorities::{
    AuthorityKind, AuthorityRow, AuthorityState, BundleRow, authority_state, bundle_row, insert_authority,
    list_authorities, move_authority, set_refresh_hint,
};
pub use chain::{ChainFault, ChainHash, ChainReport, verify_chain};
pub use crls::{CrlRow, crl_of, next_crl_number, put_crl};
pub use log::{CredentialKind, LogEntry, LogRecord, append, by_serial, for_each, for_each_unexpired};
pub use prune::{Pruned, prune};
pub use revocations::{
    RevocationReason, RevocationRow, block_id, blocked_at, insert_revocation, newest_revocation_of, revocations_of,
    revoked_at, unblock_id, verify_revocations,
};
pub use thread::{Store, StoreGone};
pub use tokens::{
    MIN_REF_LEN, TokenRow, TokenState, insert_token, list_tokens, revoke_token, revoke_tokens_of, spend_token,
    token_by_hash, tokens_by_ref, tokens_waiting,
};

/// How long one process waits for another's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The database failed, or what is in it cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite reported a failure.
    #[error("the CA's database failed: {0}; check the disk's space and the permissions of ca.db")]
    Sqlite(#[from] rusqlite::Error),
    /// In another mode `synchronous=FULL` would not keep what was committed through a loss of power.
    #[error(
        "ca.db stays in journal mode \"{0}\": its file system does not offer what SQLite's WAL needs; keep the CA's folder on a local disk"
    )]
    NoWal(String),
    /// A newer program has been here.
    #[error("ca.db has schema version {found} and this program knows up to {known}; use the newer outrigger-ca again")]
    Newer {
        /// Version in the file.
        found: usize,
        /// The newest that this program knows.
        known: usize,
    },
    /// A row holds something that this program never writes.
    #[error("the CA's database holds {0}; restore ca.db from a backup")]
    Damaged(String),
}

/// An open database. Blocking: a server uses it through [`Store`].
pub struct Database {
    connection: Connection,
}

impl Database {
    /// Opens the file, which must exist (empty is enough), brings its schema up to date, and makes it durable.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        // Not created when missing: a CA that has lost its log must say so, not begin a new one in silence.
        let mut connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::NoWal(mode));
        }
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        migrations::run(&mut connection)?;
        Ok(Self { connection })
    }

    /// Runs `work` in one write transaction: all of it is on the disk when this returns `Ok`, and none of it
    /// happened when it returns `Err`.
    pub fn transaction<T, E: From<StoreError>>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        // IMMEDIATE takes the write lock first, so what `work` reads cannot change before it writes.
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(StoreError::from)?;
        let result = work(&tx)?;
        tx.commit().map_err(StoreError::from)?;
        Ok(result)
    }

    /// Runs `work` on one state of the database, however long it takes: who records meanwhile is not kept waiting.
    pub fn snapshot<T, E: From<StoreError>>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Deferred).map_err(StoreError::from)?;
        work(&tx)
    }

    /// SQLite's own look at the file's pages and indexes; each line is one thing that is wrong.
    pub fn integrity(&self) -> Result<Vec<String>, StoreError> {
        let mut statement = self.connection.prepare("PRAGMA quick_check")?;
        let lines = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }

    /// For reading outside a transaction.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

fn names_to_json(names: &[String]) -> String {
    serde_json::Value::from(names).to_string()
}

fn names_from_json(text: &str) -> Result<Vec<String>, StoreError> {
    serde_json::from_str(text).map_err(|_| StoreError::Damaged(format!("DNS names that are not a list: {text}")))
}

fn time_from(seconds: i64) -> Result<time::OffsetDateTime, StoreError> {
    time::OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|_| StoreError::Damaged(format!("the impossible time {seconds}")))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests_chain;
