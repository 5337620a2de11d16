//! What was revoked: certificates, in a hash chain of their own, and ids that get none any more.
//!
//! The chain is made and proved like the issuance log's. Rows stay for ever; a list for verifiers leaves out what has
//! expired.

use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::{ChainFault, ChainHash, StoreError, Transaction, sql::Row};

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

const COLUMNS: &str = "seq, hash, serial, issuer, reason, not_after, revoked_at";

/// Rows that are fetched at a time.
const PAGE: usize = 500;

impl Transaction<'_> {
    /// Records a revocation. `false`: it was revoked before, and nothing changed.
    pub fn insert_revocation(&mut self, row: &RevocationRow) -> Result<bool, StoreError> {
        if self.revoked_at(&row.serial)?.is_some() {
            return Ok(false);
        }
        let newest = self.query_first("SELECT hash FROM revocation ORDER BY seq DESC LIMIT 1", &[])?;
        let before = newest.map_or(Ok([0; 32]), |row| row.digest(0))?;
        let seq = self.last_revocation()? + 1;
        let hash = hash_of(&before, seq, row);
        self.execute(
            &format!("INSERT INTO revocation ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"),
            &[
                seq.into(),
                (&hash).into(),
                (&row.serial).into(),
                (&row.issuer).into(),
                row.reason.as_str().into(),
                row.not_after.into(),
                row.revoked_at.into(),
            ],
        )?;
        self.execute("UPDATE bundle SET revocations = ?1", &[seq.into()])?;
        self.touch()?;
        Ok(true)
    }

    /// When a certificate was revoked, if it was.
    pub fn revoked_at(&mut self, serial: &str) -> Result<Option<OffsetDateTime>, StoreError> {
        let row = self.query_first("SELECT revoked_at FROM revocation WHERE serial = ?1", &[serial.into()])?;
        row.map(|row| row.time(0)).transpose()
    }

    /// What an issuer revoked and has not expired at `now`, oldest first.
    pub fn revocations_of(&mut self, issuer: &str, now: OffsetDateTime) -> Result<Vec<RevocationRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM revocation WHERE issuer = ?1 AND not_after >= ?2 ORDER BY seq");
        let rows = self.query(&sql, &[issuer.into(), now.into()])?;
        rows.iter().map(|row| revocation(row).map(|(_, _, revocation)| revocation)).collect()
    }

    /// The number of the newest revocation by an issuer; 0 without any.
    pub fn newest_revocation_of(&mut self, issuer: &str) -> Result<i64, StoreError> {
        let sql = "SELECT coalesce(max(seq), 0) FROM revocation WHERE issuer = ?1";
        self.query_first(sql, &[issuer.into()])?.map_or(Ok(0), |row| row.int(0))
    }

    /// Proves the chain of revocations; gives back how many there are and the newest hash.
    pub fn verify_revocations(&mut self) -> Result<(u64, ChainHash), ChainFault> {
        let sql = format!("SELECT {COLUMNS} FROM revocation WHERE seq > ?1 ORDER BY seq LIMIT {PAGE}");
        let (mut before, mut last, mut count) = ([0; 32], 0, 0);
        loop {
            let page = self.query(&sql, &[last.into()])?;
            for row in &page {
                let (seq, hash, row) = revocation(row)?;
                if seq != last + 1 || hash != hash_of(&before, seq, &row) {
                    return Err(ChainFault::RevocationBroken { seq, serial: row.serial });
                }
                (before, last, count) = (hash, seq, count + 1);
            }
            if page.len() < PAGE {
                break;
            }
        }
        let written = self.last_revocation()?;
        if written != last {
            return Err(ChainFault::RevocationCut { found: last, last: written });
        }
        Ok((count, ChainHash(before)))
    }

    /// Lets no certificate be issued for an id any more. `false`: it was blocked before.
    pub fn block_id(&mut self, id: &str, now: OffsetDateTime) -> Result<bool, StoreError> {
        let sql = "INSERT INTO blocked_id (id, blocked_at) VALUES (?1, ?2) ON CONFLICT (id) DO NOTHING";
        Ok(self.execute(sql, &[id.into(), now.into()])? == 1)
    }

    /// Takes [`Self::block_id`] back. `false`: it was not blocked.
    pub fn unblock_id(&mut self, id: &str) -> Result<bool, StoreError> {
        Ok(self.execute("DELETE FROM blocked_id WHERE id = ?1", &[id.into()])? == 1)
    }

    /// Since when an id is blocked, if it is.
    pub fn blocked_at(&mut self, id: &str) -> Result<Option<OffsetDateTime>, StoreError> {
        let row = self.query_first("SELECT blocked_at FROM blocked_id WHERE id = ?1", &[id.into()])?;
        row.map(|row| row.time(0)).transpose()
    }

    /// The number of the newest revocation that was ever recorded.
    fn last_revocation(&mut self) -> Result<i64, StoreError> {
        self.query_first("SELECT revocations FROM bundle", &[])?.map_or(Ok(0), |row| row.int(0))
    }
}

fn revocation(row: &Row) -> Result<(i64, [u8; 32], RevocationRow), StoreError> {
    let reason = row.text(4)?;
    let reason = reason.parse().map_err(|_| StoreError::Damaged(format!("the unknown reason \"{reason}\"")))?;
    let of = RevocationRow {
        serial: row.text(2)?.to_owned(),
        issuer: row.text(3)?.to_owned(),
        reason,
        not_after: row.time(5)?,
        revoked_at: row.time(6)?,
    };
    Ok((row.int(0)?, row.digest(1)?, of))
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
