//! What was revoked: certificates, in a hash chain of their own, and ids that get none any more.
//!
//! The chain is made and proved like the issuance log's. Rows stay for ever; a list for verifiers leaves out what has
//! expired.

use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::{ChainFault, ChainHash, StoreError, authorities, time_from};

const CONTEXT: &[u8] = b"outrigger-ca revocations v1";

/// Why a certificate is revoked (RFC 5280 section 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevocationReason {
    /// Nobody says.
    Unspecified,
    /// The workload's key is known to somebody else.
    KeyCompromise,
    /// An issuer's key is.
    CaCompromise,
    /// The workload's name changed.
    AffiliationChanged,
    /// Another certificate is in its place.
    Superseded,
    /// The workload is gone.
    CessationOfOperation,
    /// The workload may not be what it was.
    PrivilegeWithdrawn,
}

impl RevocationReason {
    const ALL: [Self; 7] = [
        Self::Unspecified,
        Self::KeyCompromise,
        Self::CaCompromise,
        Self::AffiliationChanged,
        Self::Superseded,
        Self::CessationOfOperation,
        Self::PrivilegeWithdrawn,
    ];

    /// As in RFC 5280, on the command line and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "keyCompromise",
            Self::CaCompromise => "cACompromise",
            Self::AffiliationChanged => "affiliationChanged",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessationOfOperation",
            Self::PrivilegeWithdrawn => "privilegeWithdrawn",
        }
    }
}

impl std::str::FromStr for RevocationReason {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|reason| reason.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|reason| reason.as_str()).collect();
            format!("\"{text}\" is not a reason that this CA gives; choose one of {}", known.join(", "))
        })
    }
}

/// One revoked certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationRow {
    /// Its serial, lower-case hex.
    pub serial: String,
    /// The fingerprint of the root or intermediate that signed it.
    pub issuer: String,
    /// Why.
    pub reason: RevocationReason,
    /// When it would have ended anyway.
    pub not_after: OffsetDateTime,
    /// When it was revoked.
    pub revoked_at: OffsetDateTime,
}

/// Records a revocation. `false`: it was revoked before, and nothing changed.
pub fn insert_revocation(connection: &Connection, row: &RevocationRow) -> Result<bool, StoreError> {
    if revoked_at(connection, &row.serial)?.is_some() {
        return Ok(false);
    }
    let newest: Option<[u8; 32]> = connection
        .prepare_cached("SELECT hash FROM revocation ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let seq = last_written(connection)? + 1;
    let hash = hash_of(&newest.unwrap_or_default(), seq, row);
    connection.execute(
        "INSERT INTO revocation (seq, serial, issuer, reason, not_after, revoked_at, hash)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            seq,
            row.serial,
            row.issuer,
            row.reason.as_str(),
            row.not_after.unix_timestamp(),
            row.revoked_at.unix_timestamp(),
            hash
        ],
    )?;
    authorities::touch(connection)?;
    Ok(true)
}

/// When a certificate was revoked, if it was.
pub fn revoked_at(connection: &Connection, serial: &str) -> Result<Option<OffsetDateTime>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT revoked_at FROM revocation WHERE serial = ?1")?;
    let at: Option<i64> = statement.query_row([serial], |row| row.get(0)).optional()?;
    at.map(time_from).transpose()
}

/// What an issuer revoked and has not expired at `now`, oldest first.
pub fn revocations_of(
    connection: &Connection,
    issuer: &str,
    now: OffsetDateTime,
) -> Result<Vec<RevocationRow>, StoreError> {
    let sql = "SELECT seq, hash, serial, issuer, reason, not_after, revoked_at FROM revocation
               WHERE issuer = ?1 AND not_after >= ?2 ORDER BY seq";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![issuer, now.unix_timestamp()])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(revocation(row)?.2);
    }
    Ok(all)
}

/// The number of the newest revocation by an issuer; 0 without any.
pub fn newest_revocation_of(connection: &Connection, issuer: &str) -> Result<i64, StoreError> {
    let sql = "SELECT coalesce(max(seq), 0) FROM revocation WHERE issuer = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([issuer], |row| row.get(0))?)
}

/// Proves the chain of revocations; gives back how many there are and the newest hash.
pub fn verify_revocations(connection: &Connection) -> Result<(u64, ChainHash), ChainFault> {
    let sql = "SELECT seq, hash, serial, issuer, reason, not_after, revoked_at FROM revocation ORDER BY seq";
    let mut statement = connection.prepare(sql).map_err(StoreError::from)?;
    let mut rows = statement.query([]).map_err(StoreError::from)?;
    let (mut before, mut last, mut count) = ([0; 32], 0, 0);
    while let Some(row) = rows.next().map_err(StoreError::from)? {
        let (seq, hash, row) = revocation(row)?;
        if seq != last + 1 || hash != hash_of(&before, seq, &row) {
            return Err(ChainFault::RevocationBroken { seq, serial: row.serial });
        }
        (before, last, count) = (hash, seq, count + 1);
    }
    let written = last_written(connection)?;
    if written != last {
        return Err(ChainFault::RevocationCut { found: last, last: written });
    }
    Ok((count, ChainHash(before)))
}

/// Lets no certificate be issued for an id any more. `false`: it was blocked before.
pub fn block_id(connection: &Connection, id: &str, now: OffsetDateTime) -> Result<bool, StoreError> {
    let sql = "INSERT INTO blocked_id (id, blocked_at) VALUES (?1, ?2) ON CONFLICT (id) DO NOTHING";
    Ok(connection.execute(sql, params![id, now.unix_timestamp()])? == 1)
}

/// Takes [`block_id`] back. `false`: it was not blocked.
pub fn unblock_id(connection: &Connection, id: &str) -> Result<bool, StoreError> {
    Ok(connection.execute("DELETE FROM blocked_id WHERE id = ?1", [id])? == 1)
}

/// Since when an id is blocked, if it is.
pub fn blocked_at(connection: &Connection, id: &str) -> Result<Option<OffsetDateTime>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT blocked_at FROM blocked_id WHERE id = ?1")?;
    let at: Option<i64> = statement.query_row([id], |row| row.get(0)).optional()?;
    at.map(time_from).transpose()
}

fn last_written(connection: &Connection) -> Result<i64, StoreError> {
    let mut statement = connection.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'revocation'")?;
    Ok(statement.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
}

fn revocation(row: &Row<'_>) -> Result<(i64, [u8; 32], RevocationRow), StoreError> {
    let reason: String = row.get(4)?;
    let reason = reason.parse().map_err(|_| StoreError::Damaged(format!("the unknown reason \"{reason}\"")))?;
    let of = RevocationRow {
        serial: row.get(2)?,
        issuer: row.get(3)?,
        reason,
        not_after: time_from(row.get(5)?)?,
        revoked_at: time_from(row.get(6)?)?,
    };
    Ok((row.get(0)?, row.get(1)?, of))
}

/// Each field goes in with its length, so no two rows have the same bytes.
fn hash_of(before: &[u8; 32], seq: i64, row: &RevocationRow) -> [u8; 32] {
    let mut hash = Sha256::new();
    let (not_after, at) = (row.not_after.unix_timestamp().to_be_bytes(), row.revoked_at.unix_timestamp().to_be_bytes());
    let (serial, issuer) = (row.serial.as_bytes(), row.issuer.as_bytes());
    for field in [CONTEXT, before, &seq.to_be_bytes(), serial, issuer, row.reason.as_str().as_bytes(), &not_after, &at]
    {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.finalize().into()
}
