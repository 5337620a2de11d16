//! Join tokens, of which only the hash is kept.

use time::OffsetDateTime;

use super::{ChainHash, StoreError, Transaction, names_from_json, names_to_json, sql::Row};

/// The fewest hex digits of a token's hash that name it on a command line.
pub const MIN_REF_LEN: usize = 8;

/// A token as it was created, and what became of it.
#[derive(Debug, Clone)]
pub struct TokenRow {
    /// The SPIFFE id that it stands for.
    pub id: String,
    /// The DNS names that come with it.
    pub dns_names: Vec<String>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// The first second at which it is worth nothing.
    pub expires_at: OffsetDateTime,
    /// When it was spent.
    pub used_at: Option<OffsetDateTime>,
    /// When an operator took it back.
    pub revoked_at: Option<OffsetDateTime>,
}

/// What a token is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    /// Good for one enrolment.
    Unused,
    /// Spent at this time.
    Used(OffsetDateTime),
    /// Taken back at this time.
    Revoked(OffsetDateTime),
    /// Too old since this time.
    Expired(OffsetDateTime),
}

impl TokenState {
    /// As `token list` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unused => "unused",
            Self::Used(_) => "used",
            Self::Revoked(_) => "revoked",
            Self::Expired(_) => "expired",
        }
    }
}

impl TokenRow {
    /// What the token is worth at `now`. What happened to it counts before what time has done.
    pub fn state(&self, now: OffsetDateTime) -> TokenState {
        match (self.used_at, self.revoked_at) {
            (Some(at), _) => TokenState::Used(at),
            (None, Some(at)) => TokenState::Revoked(at),
            (None, None) if self.expires_at <= now => TokenState::Expired(self.expires_at),
            (None, None) => TokenState::Unused,
        }
    }
}

const COLUMNS: &str = "hash, id, dns_names, created_at, expires_at, used_at, revoked_at";

fn token(row: &Row) -> Result<([u8; 32], TokenRow), StoreError> {
    let token = TokenRow {
        id: row.text(1)?.to_owned(),
        dns_names: names_from_json(row.text(2)?)?,
        created_at: row.time(3)?,
        expires_at: row.time(4)?,
        used_at: row.optional_time(5)?,
        revoked_at: row.optional_time(6)?,
    };
    Ok((row.digest(0)?, token))
}

impl Transaction<'_> {
    /// How many tokens could still be used at `now`.
    pub fn tokens_waiting(&mut self, now: OffsetDateTime) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM token WHERE used_at IS NULL AND revoked_at IS NULL AND expires_at > ?1";
        let row = self.query_first(sql, &[now.into()])?;
        Ok(row.map_or(Ok(0), |row| row.int(0))?.unsigned_abs())
    }

    /// Records a new token under the hash of its text.
    pub fn insert_token(&mut self, hash: &[u8; 32], token: &TokenRow) -> Result<(), StoreError> {
        self.execute(
            "INSERT INTO token (hash, id, dns_names, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            &[
                hash.into(),
                (&token.id).into(),
                (&names_to_json(&token.dns_names)).into(),
                token.created_at.into(),
                token.expires_at.into(),
            ],
        )?;
        Ok(())
    }

    /// Looks a token up.
    pub fn token_by_hash(&mut self, hash: &[u8; 32]) -> Result<Option<TokenRow>, StoreError> {
        let row = self.query_first(&format!("SELECT {COLUMNS} FROM token WHERE hash = ?1"), &[hash.into()])?;
        row.map(|row| token(&row).map(|(_, token)| token)).transpose()
    }

    /// Every token with its hash, oldest first.
    pub fn list_tokens(&mut self) -> Result<Vec<([u8; 32], TokenRow)>, StoreError> {
        let rows = self.query(&format!("SELECT {COLUMNS} FROM token ORDER BY created_at, rowid"), &[])?;
        rows.iter().map(token).collect()
    }

    /// The tokens whose hash begins with these lower-case hex digits. The caller has seen to it that they are hex digits
    /// and at least [`MIN_REF_LEN`].
    pub fn tokens_by_ref(&mut self, digits: &str) -> Result<Vec<([u8; 32], TokenRow)>, StoreError> {
        let bound = |fill: char| -> Option<[u8; 32]> {
            let digits: String = digits.chars().chain(std::iter::repeat(fill)).take(64.max(digits.len())).collect();
            digits.parse::<ChainHash>().ok().map(|hash| hash.0)
        };
        // Longer than a hash, no hash begins with it.
        let (Some(low), Some(high)) = (bound('0'), bound('f')) else { return Ok(Vec::new()) };
        let sql = format!("SELECT {COLUMNS} FROM token WHERE hash >= ?1 AND hash <= ?2 ORDER BY hash");
        self.query(&sql, &[(&low).into(), (&high).into()])?.iter().map(token).collect()
    }

    /// Spends a token. `false`: it was not there to be spent (unknown, spent before, revoked, or expired), and nothing
    /// changed.
    ///
    /// The row count is the answer, so of two callers one gets `true` whatever either has read before.
    pub fn spend_token(&mut self, hash: &[u8; 32], now: OffsetDateTime) -> Result<bool, StoreError> {
        let changed = self.execute(
            "UPDATE token SET used_at = ?2
             WHERE hash = ?1 AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?2",
            &[hash.into(), now.into()],
        )?;
        Ok(changed == 1)
    }

    /// Takes a token back. `false`: it was spent or revoked before, or is unknown, and nothing changed.
    pub fn revoke_token(&mut self, hash: &[u8; 32], now: OffsetDateTime) -> Result<bool, StoreError> {
        let changed = self.execute(
            "UPDATE token SET revoked_at = ?2 WHERE hash = ?1 AND used_at IS NULL AND revoked_at IS NULL",
            &[hash.into(), now.into()],
        )?;
        Ok(changed == 1)
    }

    /// Takes back every token of an id that could still be used at `now`; gives back how many.
    pub fn revoke_tokens_of(&mut self, id: &str, now: OffsetDateTime) -> Result<u64, StoreError> {
        self.execute(
            "UPDATE token SET revoked_at = ?2
             WHERE id = ?1 AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?2",
            &[id.into(), now.into()],
        )
    }
}
