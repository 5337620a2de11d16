//! A transaction: what the CA does with its records, whatever database holds them.

use super::{
    ChainHash, StoreError,
    sql::{Dialect, Row, Sql, Value},
};

/// One transaction. Its methods stand beside the tables that they are for: the issuance log (`log.rs`), the chain
/// (`chain.rs`), tokens (`tokens.rs`), forgetting (`prune.rs`).
///
/// To add a table: append a step to `migrations.rs`, in both dialects, and write its methods as an
/// `impl Transaction<'_>` in a file of its own, with `execute` and `query`, once, in the SQL that both databases
/// understand. Columns are `INTEGER`/`BIGINT` (also for times), `TEXT` and `BLOB`/`BYTEA`; parameters are `?1`, `?2` ….
/// Where the dialects cannot agree, ask `dialect`.
pub struct Transaction<'a> {
    sql: &'a mut dyn Sql,
    /// The newest record that this transaction has appended.
    pub(super) appended: Option<(i64, ChainHash)>,
    /// What the next record follows, once it has been read: nobody else writes meanwhile.
    pub(super) head: Option<(i64, ChainHash)>,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(sql: &'a mut dyn Sql) -> Self {
        Self { sql, appended: None, head: None }
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.sql.dialect()
    }

    pub(super) fn execute(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, StoreError> {
        self.sql.execute(sql, values)
    }

    pub(super) fn query(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        self.sql.query(sql, values)
    }

    pub(super) fn query_first(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Option<Row>, StoreError> {
        self.sql.query_first(sql, values)
    }

    /// Runs `work` so that what it did is undone if it fails, and nothing else of this transaction is.
    pub fn part<T, E: From<StoreError>>(
        &mut self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let (appended, head) = (self.appended, self.head);
        self.sql.still_open()?;
        self.sql.batch("SAVEPOINT part")?;
        let result = work(self);
        match result {
            Ok(value) => {
                self.sql.batch("RELEASE SAVEPOINT part")?;
                Ok(value)
            }
            Err(error) => {
                (self.appended, self.head) = (appended, head);
                self.sql.batch("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part")?;
                self.sql.undone();
                Err(error)
            }
        }
    }
}
