//! Join tokens, of which only the hash is kept.

use rusqlite::{Connection, OptionalExtension, params};
use time::OffsetDateTime;

use super::{StoreError, names_from_json, names_to_json, time_from};

/// A token as it was created.
#[derive(Debug, Clone)]
pub struct TokenRow {
    /// The SPIFFE id that it stands for.
    pub id: String,
    /// The DNS names that come with it.
    pub dns_names: Vec<String>,
    /// The first second at which it is worth nothing.
    pub expires_at: OffsetDateTime,
    /// When it was spent.
    pub used_at: Option<OffsetDateTime>,
}

/// Records a new token under the hash of its text.
pub fn insert_token(
    connection: &Connection,
    hash: &[u8; 32],
    token: &TokenRow,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO token (hash, id, dns_names, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            hash,
            token.id,
            names_to_json(&token.dns_names),
            now.unix_timestamp(),
            token.expires_at.unix_timestamp()
        ],
    )?;
    Ok(())
}

/// Looks a token up.
pub fn token_by_hash(connection: &Connection, hash: &[u8; 32]) -> Result<Option<TokenRow>, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT id, dns_names, expires_at, used_at FROM token WHERE hash = ?1")?;
    let row = statement
        .query_row([hash], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get(2)?, row.get::<_, Option<i64>>(3)?))
        })
        .optional()?;
    let Some((id, dns_names, expires_at, used_at)) = row else { return Ok(None) };
    Ok(Some(TokenRow {
        id,
        dns_names: names_from_json(&dns_names)?,
        expires_at: time_from(expires_at)?,
        used_at: used_at.map(time_from).transpose()?,
    }))
}

/// Spends a token. `false`: it was not there to be spent (unknown, spent before, or expired), and nothing changed.
///
/// The row count is the answer, so of two callers one gets `true` whatever either has read before.
pub fn spend_token(connection: &Connection, hash: &[u8; 32], now: OffsetDateTime) -> Result<bool, StoreError> {
    let mut statement = connection
        .prepare_cached("UPDATE token SET used_at = ?2 WHERE hash = ?1 AND used_at IS NULL AND expires_at > ?2")?;
    Ok(statement.execute(params![hash, now.unix_timestamp()])? == 1)
}
