//! The issuance log: every certificate that this CA has signed, written before the certificate leaves.

use rusqlite::{Connection, OptionalExtension, Row, params};
use time::OffsetDateTime;

use super::{StoreError, names_from_json, names_to_json, time_from};
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
            Self::Server => "server",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        [Self::Operator, Self::Token, Self::Certificate, Self::Server]
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

/// Adds a record. Durable when the transaction around it has been committed.
pub fn append(connection: &Connection, entry: &LogEntry) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO issued (serial, id, dns_names, not_before, not_after, credential, credential_ref, certificate,
         issued_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
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
    ])?;
    Ok(())
}

const COLUMNS: &str =
    "serial, id, dns_names, not_before, not_after, credential, credential_ref, certificate, issued_at";

/// The record of one certificate.
pub fn by_serial(connection: &Connection, serial: &str) -> Result<Option<LogEntry>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM issued WHERE serial = ?1"))?;
    statement.query_row([serial], |row| Ok(entry(row))).optional()?.transpose()
}

/// Visits every record, oldest first, without holding them all.
pub fn for_each<E: From<StoreError>>(
    connection: &Connection,
    mut visit: impl FnMut(LogEntry) -> Result<(), E>,
) -> Result<(), E> {
    let mut statement =
        connection.prepare(&format!("SELECT {COLUMNS} FROM issued ORDER BY seq")).map_err(StoreError::from)?;
    let mut rows = statement.query([]).map_err(StoreError::from)?;
    while let Some(row) = rows.next().map_err(StoreError::from)? {
        visit(entry(row)?)?;
    }
    Ok(())
}

fn entry(row: &Row<'_>) -> Result<LogEntry, StoreError> {
    let id: Option<String> = row.get(1)?;
    let id = match id {
        Some(text) => Some(SpiffeId::parse(&text).map_err(|e| StoreError::Damaged(format!("the id {text}: {e}")))?),
        None => None,
    };
    Ok(LogEntry {
        serial: row.get(0)?,
        id,
        dns_names: names_from_json(&row.get::<_, String>(2)?)?,
        not_before: time_from(row.get(3)?)?,
        not_after: time_from(row.get(4)?)?,
        credential: CredentialKind::parse(&row.get::<_, String>(5)?)?,
        credential_ref: row.get(6)?,
        certificate: row.get(7)?,
        issued_at: time_from(row.get(8)?)?,
    })
}
