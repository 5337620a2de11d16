//! Forgetting: records of certificates that are long over go, and an anchor stays where they were, so that the rest
//! of the chain still proves itself.

use time::OffsetDateTime;

use super::{ChainHash, StoreError, Transaction};

/// What went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// How many records.
    pub records: u64,
    /// The last of them and its hash, from which the chain now goes on. `None`: nothing was old enough.
    pub anchor: Option<(i64, ChainHash)>,
}

impl Transaction<'_> {
    /// Removes the oldest records up to the first one whose certificate was still good at `expired_before`. Only from
    /// the front, because a chain has no holes: one certificate that lives long keeps the records behind it.
    ///
    /// Never removes the record of a certificate that is still good at `now`: renewal looks it up.
    pub fn prune(&mut self, expired_before: OffsetDateTime, now: OffsetDateTime) -> Result<Pruned, StoreError> {
        let limit = expired_before.min(now);
        let last = self.query_first(
            "SELECT seq, hash FROM issued
             WHERE seq < coalesce((SELECT min(seq) FROM issued WHERE not_after >= ?1), 9223372036854775807)
             ORDER BY seq DESC LIMIT 1",
            &[limit.into()],
        )?;
        let Some(last) = last else { return Ok(Pruned { records: 0, anchor: None }) };
        let (seq, hash) = (last.int(0)?, last.chain_hash(1)?);
        let count = self.query_first("SELECT count(*) FROM issued WHERE seq <= ?1", &[seq.into()])?;
        let records = count.map_or(Ok(0), |row| row.int(0))?;
        // The anchor first: the database lets nothing be deleted that no anchor stands for.
        self.execute(
            "INSERT INTO log_anchor (seq, hash, pruned, pruned_at) VALUES (?1, ?2, ?3, ?4)",
            &[seq.into(), (&hash.0).into(), records.into(), now.into()],
        )?;
        self.execute("DELETE FROM issued WHERE seq <= ?1", &[seq.into()])?;
        Ok(Pruned { records: records.unsigned_abs(), anchor: Some((seq, hash)) })
    }
}
