//! Everything durable: authorities, join tokens, the issuance log and revocations. In one SQLite file, or for several
//! replicas in PostgreSQL.
//!
//! Promise: what [`Database::transaction`] returned `Ok` for is on the disk.
//!
//! [`Transaction`] is the one interface to it, and says how to add to it.

mod authorities;
mod chain;
mod crls;
mod error;
mod keys;
mod location;
mod log;
mod migrations;
mod postgres;
mod prune;
mod revocations;
mod sql;
mod sqlite;
mod thread;
mod tokens;
mod transaction;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use outrigger_identity::TrustDomain;

pub use authorities::{AuthorityKind, AuthorityRow, AuthorityState, BundleRow};
pub use chain::{ChainFault, ChainHash, ChainReport};
pub use crls::CrlRow;
pub use error::StoreError;
pub use location::{DATABASE_ENV, Location, PostgresUrl, UrlError};
pub use log::{CredentialKind, LogEntry, LogRecord};
pub use prune::{Forgot, Pruned};
pub use revocations::{RevocationReason, RevocationRow};
use sql::{CommitError, Dialect, Mode, Sql};
pub use thread::{Store, StoreGone};
pub use tokens::{MIN_REF_LEN, TokenRow, TokenState};
pub use transaction::Transaction;

use crate::authority::Directory;

/// How long a transaction is tried again while the database cannot be reached or somebody is in the way. A restart of
/// the server takes less, and callers who enrol wait a little longer.
const PATIENCE: Duration = Duration::from_secs(8);

/// An open database. Blocking: a server uses it through [`Store`].
pub struct Database {
    sql: Box<dyn Sql>,
}

/// Whose a shared database must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Nobody's: a new CA will [take](Database::take) it.
    New,
    /// That of a CA of this trust domain.
    Existing,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Database")
    }
}

impl Database {
    /// The database of the CA in this directory.
    pub fn of(directory: &Directory) -> Result<Self, StoreError> {
        let (location, trust_domain) = (directory.database()?, directory.trust_domain());
        if directory.only_looks() {
            Self::look(&location, trust_domain)
        } else {
            Self::at(&location, trust_domain, Claim::Existing)
        }
    }

    /// The same for who only looks: a database that this program would have to change first is left alone.
    ///
    /// # Errors
    ///
    /// [`StoreError::Older`] for one of an earlier version: its server may be running.
    pub fn look(location: &Location, trust_domain: &TrustDomain) -> Result<Self, StoreError> {
        Self::reach(location, trust_domain, Claim::Existing, migrations::expect_current)
    }

    /// Opens a database, brings its schema up to date, and sees whose it is. An SQLite file is its folder's.
    pub fn at(location: &Location, trust_domain: &TrustDomain, claim: Claim) -> Result<Self, StoreError> {
        Self::reach(location, trust_domain, claim, migrations::run)
    }

    fn reach(
        location: &Location,
        trust_domain: &TrustDomain,
        claim: Claim,
        schema: fn(&mut dyn Sql) -> Result<(), StoreError>,
    ) -> Result<Self, StoreError> {
        let url = match location {
            Location::File(path) => {
                let mut sqlite = sqlite::Sqlite::open(path)?;
                schema(&mut sqlite)?;
                return Ok(Self { sql: Box::new(sqlite) });
            }
            Location::Postgres(url) => url,
        };
        let mut postgres = postgres::Postgres::open(url.clone())?;
        let empty = |error| match error {
            // Looking where there was never one.
            StoreError::Older { found: 0, .. } => StoreError::NoCa(url.to_string()),
            other => other,
        };
        schema(&mut postgres).map_err(empty)?;
        let mut this = Self { sql: Box::new(postgres) };
        let (database, own) = (url.to_string(), trust_domain.to_string());
        let found = this.snapshot(|tx| tx.query_first("SELECT trust_domain FROM ca", &[]))?;
        let found = found.map(|row| row.text(0).map(str::to_owned)).transpose()?;
        match (claim, found) {
            (Claim::New, None) => Ok(this),
            (Claim::New, Some(trust_domain)) => Err(StoreError::Taken { database, trust_domain }),
            (Claim::Existing, None) => Err(StoreError::NoCa(database)),
            (Claim::Existing, Some(found)) if found != own => {
                Err(StoreError::OtherTrustDomain { database, found, own })
            }
            (Claim::Existing, Some(_)) => Ok(this),
        }
    }

    /// Makes a database that was opened with [`Claim::New`] that of a trust domain. Of two that do so at a time, one does.
    pub fn take(&mut self, trust_domain: &TrustDomain) -> Result<(), StoreError> {
        const TAKE: &str = "INSERT INTO ca (trust_domain, last_seq) VALUES (?1, 0) ON CONFLICT (one) DO NOTHING";
        if self.sql.dialect() == Dialect::Sqlite {
            return Ok(());
        }
        let own = trust_domain.as_str();
        if self.transaction(|tx| tx.execute(TAKE, &[own.into()]))? == 0 {
            return Err(StoreError::Taken { database: "taken just now".into(), trust_domain: own.to_owned() });
        }
        Ok(())
    }

    /// Opens an SQLite file, which must exist (empty is enough), brings its schema up to date, and makes it durable.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut sqlite = sqlite::Sqlite::open(path)?;
        migrations::run(&mut sqlite)?;
        Ok(Self { sql: Box::new(sqlite) })
    }

    /// Runs `work` in one write transaction: all of it is on the disk when this returns `Ok`, and none of it
    /// happened when it returns `Err`, unless that is [`StoreError::Unknown`]. There is one write transaction at a time,
    /// so what `work` reads cannot change before it writes.
    ///
    /// With a server `work` may run several times, for at most [`PATIENCE`]: when the connection broke, or somebody held
    /// the lock for too long. If it broke during the commit, the log is looked at for the record that this transaction
    /// had appended.
    pub fn transaction<T, E: From<StoreError>>(
        &mut self,
        mut work: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut patience = Patience::new();
        loop {
            let failed = match self.attempt(&mut work, &mut patience)? {
                Attempt::Done(value) => return Ok(value),
                Attempt::Failed(error) => error,
            };
            if !patience.wait(&failed) {
                return Err(failed.into());
            }
        }
    }

    fn attempt<T, E: From<StoreError>>(
        &mut self,
        work: &mut impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
        patience: &mut Patience,
    ) -> Result<Attempt<T>, E> {
        if let Err(error) = self.sql.begin(Mode::Write) {
            return self.sql.passing().map(Attempt::Failed).ok_or_else(|| error.into());
        }
        let mut tx = Transaction::new(&mut *self.sql);
        let result = match work(&mut tx) {
            Ok(value) => tx.finish().map(|()| value).map_err(E::from),
            Err(error) => Err(error),
        };
        let appended = tx.appended;
        if let Some(passing) = self.sql.passing() {
            self.sql.rollback();
            return Ok(Attempt::Failed(passing));
        }
        let value = match result {
            Ok(value) => value,
            Err(error) => {
                self.sql.rollback();
                return Err(error);
            }
        };
        match self.sql.commit() {
            Ok(()) => Ok(Attempt::Done(value)),
            Err(CommitError::NotDone(error)) => match self.sql.passing() {
                Some(passing) => Ok(Attempt::Failed(passing)),
                None => Err(error.into()),
            },
            Err(CommitError::Unknown(error)) => match appended {
                Some(record) if self.is_recorded(record, patience)? => Ok(Attempt::Done(value)),
                Some(_) => Ok(Attempt::Failed(error)),
                None => Err(StoreError::Unknown(error.to_string()).into()),
            },
        }
    }

    /// After a commit without an answer: whether the log has the record. The lock that a write transaction begins with
    /// waits for the one in question to end, however it does; a record's hash is that of no other.
    fn is_recorded(&mut self, (seq, hash): (i64, ChainHash), patience: &mut Patience) -> Result<bool, StoreError> {
        loop {
            let looked = self.sql.begin(Mode::Write).and_then(|()| {
                let found = self.sql.query_first("SELECT hash FROM issued WHERE seq = ?1", &[seq.into()]);
                self.sql.rollback();
                found
            });
            let error = match looked {
                Ok(Some(row)) => return Ok(row.chain_hash(0)? == hash),
                Ok(None) => return Ok(false),
                Err(error) => error,
            };
            if self.sql.passing().is_none() || !patience.wait(&error) {
                return Err(StoreError::Unknown(error.to_string()));
            }
        }
    }

    /// Runs `work` on one state of the database, however long it takes: who records meanwhile is not kept waiting.
    pub fn snapshot<T, E: From<StoreError>>(
        &mut self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut patience = Patience::new();
        while let Err(error) = self.sql.begin(Mode::Read) {
            if self.sql.passing().is_none() || !patience.wait(&error) {
                return Err(error.into());
            }
        }
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

/// How an attempt at a transaction ended.
enum Attempt<T> {
    Done(T),
    /// Nothing happened, and another attempt may succeed.
    Failed(StoreError),
}

/// How long to go on trying, and how long to wait in between.
struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { until: Instant::now() + PATIENCE, pause: Duration::from_millis(20) }
    }

    /// Waits before the next attempt. `false`: there is none.
    fn wait(&mut self, error: &StoreError) -> bool {
        if Instant::now() + self.pause > self.until {
            return false;
        }
        tracing::warn!(%error, "trying the database again in {:?}", self.pause);
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(Duration::from_secs(1));
        true
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
#[path = "../../tests/support/postgres.rs"]
#[allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]
mod server;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests_authorities;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests_chain;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests_postgres;
