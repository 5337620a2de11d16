//! The issuance log: every certificate that this CA has signed, written before the certificate leaves.

use time::OffsetDateTime;

use super::{
    ChainHash, StoreError, Transaction, names_from_json, names_to_json,
    sql::{Dialect, Row, Value},
};
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

/// Rows that are fetched at a time.
const PAGE: usize = 500;

impl Transaction<'_> {
    /// Adds a record behind the newest. Durable when the transaction around it has been committed.
    pub fn append(&mut self, entry: &LogEntry) -> Result<(), StoreError> {
        let (last, before) = match self.head {
            Some(head) => head,
            None => self.read_head()?,
        };
        let seq = last + 1;
        let hash = before.of_next(seq, entry);
        self.execute(INSERT, &values(entry, &names_to_json(&entry.dns_names), seq, &hash))?;
        if self.dialect() == Dialect::Postgres {
            self.execute("UPDATE ca SET last_seq = ?1", &[seq.into()])?;
        }
        self.appended = Some((seq, hash));
        self.head = self.appended;
        Ok(())
    }

    /// The record of one certificate.
    pub fn by_serial(&mut self, serial: &str) -> Result<Option<LogEntry>, StoreError> {
        let row = self.query_first(&format!("SELECT {COLUMNS} FROM issued WHERE serial = ?1"), &[serial.into()])?;
        row.map(|row| entry(&row, 0)).transpose()
    }

    /// The oldest record of a certificate that was issued for this credential.
    pub fn by_credential(&mut self, kind: CredentialKind, reference: &str) -> Result<Option<LogEntry>, StoreError> {
        let sql =
            format!("SELECT {COLUMNS} FROM issued WHERE credential_ref = ?1 AND credential = ?2 ORDER BY seq LIMIT 1");
        let row = self.query_first(&sql, &[reference.into(), kind.as_str().into()])?;
        row.map(|row| entry(&row, 0)).transpose()
    }

    /// Visits every record, oldest first, without holding them all.
    pub fn for_each<E: From<StoreError>>(
        &mut self,
        mut visit: impl FnMut(LogRecord) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = format!("SELECT seq, hash, {COLUMNS} FROM issued WHERE seq > ?1 ORDER BY seq LIMIT {PAGE}");
        let mut after = i64::MIN;
        loop {
            let page = self.query(&sql, &[after.into()])?;
            for row in &page {
                let record = LogRecord { seq: row.int(0)?, hash: row.chain_hash(1)?, entry: entry(row, 2)? };
                after = record.seq;
                visit(record)?;
            }
            if page.len() < PAGE {
                return Ok(());
            }
        }
    }

    /// Visits the record of every certificate that is still good at `now`, oldest first. What `visit` reads meanwhile is
    /// of the same transaction.
    pub fn for_each_unexpired<E: From<StoreError>>(
        &mut self,
        now: OffsetDateTime,
        mut visit: impl FnMut(&mut Self, LogEntry) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql =
            format!("SELECT seq, {COLUMNS} FROM issued WHERE not_after >= ?1 AND seq > ?2 ORDER BY seq LIMIT {PAGE}");
        let mut after = i64::MIN;
        loop {
            let page = self.query(&sql, &[now.into(), after.into()])?;
            for row in &page {
                after = row.int(0)?;
                visit(self, entry(row, 1)?)?;
            }
            if page.len() < PAGE {
                return Ok(());
            }
        }
    }
}

pub(super) const COLUMNS: &str =
    "serial, id, dns_names, not_before, not_after, credential, credential_ref, certificate, issued_at";

pub(super) const INSERT: &str = "INSERT INTO issued (serial, id, dns_names, not_before, not_after, credential, \
     credential_ref, certificate, issued_at, seq, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";

/// The parameters of [`INSERT`].
pub(super) fn values<'a>(entry: &'a LogEntry, names: &'a str, seq: i64, hash: &'a ChainHash) -> [Value<'a>; 11] {
    [
        (&entry.serial).into(),
        entry.id.as_ref().map(SpiffeId::as_str).into(),
        names.into(),
        entry.not_before.into(),
        entry.not_after.into(),
        entry.credential.as_str().into(),
        entry.credential_ref.as_ref().into(),
        entry.certificate.as_slice().into(),
        entry.issued_at.into(),
        seq.into(),
        (&hash.0).into(),
    ]
}

/// Reads [`COLUMNS`] that begin at column `at`.
pub(super) fn entry(row: &Row, at: usize) -> Result<LogEntry, StoreError> {
    let id = match row.optional_text(at + 1)? {
        Some(text) => Some(SpiffeId::parse(text).map_err(|e| StoreError::Damaged(format!("the id {text}: {e}")))?),
        None => None,
    };
    Ok(LogEntry {
        serial: row.text(at)?.to_owned(),
        id,
        dns_names: names_from_json(row.text(at + 2)?)?,
        not_before: row.time(at + 3)?,
        not_after: row.time(at + 4)?,
        credential: CredentialKind::parse(row.text(at + 5)?)?,
        credential_ref: row.optional_text(at + 6)?.map(str::to_owned),
        certificate: row.blob(at + 7)?.to_vec(),
        issued_at: row.time(at + 8)?,
    })
}
