//! Everything durable: authorities, join tokens, the issuance log and revocations. In one SQLite file.
//!
//! Promise: what [`Database::transaction`] returned `Ok` for is on the disk.
//!
//! [`Transaction`] is the one interface to it, and says how to add to it.

mod authorities;
mod chain;
mod crls;
mod error;
mod log;
mod migrations;
mod prune;
mod revocations;
mod sql;
mod sqlite;
mod thread;
mod tokens;
mod transaction;

use std::path::Path;

pub use authorities::{AuthorityKind, AuthorityRow, AuthorityState, BundleRow};
pub use chain::{ChainFault, ChainHash, ChainReport};
pub use crls::CrlRow;
pub use error::StoreError;
pub use log::{CredentialKind, LogEntry, LogRecord};
pub use prune::Pruned;
pub use revocations::{RevocationReason, RevocationRow};
use sql::{CommitError, Mode, Sql};
pub use thread::{Store, StoreGone};
pub use tokens::{MIN_REF_LEN, TokenRow, TokenState};
pub use transaction::Transaction;

use crate::authority::Directory;

/// An open database. Blocking: a server uses it through [`Store`].
pub struct Database {
    sql: Box<dyn Sql>,
}

impl Database {
    /// The database of the CA in this directory.
    pub fn of(directory: &Directory) -> Result<Self, StoreError> {
        Self::open(&directory.database_path())
    }

    /// Opens an SQLite file, which must exist (empty is enough), brings its schema up to date, and makes it durable.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut sqlite = sqlite::Sqlite::open(path)?;
        migrations::run(&mut sqlite)?;
        Ok(Self { sql: Box::new(sqlite) })
    }

    /// Runs `work` in one write transaction: all of it is on the disk when this returns `Ok`, and none of it
    /// happened when it returns `Err`. There is one write transaction at a time, so what `work` reads cannot change
    /// before it writes.
    pub fn transaction<T, E: From<StoreError>>(
        &mut self,
        mut work: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.sql.begin(Mode::Write)?;
        match work(&mut Transaction::new(&mut *self.sql)) {
            Ok(value) => match self.sql.commit() {
                Ok(()) => Ok(value),
                Err(CommitError::NotDone(error) | CommitError::Unknown(error)) => Err(error.into()),
            },
            Err(error) => {
                self.sql.rollback();
                Err(error)
            }
        }
    }

    /// Runs `work` on one state of the database, however long it takes: who records meanwhile is not kept waiting.
    pub fn snapshot<T, E: From<StoreError>>(
        &mut self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.sql.begin(Mode::Read)?;
        let result = work(&mut Transaction::new(&mut *self.sql));
        self.sql.rollback();
        result
    }

    /// What the database itself finds wrong with what it holds; each line is one thing.
    pub fn integrity(&mut self) -> Result<Vec<String>, StoreError> {
        self.sql.integrity()
    }

    /// For tests that meddle.
    #[cfg(test)]
    fn batch(&mut self, sql: &str) -> Result<(), StoreError> {
        self.sql.batch(sql)
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
