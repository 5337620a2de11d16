//! SQLite, embedded: one file, WAL with `synchronous=FULL`. SQLite's own locking lets the command line work beside a
//! running server.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, params_from_iter, types::ValueRef};

use super::{
    StoreError,
    sql::{Cell, CommitError, Dialect, Mode, Row, Sql, Value},
};

/// How long one process waits for another's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// An open file.
pub(super) struct Sqlite(Connection);

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error.to_string())
    }
}

impl Sqlite {
    /// Opens the file, which must exist (empty is enough), and makes it durable.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        // Not created when missing: a CA that has lost its log must say so, not begin a new one in silence.
        let connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::NoWal(mode));
        }
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(Self(connection))
    }
}

impl rusqlite::ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(rusqlite::types::ToSqlOutput::Borrowed(match *self {
            Value::Null => ValueRef::Null,
            Value::Int(number) => ValueRef::Integer(number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

fn cell(value: ValueRef<'_>) -> Result<Cell, StoreError> {
    Ok(match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(number) => Cell::Int(number),
        ValueRef::Text(text) => Cell::Text(
            String::from_utf8(text.to_vec()).map_err(|_| StoreError::Damaged("a text that is not UTF-8".into()))?,
        ),
        ValueRef::Blob(bytes) => Cell::Blob(bytes.to_vec()),
        ValueRef::Real(number) => return Err(StoreError::Damaged(format!("the fraction {number}"))),
    })
}

impl Sql for Sqlite {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    fn execute(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, StoreError> {
        Ok(self.0.prepare_cached(sql)?.execute(params_from_iter(values))? as u64)
    }

    fn query(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        let mut statement = self.0.prepare_cached(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query(params_from_iter(values))?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let cells = (0..columns).map(|column| cell(row.get_ref(column)?)).collect::<Result<_, StoreError>>()?;
            all.push(Row(cells));
        }
        Ok(all)
    }

    fn batch(&mut self, sql: &str) -> Result<(), StoreError> {
        Ok(self.0.execute_batch(sql)?)
    }

    fn begin(&mut self, mode: Mode) -> Result<(), StoreError> {
        // IMMEDIATE takes the write lock first.
        self.batch(match mode {
            Mode::Write | Mode::Migrate => "BEGIN IMMEDIATE",
            Mode::Read => "BEGIN DEFERRED",
        })
    }

    fn still_open(&self) -> Result<(), StoreError> {
        // A full disk, for one, ends the whole transaction.
        if self.0.is_autocommit() {
            return Err(StoreError::Sqlite("it has given up the transaction".into()));
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), CommitError> {
        self.batch("COMMIT").map_err(|error| {
            self.rollback();
            CommitError::NotDone(error)
        })
    }

    fn rollback(&mut self) {
        // SQLite has rolled back by itself after some errors.
        if !self.0.is_autocommit()
            && let Err(error) = self.batch("ROLLBACK")
        {
            tracing::warn!(%error, "a transaction could not be rolled back");
        }
    }

    fn schema_version(&mut self) -> Result<i64, StoreError> {
        self.query_first("PRAGMA user_version", &[])?.map_or(Ok(0), |row| row.int(0))
    }

    fn set_schema_version(&mut self, version: i64) -> Result<(), StoreError> {
        self.batch(&format!("PRAGMA user_version = {version}"))
    }

    fn integrity(&mut self) -> Result<Vec<String>, StoreError> {
        let lines = self.query("PRAGMA quick_check", &[])?;
        let lines = lines.iter().map(|row| row.text(0).map(str::to_owned)).collect::<Result<Vec<_>, _>>()?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }
}
