//! The hash chain: each record's hash covers the record and the hash before it, so that nothing in the middle can be
//! changed, removed, added or moved without every later hash showing it.
//!
//! What it does not show by itself: somebody who may write the file can cut the newest records off, or compute the whole
//! chain anew. Against that keep a hash elsewhere now and then (`log verify` prints the newest) and ask for it later
//! (`log verify --head`). Whoever may write the file can also remove the oldest records and leave an anchor, as pruning
//! does: `log verify` says up to which number records are gone, and their certificates must all have expired.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

use super::{LogEntry, StoreError, Transaction, names_to_json, sql::Dialect};
use crate::authority::hex;

/// Says what is hashed, so that no other use of SHA-256 can be taken for it.
const CONTEXT: &[u8] = b"outrigger-ca issuance log v1";

/// SHA-256 over one record and the hash of the one before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChainHash(pub(super) [u8; 32]);

impl ChainHash {
    /// What stands before the first record.
    pub const GENESIS: Self = Self([0; 32]);

    /// The hash of a record that follows `self`. Each field goes in with its length, so no two records have the same
    /// bytes; the DNS names go in as the JSON array that the database holds.
    pub fn of_next(&self, seq: i64, entry: &LogEntry) -> Self {
        let mut hash = Sha256::new();
        let mut field = |bytes: Option<&[u8]>| match bytes {
            Some(bytes) => {
                hash.update([1]);
                hash.update((bytes.len() as u64).to_be_bytes());
                hash.update(bytes);
            }
            None => hash.update([0]),
        };
        field(Some(CONTEXT));
        field(Some(&self.0));
        field(Some(&seq.to_be_bytes()));
        field(Some(entry.serial.as_bytes()));
        field(entry.id.as_ref().map(|id| id.as_str().as_bytes()));
        field(Some(names_to_json(&entry.dns_names).as_bytes()));
        field(Some(&entry.not_before.unix_timestamp().to_be_bytes()));
        field(Some(&entry.not_after.unix_timestamp().to_be_bytes()));
        field(Some(entry.credential.as_str().as_bytes()));
        field(entry.credential_ref.as_ref().map(String::as_bytes));
        field(Some(&entry.certificate));
        field(Some(&entry.issued_at.unix_timestamp().to_be_bytes()));
        Self(hash.finalize().into())
    }
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ChainHash {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not a hash of the log; copy the 64 hex digits that \"log verify\" printed");
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

/// Why the log does not prove itself.
#[derive(Debug, thiserror::Error)]
pub enum ChainFault {
    /// A record does not fit the one before it.
    #[error(
        "the issuance log is broken at record {seq} (serial {serial}): the record, or one before it, was changed, added or removed; compare ca.db with a backup, and do not trust what this log says from there on"
    )]
    Broken {
        /// The record's number.
        seq: i64,
        /// Its serial number, as the record has it.
        serial: String,
    },
    /// The newest records are gone.
    #[error(
        "the issuance log ends at record {found}, but {last} were written: the newest were removed; compare ca.db with a backup"
    )]
    Cut {
        /// The last record that is there.
        found: i64,
        /// The last that was written.
        last: i64,
    },
    /// The hash that was kept elsewhere is nowhere in the chain.
    #[error(
        "no record of the issuance log has the hash {0}: the log was cut or written anew since that hash was noted, or it was pruned past it; compare ca.db with a backup"
    )]
    HeadMissing(ChainHash),
    /// A revocation does not fit the one before it.
    #[error(
        "the revocations are broken at number {seq} (serial {serial}): it, or one before it, was changed, added or removed; compare ca.db with a backup"
    )]
    RevocationBroken {
        /// The revocation's number.
        seq: i64,
        /// The certificate's serial, as the row has it.
        serial: String,
    },
    /// The newest revocations are gone.
    #[error(
        "the revocations end at number {found}, but {last} were written: the newest were removed; compare ca.db with a backup"
    )]
    RevocationCut {
        /// The last that is there.
        found: i64,
        /// The last that was written.
        last: i64,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a good chain consists of.
#[derive(Debug, Clone)]
pub struct ChainReport {
    /// Records whose hash was computed and compared.
    pub records: u64,
    /// Number of the newest record, or of the anchor if there is none; 0 in an empty log.
    pub last_seq: i64,
    /// The newest hash: what to keep elsewhere.
    pub head: ChainHash,
    /// Number of the last record that was pruned, and its hash.
    pub anchor: Option<(i64, ChainHash)>,
}

impl Transaction<'_> {
    /// Computes every hash anew. With `head`, a hash noted earlier must be among them (or be the anchor's).
    ///
    /// Call it in a snapshot, or what is recorded meanwhile may look cut.
    pub fn verify_chain(&mut self, head: Option<ChainHash>) -> Result<ChainReport, ChainFault> {
        let anchor = self.anchor()?;
        let (mut last_seq, mut before) = anchor.unwrap_or((0, ChainHash::GENESIS));
        let mut found = head.is_none_or(|head| head == before);
        let mut records = 0;
        self.for_each(|record| {
            let hash = before.of_next(record.seq, &record.entry);
            if hash != record.hash || record.seq != last_seq + 1 {
                return Err(ChainFault::Broken { seq: record.seq, serial: record.entry.serial });
            }
            records += 1;
            (last_seq, before) = (record.seq, hash);
            found |= head == Some(hash);
            Ok(())
        })?;
        let last = self.last_written()?;
        if last != last_seq {
            return Err(ChainFault::Cut { found: last_seq, last });
        }
        match head {
            Some(head) if !found => Err(ChainFault::HeadMissing(head)),
            _ => Ok(ChainReport { records, last_seq, head: before, anchor }),
        }
    }

    /// Number and hash of the newest record that was ever written: what the next one follows. Fails where that record is
    /// gone: one more behind the hole would hide it.
    pub(super) fn read_head(&mut self) -> Result<(i64, ChainHash), StoreError> {
        let newest = self.query_first("SELECT seq, hash FROM issued ORDER BY seq DESC LIMIT 1", &[])?;
        let (found, before) = match newest {
            Some(row) => (row.int(0)?, row.chain_hash(1)?),
            None => self.anchor()?.unwrap_or((0, ChainHash::GENESIS)),
        };
        let last = self.last_written()?;
        if found != last {
            let fault = format!("an issuance log that ends at record {found}, though {last} were written");
            return Err(StoreError::Damaged(fault));
        }
        Ok((last, before))
    }

    /// Where the chain begins after pruning.
    pub(super) fn anchor(&mut self) -> Result<Option<(i64, ChainHash)>, StoreError> {
        let row = self.query_first("SELECT seq, hash FROM log_anchor ORDER BY seq DESC LIMIT 1", &[])?;
        row.map(|row| Ok((row.int(0)?, row.chain_hash(1)?))).transpose()
    }

    /// The number of the newest record that was ever written. SQLite keeps it for AUTOINCREMENT.
    fn last_written(&mut self) -> Result<i64, StoreError> {
        if let Some((seq, _)) = self.appended {
            return Ok(seq);
        }
        let sql = match self.dialect() {
            Dialect::Sqlite => "SELECT seq FROM sqlite_sequence WHERE name = 'issued'",
            Dialect::Postgres => "SELECT last_seq FROM ca",
        };
        let row = self.query_first(sql, &[])?;
        row.map_or(Ok(0), |row| row.int(0))
    }
}
