//! How the schema came to be, step by step, in both dialects; the database counts the steps that it has seen.

mod authorities;

use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    StoreError,
    chain::ChainHash,
    keys, log, names_to_json,
    sql::{CommitError, Dialect, Mode, Sql},
};

/// What brings the schema from one version to the next.
struct Step {
    sqlite: Work,
    postgres: Work,
}

enum Work {
    Sql(&'static str),
    Code(fn(&mut dyn Sql) -> Result<(), StoreError>),
}

/// Never edit one that was released: append.
const STEPS: &[Step] = &[
    Step {
        sqlite: Work::Sql(
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
        // PostgreSQL came later.
        postgres: Work::Sql(""),
    },
    Step { sqlite: Work::Code(chain_the_log), postgres: Work::Sql(POSTGRES_TOKENS_AND_LOG) },
    Step { sqlite: Work::Sql(authorities::SQLITE), postgres: Work::Sql(authorities::POSTGRES) },
    Step { sqlite: Work::Sql(BY_CREDENTIAL), postgres: Work::Sql(BY_CREDENTIAL) },
    Step { sqlite: Work::Code(know_the_keys), postgres: Work::Code(know_the_keys) },
];

/// What became of a token, or of a certificate.
const BY_CREDENTIAL: &str = "CREATE INDEX issued_by_credential ON issued (credential_ref)";

/// Whose the keys of certificates are, and what the enrolment servers call themselves.
const KEYS_SQLITE: &str = "
    CREATE TABLE certified_key (
        hash      BLOB PRIMARY KEY CHECK (length(hash) = 32), -- SHA-256 of the subjectPublicKeyInfo
        id        TEXT NOT NULL,           -- SPIFFE id of the certificates for it
        not_after INTEGER NOT NULL         -- of the last of them
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX certified_key_by_end ON certified_key (not_after);
    CREATE INDEX issued_to_servers ON issued (not_after) WHERE id IS NULL;
";
const KEYS_POSTGRES: &str = "
    CREATE TABLE certified_key (
        hash      BYTEA PRIMARY KEY CHECK (octet_length(hash) = 32), -- SHA-256 of the subjectPublicKeyInfo
        id        TEXT NOT NULL,           -- SPIFFE id of the certificates for it
        not_after BIGINT NOT NULL          -- of the last of them
    );
    CREATE INDEX certified_key_by_end ON certified_key (not_after);
    CREATE INDEX issued_to_servers ON issued (not_after) WHERE id IS NULL;
";

const POSTGRES_TOKENS_AND_LOG: &str = "
    CREATE TABLE token (
        hash       BYTEA PRIMARY KEY CHECK (octet_length(hash) = 32), -- SHA-256 of the token
        rowid      BIGINT GENERATED ALWAYS AS IDENTITY, -- in which order they were made, as SQLite has it of its own
        id         TEXT NOT NULL,
        dns_names  TEXT NOT NULL,           -- JSON array
        created_at BIGINT NOT NULL,         -- all times: seconds since 1970
        expires_at BIGINT NOT NULL,
        used_at    BIGINT,
        revoked_at BIGINT
    );
    CREATE TABLE issued (
        seq            BIGINT PRIMARY KEY,
        serial         TEXT NOT NULL UNIQUE, -- lower-case hex
        id             TEXT,                 -- NULL: the enrolment server's own certificate
        dns_names      TEXT NOT NULL,        -- JSON array
        not_before     BIGINT NOT NULL,
        not_after      BIGINT NOT NULL,
        credential     TEXT NOT NULL,        -- operator, token, certificate, server
        credential_ref TEXT,                 -- hash of the token, serial of the certificate renewed
        certificate    BYTEA NOT NULL,       -- DER
        issued_at      BIGINT NOT NULL,
        hash           BYTEA NOT NULL CHECK (octet_length(hash) = 32) -- over this record and the hash before
    );
    CREATE TABLE log_anchor (
        seq       BIGINT PRIMARY KEY,        -- of the last record that was pruned
        hash      BYTEA NOT NULL CHECK (octet_length(hash) = 32), -- its hash, where the chain now begins
        pruned    BIGINT NOT NULL,           -- how many records went
        pruned_at BIGINT NOT NULL
    );
    CREATE TABLE ca (
        one          BOOLEAN PRIMARY KEY DEFAULT true CHECK (one), -- one row, whose lock every writer takes first
        trust_domain TEXT NOT NULL,
        last_seq     BIGINT NOT NULL         -- of the newest record that was ever written
    );
    CREATE FUNCTION issued_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'the issuance log is append-only'; END $$;
    CREATE TRIGGER issued_is_append_only BEFORE UPDATE ON issued
        FOR EACH ROW EXECUTE FUNCTION issued_is_append_only();
    CREATE TRIGGER issued_is_not_truncated BEFORE TRUNCATE ON issued
        FOR EACH STATEMENT EXECUTE FUNCTION issued_is_append_only();
    CREATE FUNCTION issued_is_pruned_behind_an_anchor() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF OLD.seq > coalesce((SELECT max(seq) FROM log_anchor), 0) THEN
            RAISE EXCEPTION 'the issuance log is append-only';
        END IF;
        RETURN OLD;
    END $$;
    CREATE TRIGGER issued_is_pruned_behind_an_anchor BEFORE DELETE ON issued
        FOR EACH ROW EXECUTE FUNCTION issued_is_pruned_behind_an_anchor();
";

/// Whether the schema is the one that this program knows; nothing is changed.
pub(super) fn expect_current(sql: &mut dyn Sql) -> Result<(), StoreError> {
    match look(sql)? {
        found if found == STEPS.len() => Ok(()),
        found => Err(StoreError::Older { found, known: STEPS.len() }),
    }
}

/// Brings the schema up to date, in one transaction. Where it is, nobody is kept from writing.
pub(super) fn run(sql: &mut dyn Sql) -> Result<(), StoreError> {
    if look(sql)? == STEPS.len() {
        return Ok(());
    }
    sql.begin(Mode::Migrate)?;
    if let Err(error) = steps(sql) {
        sql.rollback();
        return Err(error);
    }
    sql.commit().map_err(CommitError::into_inner)
}

fn look(sql: &mut dyn Sql) -> Result<usize, StoreError> {
    sql.begin(Mode::Read)?;
    let found = found(sql);
    sql.rollback();
    found
}

/// The version of the schema, at most the newest that is known.
fn found(sql: &mut dyn Sql) -> Result<usize, StoreError> {
    let found = sql.schema_version()?;
    let known = STEPS.len();
    let found = usize::try_from(found).map_err(|_| StoreError::Damaged(format!("schema version {found}")))?;
    if found > known { Err(StoreError::Newer { found, known }) } else { Ok(found) }
}

fn steps(sql: &mut dyn Sql) -> Result<(), StoreError> {
    let (found, known) = (found(sql)?, STEPS.len());
    for step in &STEPS[found..] {
        let work = match sql.dialect() {
            Dialect::Sqlite => &step.sqlite,
            Dialect::Postgres => &step.postgres,
        };
        match work {
            Work::Sql(text) => sql.batch(text)?,
            Work::Code(work) => work(sql)?,
        }
    }
    sql.set_schema_version(known as i64)
}

/// Gives each record its place in the hash chain, lets tokens be revoked, and lets nothing be deleted but what an
/// anchor stands for.
///
/// The table is made anew because its new column has no default: a server of the version before, still running,
/// then fails to record, and so to issue, instead of writing records outside the chain or taking revoked tokens.
fn chain_the_log(sql: &mut dyn Sql) -> Result<(), StoreError> {
    sql.batch(
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
    let mut last = i64::MIN;
    let page = format!("SELECT seq, {} FROM issued_before WHERE seq > ?1 ORDER BY seq LIMIT 500", log::COLUMNS);
    loop {
        let rows = sql.query(&page, &[last.into()])?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            let entry = log::entry(row, 1)?;
            last = row.int(0)?;
            before = before.of_next(last, &entry);
            sql.execute(log::INSERT, &log::values(&entry, &names_to_json(&entry.dns_names), last, &before))?;
        }
    }
    sql.batch(
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

/// Makes the table of keys, and enters those of the certificates that are good now.
fn know_the_keys(sql: &mut dyn Sql) -> Result<(), StoreError> {
    sql.batch(match sql.dialect() {
        Dialect::Sqlite => KEYS_SQLITE,
        Dialect::Postgres => KEYS_POSTGRES,
    })?;
    let page = "SELECT seq, id, not_after, certificate FROM issued
                WHERE id IS NOT NULL AND not_after >= ?1 AND seq > ?2 ORDER BY seq LIMIT 500";
    let (now, mut last) = (OffsetDateTime::now_utc(), i64::MIN);
    loop {
        let rows = sql.query(page, &[now.into(), last.into()])?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in &rows {
            last = row.int(0)?;
            // Of two identities with one key, which were possible before, the later counts.
            if let Ok((_, certificate)) = X509Certificate::from_der(row.blob(3)?) {
                let hash: [u8; 32] = Sha256::digest(certificate.public_key().raw).into();
                sql.execute(keys::HOLD, &[(&hash).into(), row.text(1)?.into(), row.int(2)?.into()])?;
            }
        }
    }
}
