//! PostgreSQL, for several replicas of a CA that share one log.
//!
//! A write transaction begins with the lock of the one row of the table `ca`, so that there is one writer at a time, as
//! with SQLite: nothing that it has read can change before it writes, the log is one chain for all replicas, and no
//! transaction ever fails because of another.

mod tls;

use std::{collections::HashMap, error::Error as _};

use bytes::BytesMut;
use postgres::{
    Client, Statement,
    error::SqlState,
    types::{IsNull, ToSql, Type, to_sql_checked},
};

use super::{
    StoreError,
    location::PostgresUrl,
    sql::{Cell, CommitError, Dialect, Mode, Row, Sql, Value},
};

/// Begins every transaction. `SET LOCAL` and not `SET`, so that it also holds behind a pooler, which gives each
/// transaction another session. A commit is answered when it is on the disk; a server that promises more may.
/// A client that has died or hangs keeps the others waiting no longer than these times.
const SETTINGS: &str = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '20s'; \
     SELECT set_config('synchronous_commit', 'on', true) \
     WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')";

/// Of advisory locks this one is ours, for migrations: "outrigge" in ASCII.
const MIGRATION_LOCK: i64 = 0x6f75_7472_6967_6765;

/// A connection, which is made anew when it broke.
pub(super) struct Postgres {
    url: PostgresUrl,
    client: Option<Client>,
    /// Prepared statements of this connection.
    statements: HashMap<String, Statement>,
    /// The server refuses everything until the transaction, or its savepoint, is rolled back.
    aborted: bool,
    /// What went wrong since the last begin, if trying all of it again might help.
    passing: Option<StoreError>,
}

impl Postgres {
    /// Connects.
    pub(super) fn open(url: PostgresUrl) -> Result<Self, StoreError> {
        let mut this = Self { url, client: None, statements: HashMap::new(), aborted: false, passing: None };
        this.connect()?;
        Ok(this)
    }

    fn connect(&mut self) -> Result<(), StoreError> {
        self.close();
        let tls = tls::connector(self.url.proof, &self.url.files)?;
        let config = &self.url.config;
        let client = apart(|| config.connect(tls)).map_err(|e| self.judge(&e))?;
        self.client = Some(client);
        Ok(())
    }

    fn close(&mut self) {
        self.statements.clear();
        if let Some(client) = self.client.take() {
            apart(move || drop(client));
        }
    }

    /// What an error means: for people, and for whether to try again.
    fn judge(&mut self, error: &postgres::Error) -> StoreError {
        let database = self.url.to_string();
        let why = match error.as_db_error() {
            Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
            None => match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            },
        };
        let passing = match error.code() {
            Some(code) => {
                code.code().starts_with("08")
                    || [
                        SqlState::ADMIN_SHUTDOWN,
                        SqlState::CRASH_SHUTDOWN,
                        SqlState::CANNOT_CONNECT_NOW,
                        SqlState::T_R_SERIALIZATION_FAILURE,
                        SqlState::T_R_DEADLOCK_DETECTED,
                        SqlState::LOCK_NOT_AVAILABLE,
                        SqlState::QUERY_CANCELED,
                        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                        SqlState::TOO_MANY_CONNECTIONS,
                        // After a failover this server is the standby.
                        SqlState::READ_ONLY_SQL_TRANSACTION,
                    ]
                    .contains(code)
            }
            // No answer of the server's: the connection. A certificate that is not believed does not change by waiting.
            None => !why.contains("certificate"),
        };
        let error = StoreError::Postgres { database, why };
        if passing {
            self.passing.get_or_insert_with(|| error.clone());
        }
        error
    }

    fn run<T: Send>(
        &mut self,
        work: impl FnOnce(&mut Client) -> Result<T, postgres::Error> + Send,
    ) -> Result<T, StoreError> {
        let Some(client) = &mut self.client else {
            let error = StoreError::Postgres { database: self.url.to_string(), why: "it is not connected".into() };
            self.passing.get_or_insert_with(|| error.clone());
            return Err(error);
        };
        apart(|| work(client)).map_err(|error| {
            self.aborted = true;
            self.judge(&error)
        })
    }

    fn prepared(&mut self, sql: &str) -> Result<Statement, StoreError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.run(|client| client.prepare(&sql.replace('?', "$")))?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    fn damaged(&self) -> StoreError {
        StoreError::Postgres {
            database: self.url.to_string(),
            why: "an error before this ended the transaction".into(),
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.close();
    }
}

/// The client brings a runtime of its own, which neither runs nor ends within another: there it gets a thread.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if tokio::runtime::Handle::try_current().is_err() {
        return work();
    }
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl ToSql for Value<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Int(number) => number.to_sql(ty, out),
            Self::Text(text) => text.to_sql(ty, out),
            Self::Blob(bytes) => bytes.to_sql(ty, out),
        }
    }

    fn accepts(ty: &Type) -> bool {
        [Type::INT8, Type::TEXT, Type::BYTEA].contains(ty)
    }

    to_sql_checked!();
}

fn parameters<'a>(values: &'a [Value<'a>]) -> Vec<&'a (dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

fn cells(row: &postgres::Row) -> Result<Row, StoreError> {
    let cell = |column: usize| -> Result<Cell, postgres::Error> {
        Ok(match *row.columns()[column].type_() {
            Type::INT8 => row.try_get::<_, Option<i64>>(column)?.map_or(Cell::Null, Cell::Int),
            Type::INT4 => row.try_get::<_, Option<i32>>(column)?.map_or(Cell::Null, |n| Cell::Int(n.into())),
            Type::BYTEA => row.try_get::<_, Option<Vec<u8>>>(column)?.map_or(Cell::Null, Cell::Blob),
            _ => row.try_get::<_, Option<String>>(column)?.map_or(Cell::Null, Cell::Text),
        })
    };
    (0..row.len())
        .map(cell)
        .collect::<Result<_, _>>()
        .map(Row)
        .map_err(|e| StoreError::Damaged(format!("a row that cannot be read ({e})")))
}

impl Sql for Postgres {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    fn execute(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, StoreError> {
        let statement = self.prepared(sql)?;
        self.run(|client| client.execute(&statement, &parameters(values)))
    }

    fn query(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        let statement = self.prepared(sql)?;
        let rows = self.run(|client| client.query(&statement, &parameters(values)))?;
        rows.iter().map(cells).collect()
    }

    fn batch(&mut self, sql: &str) -> Result<(), StoreError> {
        self.run(|client| client.batch_execute(sql))
    }

    fn begin(&mut self, mode: Mode) -> Result<(), StoreError> {
        (self.passing, self.aborted) = (None, false);
        if self.client.as_ref().is_none_or(Client::is_closed) {
            self.connect()?;
        }
        self.batch(&match mode {
            Mode::Write => format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {SETTINGS}; \
                 SET LOCAL idle_in_transaction_session_timeout = '5s'; SELECT last_seq FROM ca FOR UPDATE"
            ),
            Mode::Read => format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {SETTINGS}"),
            Mode::Migrate => format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {SETTINGS}; \
                 SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"
            ),
        })
        .inspect_err(|_| self.rollback())
    }

    fn still_open(&self) -> Result<(), StoreError> {
        if self.aborted { Err(self.damaged()) } else { Ok(()) }
    }

    fn undone(&mut self) {
        self.aborted = false;
    }

    fn commit(&mut self) -> Result<(), CommitError> {
        // The server would answer "ROLLBACK" and no error.
        if self.aborted {
            self.rollback();
            return Err(CommitError::NotDone(self.damaged()));
        }
        if self.client.as_ref().is_none_or(Client::is_closed) {
            let closed = self.run(|client| client.batch_execute("COMMIT"));
            return closed.map_err(CommitError::NotDone);
        }
        match self.batch("COMMIT") {
            Ok(()) => Ok(()),
            // The server's own word that it did not. One on its way down may have done it and say no more than goodbye.
            Err(error) if self.passing.is_none() && self.client.as_ref().is_some_and(|client| !client.is_closed()) => {
                self.rollback();
                Err(CommitError::NotDone(error))
            }
            Err(error) => Err(CommitError::Unknown(error)),
        }
    }

    fn rollback(&mut self) {
        let passing = self.passing.take();
        if let Some(client) = &mut self.client
            && (client.is_closed() || apart(|| client.batch_execute("ROLLBACK")).is_err())
        {
            // The server rolls back what a connection that ends has left.
            self.close();
        }
        (self.passing, self.aborted) = (passing, false);
    }

    fn passing(&self) -> Option<StoreError> {
        self.passing.clone()
    }

    fn schema_version(&mut self) -> Result<i64, StoreError> {
        // From the catalogue's rows: what to_regclass has looked up before it remembers, and the migration lock makes nobody
        // forget.
        let sql =
            "SELECT 1::bigint FROM pg_catalog.pg_class WHERE relname = 'schema_version' AND pg_table_is_visible(oid)";
        if self.query_first(sql, &[])?.is_none() {
            return Ok(0);
        }
        self.query_first("SELECT version FROM schema_version", &[])?.map_or(Ok(0), |row| row.int(0))
    }

    fn set_schema_version(&mut self, version: i64) -> Result<(), StoreError> {
        self.batch(&format!(
            "CREATE TABLE IF NOT EXISTS schema_version (one BOOLEAN PRIMARY KEY DEFAULT true CHECK (one), version BIGINT NOT NULL);
             INSERT INTO schema_version (version) VALUES ({version})
                 ON CONFLICT (one) DO UPDATE SET version = excluded.version"
        ))
    }

    /// Whether the server keeps what it has confirmed. Its pages it checks itself, as it reads them.
    fn integrity(&mut self) -> Result<Vec<String>, StoreError> {
        self.begin(Mode::Read)?;
        let off = self.query(
            "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY name",
            &[],
        );
        self.rollback();
        off?.iter().map(|row| Ok(format!("the server runs with {} = off", row.text(0)?))).collect()
    }
}
