//! What a database must be able to do for the CA, and the values that go in and out. Everything above this file is
//! written once, in the SQL that SQLite and PostgreSQL have in common, with parameters as `?1`; what differs is asked of
//! [`Dialect`].

use super::{StoreError, chain::ChainHash, time_from};

/// Which SQL the other side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// A parameter.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Null,
    Int(i64),
    Text(&'a str),
    Blob(&'a [u8]),
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<time::OffsetDateTime> for Value<'_> {
    /// Every time is stored as whole seconds since 1970.
    fn from(at: time::OffsetDateTime) -> Self {
        Self::Int(at.unix_timestamp())
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Blob(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Value<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::Blob(bytes)
    }
}

impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    Null,
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// One row of an answer. A column of another kind than the one asked for is damage, never a default.
#[derive(Debug)]
pub(super) struct Row(pub(super) Vec<Cell>);

impl Row {
    fn wrong<T>(&self, column: usize, wanted: &str) -> Result<T, StoreError> {
        Err(StoreError::Damaged(format!("something else than {wanted} in column {} of a row", column + 1)))
    }

    pub(super) fn int(&self, column: usize) -> Result<i64, StoreError> {
        match self.0.get(column) {
            Some(Cell::Int(number)) => Ok(*number),
            _ => self.wrong(column, "a number"),
        }
    }

    pub(super) fn text(&self, column: usize) -> Result<&str, StoreError> {
        match self.0.get(column) {
            Some(Cell::Text(text)) => Ok(text),
            _ => self.wrong(column, "a text"),
        }
    }

    pub(super) fn blob(&self, column: usize) -> Result<&[u8], StoreError> {
        match self.0.get(column) {
            Some(Cell::Blob(bytes)) => Ok(bytes),
            _ => self.wrong(column, "bytes"),
        }
    }

    pub(super) fn is_null(&self, column: usize) -> bool {
        self.0.get(column) == Some(&Cell::Null)
    }

    pub(super) fn optional_text(&self, column: usize) -> Result<Option<&str>, StoreError> {
        if self.is_null(column) { Ok(None) } else { self.text(column).map(Some) }
    }

    pub(super) fn time(&self, column: usize) -> Result<time::OffsetDateTime, StoreError> {
        time_from(self.int(column)?)
    }

    pub(super) fn optional_time(&self, column: usize) -> Result<Option<time::OffsetDateTime>, StoreError> {
        if self.is_null(column) { Ok(None) } else { self.time(column).map(Some) }
    }

    /// A SHA-256.
    pub(super) fn digest(&self, column: usize) -> Result<[u8; 32], StoreError> {
        match self.blob(column)?.try_into() {
            Ok(digest) => Ok(digest),
            Err(_) => self.wrong(column, "32 bytes"),
        }
    }

    pub(super) fn chain_hash(&self, column: usize) -> Result<ChainHash, StoreError> {
        self.digest(column).map(ChainHash)
    }
}

/// What becomes of a transaction that does not simply succeed.
#[derive(Debug)]
pub(super) enum CommitError {
    /// Nothing of it happened.
    NotDone(StoreError),
    /// The connection broke before the answer came: it may have happened or not.
    Unknown(StoreError),
}

impl CommitError {
    pub(super) fn into_inner(self) -> StoreError {
        match self {
            Self::NotDone(error) | Self::Unknown(error) => error,
        }
    }
}

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// One writer at a time, from the first statement on: what it reads cannot change before it writes.
    Write,
    /// One state of the database, however long it takes; writers are not kept waiting.
    Read,
    /// One migration at a time, before there are tables.
    Migrate,
}

/// A connection to a database.
pub(super) trait Sql: Send {
    fn dialect(&self) -> Dialect;

    /// Runs one statement; gives back how many rows it changed.
    fn execute(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, StoreError>;

    /// Runs one query and fetches every row. What can be long is read page by page.
    fn query(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError>;

    /// Runs several statements without parameters.
    fn batch(&mut self, sql: &str) -> Result<(), StoreError>;

    /// Begins a transaction, on a new connection if the last one broke.
    fn begin(&mut self, mode: Mode) -> Result<(), StoreError>;

    /// An error if the database has ended the transaction by itself, so that a savepoint does not begin another.
    fn still_open(&self) -> Result<(), StoreError>;

    /// What failed since the savepoint has been undone.
    fn undone(&mut self) {}

    fn commit(&mut self) -> Result<(), CommitError>;

    /// Gives the transaction up. Whatever comes of it, nothing of it stays.
    fn rollback(&mut self);

    /// What has failed since [`Sql::begin`], or in it, and would perhaps succeed if all of it were tried again: the
    /// connection broke, or another transaction was in the way.
    fn passing(&self) -> Option<StoreError> {
        None
    }

    /// How many steps of `migrations.rs` this database has seen.
    fn schema_version(&mut self) -> Result<i64, StoreError>;

    fn set_schema_version(&mut self, version: i64) -> Result<(), StoreError>;

    /// What the database itself finds wrong with what it holds; each line is one thing.
    fn integrity(&mut self) -> Result<Vec<String>, StoreError>;

    /// The first row.
    fn query_first(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, values)?.into_iter().next())
    }
}
