//! Whose the keys of certificates are, and what the enrolment servers call themselves: a key proves one identity, and the
//! CA's own names are nobody else's.

use time::OffsetDateTime;

use super::{StoreError, Transaction, names_from_json};

/// Hash, id and end; a certificate of the same identity that ends later is not forgotten.
pub(super) const HOLD: &str = "INSERT INTO certified_key (hash, id, not_after) VALUES (?1, ?2, ?3)
     ON CONFLICT (hash) DO UPDATE SET id = excluded.id,
         not_after = CASE WHEN certified_key.id = excluded.id AND certified_key.not_after > excluded.not_after
             THEN certified_key.not_after ELSE excluded.not_after END";

impl Transaction<'_> {
    /// The SPIFFE id of certificates for this key (the SHA-256 of its subjectPublicKeyInfo) that are good at `now`.
    pub fn key_holder(&mut self, hash: &[u8; 32], now: OffsetDateTime) -> Result<Option<String>, StoreError> {
        let sql = "SELECT id FROM certified_key WHERE hash = ?1 AND not_after >= ?2";
        let row = self.query_first(sql, &[hash.into(), now.into()])?;
        row.map(|row| row.text(0).map(str::to_owned)).transpose()
    }

    /// Notes that there is a certificate for this key.
    pub fn hold_key(&mut self, hash: &[u8; 32], id: &str, not_after: OffsetDateTime) -> Result<(), StoreError> {
        self.execute(HOLD, &[hash.into(), id.into(), not_after.into()])?;
        Ok(())
    }

    /// Forgets keys whose certificates were over before a time, at most so many; gives back how many.
    pub(super) fn forget_keys(&mut self, expired_before: OffsetDateTime, at_once: u32) -> Result<u64, StoreError> {
        self.execute(
            "DELETE FROM certified_key WHERE hash IN
                (SELECT hash FROM certified_key WHERE not_after < ?1 ORDER BY not_after LIMIT ?2)",
            &[expired_before.into(), i64::from(at_once).into()],
        )
    }

    /// Which of these names an enrolment server's certificate has that is good at `now`.
    pub fn name_of_a_server(&mut self, names: &[String], now: OffsetDateTime) -> Result<Option<String>, StoreError> {
        if names.is_empty() {
            return Ok(None);
        }
        let sql = "SELECT DISTINCT dns_names FROM issued WHERE id IS NULL AND not_after >= ?1";
        for row in self.query(sql, &[now.into()])? {
            let theirs = names_from_json(row.text(0)?)?;
            if let Some(name) = names.iter().find(|name| theirs.contains(name)) {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }
}
