//! The issuance log: every certificate that this CA has signed, written before the certificate leaves.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use time::OffsetDateTime;

use super::{ChainHash, StoreError, chain, names_from_json, names_to_json, time_from};
use outrigger_identity::SpiffeId;

/// By what right a certificate was issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialKind {
    /// Somebody who can read the CA's key ran `outrigger-ca issue`.
    Operator,
    /// A join token, spent by it.
    Token,
    /// The certificate that it renews.
    Certificate,
    /// A Kubernetes service account that the API server vouched for.
    Kubernetes,
    /// A Kubernetes service account that the cluster's signing key vouched for.
    Oidc,
    /// The enrolment server made it for itself.
    Server,
}

impl CredentialKind {
    /// As in the database and in `log list`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::Kubernetes => "kubernetes",
            Self::Oidc => "oidc",
            Self::Server => "server",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        [Self::Operator, Self::Token, Self::Certificate, Self::Kubernetes, Self::Oidc, Self::Server]
            .into_iter()
            .find(|k| k.as_str() == text)
            .ok_or_else(|| StoreError::Damaged(format!("the unknown credential \"{text}\"")))
    }
}

/// One record.
#[derive(Debug, Clone)]
pub struct LogEntry {
    /// Lower-case hex.
    pub serial: String,
    /// Whose certificate; `None` for the enrolment server's own.
    pub id: Option<SpiffeId>,
    /// The DNS names in it.
    pub dns_names: Vec<String>,
    /// First second of validity.
    pub not_before: OffsetDateTime,
    /// Last second of validity.
    pub not_after: OffsetDateTime,
    /// By what right.
    pub credential: CredentialKind,
    /// The token's hash or the renewed certificate's serial.
    pub credential_ref: Option<String>,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// When it was signed.
    pub issued_at: OffsetDateTime,
}

/// A record and its place in the chain.
#[derive(Debug, Clone)]
pub struct LogRecord {
    /// Counted from 1.
    pub seq: i64,
    /// Over this record and the hash of the one before.
    pub hash: ChainHash,
    /// What was issued.
    pub entry: LogEntry,
}

/// Adds a record behind the newest. Durable when the transaction around it has been committed.
pub fn append(tx: &Transaction<'_>, entry: &LogEntry) -> Result<(), StoreError> {
    let newest = tx
        .prepare_cached("SELECT hash FROM issued ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| row.get(0).map(ChainHash))
        .optional()?;
    let before = match newest {
        Some(hash) => hash,
        None => chain::anchor(tx)?.map_or(ChainHash::GENESIS, |(_, hash)| hash),
    };
    insert(tx, chain::last_written(tx)? + 1, &before, entry)?;
    Ok(())
}

pub(super) fn insert(
    connection: &Connection,
    seq: i64,
    before: &ChainHash,
    entry: &LogEntry,
) -> Result<ChainHash, StoreError> {
    let hash = before.of_next(seq, entry);
    let mut statement = connection.prepare_cached(
        "INSERT INTO issued (serial, id, dns_names, not_before, not_after, credential, credential_ref, certificate,
         issued_at, seq, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    statement.execute(params![
        entry.serial,
        entry.id.as_ref().map(SpiffeId::as_str),
        names_to_json(&entry.dns_names),
        entry.not_before.unix_timestamp(),
        entry.not_after.unix_timestamp(),
        entry.credential.as_str(),
        entry.credential_ref,
        entry.certificate,
        entry.issued_at.unix_timestamp(),
        seq,
        hash.0,
    ])?;
    Ok(hash)
}

pub(super) const COLUMNS: &str =
    "serial, id, dns_names, not_before, not_after, credential, credential_ref, certificate, issued_at";

/// The record of one certificate.
pub fn by_serial(connection: &Connection, serial: &str) -> Result<Option<LogEntry>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM issued WHERE serial = ?1"))?;
    statement.query_row([serial], |row| Ok(entry(row, 0))).optional()?.transpose()
}

/// Visits every record, oldest first, without holding them all.
pub fn for_each<E: From<StoreError>>(
    connection: &Connection,
    mut visit: impl FnMut(LogRecord) -> Result<(), E>,
) -> Result<(), E> {
    let mut statement = connection
        .prepare(&format!("SELECT seq, hash, {COLUMNS} FROM issued ORDER BY seq"))
        .map_err(StoreError::from)?;
    let mut rows = statement.query([]).map_err(StoreError::from)?;
    while let Some(row) = rows.next().map_err(StoreError::from)? {
        visit(record(row)?)?;
    }
    Ok(())
}

/// Visits the record of every certificate that is still good at `now`, oldest first.
pub fn for_each_unexpired<E: From<StoreError>>(
    connection: &Connection,
    now: OffsetDateTime,
    mut visit: impl FnMut(LogEntry) -> Result<(), E>,
) -> Result<(), E> {
    let mut statement = connection
        .prepare(&format!("SELECT {COLUMNS} FROM issued WHERE not_after >= ?1 ORDER BY seq"))
        .map_err(StoreError::from)?;
    let mut rows = statement.query([now.unix_timestamp()]).map_err(StoreError::from)?;
    while let Some(row) = rows.next().map_err(StoreError::from)? {
        visit(entry(row, 0)?)?;
    }
    Ok(())
}

fn record(row: &Row<'_>) -> Result<LogRecord, StoreError> {
    Ok(LogRecord { seq: row.get(0)?, hash: ChainHash(row.get(1)?), entry: entry(row, 2)? })
}

/// Reads [`COLUMNS`] that begin at column `at`.
pub(super) fn entry(row: &Row<'_>, at: usize) -> Result<LogEntry, StoreError> {
    let id: Option<String> = row.get(at + 1)?;
    let id = match id {
        Some(text) => Some(SpiffeId::parse(&text).map_err(|e| StoreError::Damaged(format!("the id {text}: {e}")))?),
        None => None,
    };
    Ok(LogEntry {
        serial: row.get(at)?,
        id,
        dns_names: names_from_json(&row.get::<_, String>(at + 2)?)?,
        not_before: time_from(row.get(at + 3)?)?,
        not_after: time_from(row.get(at + 4)?)?,
        credential: CredentialKind::parse(&row.get::<_, String>(at + 5)?)?,
        credential_ref: row.get(at + 6)?,
        certificate: row.get(at + 7)?,
        issued_at: time_from(row.get(at + 8)?)?,
    })
}
