//! How the schema came to be, step by step; `user_version` counts the steps that a file has seen.

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::{StoreError, chain::ChainHash, log};

enum Step {
    Sql(&'static str),
    Code(fn(&Transaction<'_>) -> Result<(), StoreError>),
}

/// Each entry brings the schema from its index to the next. Never edit one that was released: append.
const STEPS: &[Step] = &[
    Step::Sql(
        "
    CREATE TABLE token (
        hash       BLOB PRIMARY KEY,        -- SHA-256 of the token
        id         TEXT NOT NULL,
        dns_names  TEXT NOT NULL,           -- JSON array
        created_at INTEGER NOT NULL,        -- all times: seconds since 1970
        expires_at INTEGER NOT NULL,
        used_at    INTEGER
    ) STRICT;
    CREATE TABLE issued (
        seq            INTEGER PRIMARY KEY AUTOINCREMENT,
        serial         TEXT NOT NULL UNIQUE, -- lower-case hex
        id             TEXT,                 -- NULL: the enrolment server's own certificate
        dns_names      TEXT NOT NULL,
        not_before     INTEGER NOT NULL,
        not_after      INTEGER NOT NULL,
        credential     TEXT NOT NULL,        -- operator, token, certificate, server
        credential_ref TEXT,                 -- hash of the token, serial of the certificate renewed
        certificate    BLOB NOT NULL,        -- DER
        issued_at      INTEGER NOT NULL
    ) STRICT;
    CREATE TRIGGER issued_is_append_only BEFORE UPDATE ON issued
        BEGIN SELECT RAISE(ABORT, 'the issuance log is append-only'); END;
",
    ),
    Step::Code(chain_the_log),
    Step::Sql(
        "
    CREATE TABLE authority (
        position    INTEGER PRIMARY KEY AUTOINCREMENT,
        fingerprint TEXT NOT NULL UNIQUE,    -- SHA-256 of the certificate, lower-case hex
        kind        TEXT NOT NULL,           -- root, intermediate
        state       TEXT NOT NULL,           -- prepared, active, old, tainted, revoked
        issuer      TEXT REFERENCES authority (fingerprint), -- NULL: a root
        certificate BLOB NOT NULL,           -- DER
        created_at  INTEGER NOT NULL,
        changed_at  INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE bundle (
        one          INTEGER PRIMARY KEY CHECK (one = 1),
        sequence     INTEGER NOT NULL,       -- changes of the roots
        version      INTEGER NOT NULL,       -- changes that a running server takes up
        refresh_hint INTEGER NOT NULL        -- seconds
    ) STRICT;
    INSERT INTO bundle (one, sequence, version, refresh_hint) VALUES (1, 0, 0, 60);
    CREATE TABLE revocation (
        seq        INTEGER PRIMARY KEY AUTOINCREMENT,
        serial     TEXT NOT NULL UNIQUE,     -- of the certificate, lower-case hex
        issuer     TEXT NOT NULL REFERENCES authority (fingerprint),
        reason     TEXT NOT NULL,            -- as in RFC 5280
        not_after  INTEGER NOT NULL,
        revoked_at INTEGER NOT NULL,
        hash       BLOB NOT NULL CHECK (length(hash) = 32) -- over this row and the hash before
    ) STRICT;
    CREATE INDEX revocation_by_issuer ON revocation (issuer, not_after);
    CREATE TRIGGER revocation_is_not_changed BEFORE UPDATE ON revocation
        BEGIN SELECT RAISE(ABORT, 'revocations are append-only'); END;
    CREATE TRIGGER revocation_is_not_removed BEFORE DELETE ON revocation
        BEGIN SELECT RAISE(ABORT, 'revocations are append-only'); END;
    CREATE TABLE blocked_id (
        id         TEXT PRIMARY KEY,         -- SPIFFE id
        blocked_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE crl (
        issuer      TEXT PRIMARY KEY REFERENCES authority (fingerprint),
        number      INTEGER NOT NULL,
        newest      INTEGER NOT NULL,        -- the newest revocation that it takes account of
        made_at     INTEGER NOT NULL,
        next_update INTEGER NOT NULL,
        der         BLOB NOT NULL
    ) STRICT;
    CREATE INDEX issued_by_end ON issued (not_after);
    CREATE INDEX issued_by_id ON issued (id);
",
    ),
];

/// Brings the schema up to date, in one transaction.
pub(super) fn run(connection: &mut Connection) -> Result<(), StoreError> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = STEPS.len();
    let found = usize::try_from(found).map_err(|_| StoreError::Damaged(format!("schema version {found}")))?;
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    for step in &STEPS[found..] {
        match step {
            Step::Sql(text) => tx.execute_batch(text)?,
            Step::Code(work) => work(&tx)?,
        }
    }
    tx.pragma_update(None, "user_version", known as i64)?;
    tx.commit()?;
    Ok(())
}

/// Gives each record its place in the hash chain, lets tokens be revoked, and lets nothing be deleted but what an
/// anchor stands for.
///
/// The table is made anew because its new column has no default: a server of the version before, still running,
/// then fails to record, and so to issue, instead of writing records outside the chain or taking revoked tokens.
fn chain_the_log(tx: &Transaction<'_>) -> Result<(), StoreError> {
    tx.execute_batch(
        "
    DROP TRIGGER issued_is_append_only;
    ALTER TABLE issued RENAME TO issued_before;
    CREATE TABLE issued (
        seq            INTEGER PRIMARY KEY AUTOINCREMENT,
        serial         TEXT NOT NULL UNIQUE, -- lower-case hex
        id             TEXT,                 -- NULL: the enrolment server's own certificate
        dns_names      TEXT NOT NULL,        -- JSON array
        not_before     INTEGER NOT NULL,
        not_after      INTEGER NOT NULL,
        credential     TEXT NOT NULL,        -- operator, token, certificate, server
        credential_ref TEXT,                 -- hash of the token, serial of the certificate renewed
        certificate    BLOB NOT NULL,        -- DER
        issued_at      INTEGER NOT NULL,
        hash           BLOB NOT NULL CHECK (length(hash) = 32) -- over this record and the hash before
    ) STRICT;
    CREATE TABLE log_anchor (
        seq       INTEGER PRIMARY KEY,       -- of the last record that was pruned
        hash      BLOB NOT NULL CHECK (length(hash) = 32), -- its hash, where the chain now begins
        pruned    INTEGER NOT NULL,          -- how many records went
        pruned_at INTEGER NOT NULL
    ) STRICT;
    ALTER TABLE token ADD COLUMN revoked_at INTEGER;
",
    )?;
    let mut before = ChainHash::GENESIS;
    let mut statement = tx.prepare(&format!("SELECT seq, {} FROM issued_before ORDER BY seq", log::COLUMNS))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (seq, entry) = (row.get(0)?, log::entry(row, 1)?);
        before = log::insert(tx, seq, &before, &entry)?;
    }
    drop(rows);
    drop(statement);
    tx.execute_batch(
        "
    DROP TABLE issued_before;
    CREATE TRIGGER issued_is_append_only BEFORE UPDATE ON issued
        BEGIN SELECT RAISE(ABORT, 'the issuance log is append-only'); END;
    CREATE TRIGGER issued_is_pruned_behind_an_anchor BEFORE DELETE ON issued
        WHEN OLD.seq > coalesce((SELECT max(seq) FROM log_anchor), 0)
        BEGIN SELECT RAISE(ABORT, 'the issuance log is append-only'); END;
",
    )?;
    Ok(())
}
