//! Forgetting: records of certificates that are long over go, and an anchor stays where they were, so that the rest
//! of the chain still proves itself.

use time::OffsetDateTime;

use super::{ChainFault, ChainHash, StoreError, Transaction};

/// What went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// How many records.
    pub records: u64,
    /// The last of them and its hash, from which the chain now goes on. `None`: nothing was old enough.
    pub anchor: Option<(i64, ChainHash)>,
}

/// What a server forgot in one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgot {
    /// Records.
    pub pruned: Pruned,
    /// How many tokens.
    pub tokens: u64,
    /// How many keys of certificates that are over.
    pub keys: u64,
}

impl Transaction<'_> {
    /// Removes the oldest records up to the first one whose certificate was still good at `expired_before`. Only from
    /// the front, because a chain has no holes: one certificate that lives long keeps the records behind it.
    ///
    /// Never removes the record of a certificate that is still good at `now`: renewal looks it up.
    pub fn prune(&mut self, expired_before: OffsetDateTime, now: OffsetDateTime) -> Result<Pruned, StoreError> {
        let limit = expired_before.min(now);
        self.forget_keys(limit, u32::MAX)?;
        let last = self.query_first(
            "SELECT seq, hash FROM issued
             WHERE seq < coalesce((SELECT min(seq) FROM issued WHERE not_after >= ?1), 9223372036854775807)
             ORDER BY seq DESC LIMIT 1",
            &[limit.into()],
        )?;
        match last {
            Some(last) => self.prune_to(last.int(0)?, last.chain_hash(1)?, now),
            None => Ok(Pruned { records: 0, anchor: None }),
        }
    }

    /// As [`Transaction::prune`], and tokens that expired before `expired_before`, whatever became of them: at most
    /// `at_once` of each, and of the records only those that prove themselves.
    pub fn forget<E: From<StoreError> + From<ChainFault>>(
        &mut self,
        expired_before: OffsetDateTime,
        now: OffsetDateTime,
        at_once: u32,
    ) -> Result<Forgot, E> {
        let limit = expired_before.min(now);
        let tokens = self.forget_tokens(limit, at_once)?;
        let keys = self.forget_keys(limit, at_once)?;
        let (mut last, mut before) = self.anchor()?.unwrap_or((0, ChainHash::GENESIS));
        let mut over = 0;
        for record in self.oldest(at_once)? {
            if record.entry.not_after >= limit {
                break;
            }
            let hash = before.of_next(record.seq, &record.entry);
            if hash != record.hash || record.seq != last + 1 {
                return Err(ChainFault::Broken { seq: record.seq, serial: record.entry.serial }.into());
            }
            (last, before) = (record.seq, hash);
            over += 1;
        }
        let pruned = if over == 0 { Pruned { records: 0, anchor: None } } else { self.prune_to(last, before, now)? };
        Ok(Forgot { pruned, tokens, keys })
    }

    fn prune_to(&mut self, seq: i64, hash: ChainHash, now: OffsetDateTime) -> Result<Pruned, StoreError> {
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

    /// Removes tokens that expired before a time, at most so many; gives back how many.
    pub fn forget_tokens(&mut self, expired_before: OffsetDateTime, at_once: u32) -> Result<u64, StoreError> {
        self.execute(
            "DELETE FROM token WHERE hash IN (SELECT hash FROM token WHERE expires_at < ?1 LIMIT ?2)",
            &[expired_before.into(), i64::from(at_once).into()],
        )
    }
}
