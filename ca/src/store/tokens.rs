//! Join tokens, of which only the hash is kept.

use rusqlite::{Connection, OptionalExtension, Row, params};
use time::OffsetDateTime;

use super::{StoreError, names_from_json, names_to_json, time_from};

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

/// Records a new token under the hash of its text.
pub fn insert_token(connection: &Connection, hash: &[u8; 32], token: &TokenRow) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO token (hash, id, dns_names, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            hash,
            token.id,
            names_to_json(&token.dns_names),
            token.created_at.unix_timestamp(),
            token.expires_at.unix_timestamp()
        ],
    )?;
    Ok(())
}

const COLUMNS: &str = "hash, id, dns_names, created_at, expires_at, used_at, revoked_at";

/// Looks a token up.
pub fn token_by_hash(connection: &Connection, hash: &[u8; 32]) -> Result<Option<TokenRow>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM token WHERE hash = ?1"))?;
    let found = statement.query_row([hash], |row| Ok(token(row))).optional()?.transpose()?;
    Ok(found.map(|(_, token)| token))
}

/// How many tokens could still be used at `now`.
pub fn tokens_waiting(connection: &Connection, now: OffsetDateTime) -> Result<u64, StoreError> {
    let sql = "SELECT count(*) FROM token WHERE used_at IS NULL AND revoked_at IS NULL AND expires_at > ?1";
    let count: i64 = connection.prepare_cached(sql)?.query_row([now.unix_timestamp()], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// Every token with its hash, oldest first.
pub fn list_tokens(connection: &Connection) -> Result<Vec<([u8; 32], TokenRow)>, StoreError> {
    let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM token ORDER BY created_at, rowid"))?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(token(row)?);
    }
    Ok(all)
}

/// The tokens whose hash begins with these lower-case hex digits. The caller has seen to it that they are hex digits
/// and at least [`MIN_REF_LEN`].
pub fn tokens_by_ref(connection: &Connection, digits: &str) -> Result<Vec<([u8; 32], TokenRow)>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM token WHERE substr(lower(hex(hash)), 1, length(?1)) = ?1");
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([digits])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(token(row)?);
    }
    Ok(all)
}

fn token(row: &Row<'_>) -> Result<([u8; 32], TokenRow), StoreError> {
    let row = (
        row.get(0)?,
        TokenRow {
            id: row.get(1)?,
            dns_names: names_from_json(&row.get::<_, String>(2)?)?,
            created_at: time_from(row.get(3)?)?,
            expires_at: time_from(row.get(4)?)?,
            used_at: row.get::<_, Option<i64>>(5)?.map(time_from).transpose()?,
            revoked_at: row.get::<_, Option<i64>>(6)?.map(time_from).transpose()?,
        },
    );
    Ok(row)
}

/// Spends a token. `false`: it was not there to be spent (unknown, spent before, revoked, or expired), and nothing
/// changed.
///
/// The row count is the answer, so of two callers one gets `true` whatever either has read before.
pub fn spend_token(connection: &Connection, hash: &[u8; 32], now: OffsetDateTime) -> Result<bool, StoreError> {
    let mut statement = connection.prepare_cached(
        "UPDATE token SET used_at = ?2
         WHERE hash = ?1 AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?2",
    )?;
    Ok(statement.execute(params![hash, now.unix_timestamp()])? == 1)
}

/// Takes a token back. `false`: it was spent or revoked before, or is unknown, and nothing changed.
pub fn revoke_token(connection: &Connection, hash: &[u8; 32], now: OffsetDateTime) -> Result<bool, StoreError> {
    let changed = connection.execute(
        "UPDATE token SET revoked_at = ?2 WHERE hash = ?1 AND used_at IS NULL AND revoked_at IS NULL",
        params![hash, now.unix_timestamp()],
    )?;
    Ok(changed == 1)
}

/// Takes back every token of an id that could still be used at `now`; gives back how many.
pub fn revoke_tokens_of(connection: &Connection, id: &str, now: OffsetDateTime) -> Result<usize, StoreError> {
    Ok(connection.execute(
        "UPDATE token SET revoked_at = ?2
         WHERE id = ?1 AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?2",
        params![id, now.unix_timestamp()],
    )?)
}
