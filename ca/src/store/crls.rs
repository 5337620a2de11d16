//! The newest certificate revocation list of each issuer, as its key's holder has signed it. Here, because every replica
//! publishes all of them and holds the keys of few.

use rusqlite::{Connection, OptionalExtension, Row, params};
use time::OffsetDateTime;

use super::{StoreError, authorities, time_from};

/// One list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrlRow {
    /// The issuer's fingerprint.
    pub issuer: String,
    /// RFC 5280's cRLNumber, from 1.
    pub number: u64,
    /// The newest revocation that it takes account of.
    pub newest: i64,
    /// When it was made.
    pub made_at: OffsetDateTime,
    /// When the next one is due at the latest.
    pub next_update: OffsetDateTime,
    /// The list, DER.
    pub der: Vec<u8>,
}

/// The number for the next list of an issuer.
pub fn next_crl_number(connection: &Connection, issuer: &str) -> Result<u64, StoreError> {
    Ok(crl_of(connection, issuer)?.map_or(1, |row| row.number + 1))
}

/// Puts a list in the place of the one before. Call it in the transaction that asked for the number.
pub fn put_crl(connection: &Connection, row: &CrlRow) -> Result<(), StoreError> {
    let number = i64::try_from(row.number).unwrap_or(i64::MAX);
    connection.execute(
        "INSERT INTO crl (issuer, number, newest, made_at, next_update, der) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (issuer) DO UPDATE SET number = excluded.number, newest = excluded.newest,
         made_at = excluded.made_at, next_update = excluded.next_update, der = excluded.der",
        params![
            row.issuer,
            number,
            row.newest,
            row.made_at.unix_timestamp(),
            row.next_update.unix_timestamp(),
            row.der
        ],
    )?;
    authorities::touch(connection)
}

/// The newest list of an issuer.
pub fn crl_of(connection: &Connection, issuer: &str) -> Result<Option<CrlRow>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM crl WHERE issuer = ?1"))?;
    statement.query_row([issuer], |row| Ok(crl(row))).optional()?.transpose()
}

const COLUMNS: &str = "issuer, number, newest, made_at, next_update, der";

fn crl(row: &Row<'_>) -> Result<CrlRow, StoreError> {
    let number: i64 = row.get(1)?;
    Ok(CrlRow {
        issuer: row.get(0)?,
        number: u64::try_from(number).map_err(|_| StoreError::Damaged(format!("the impossible number {number}")))?,
        newest: row.get(2)?,
        made_at: time_from(row.get(3)?)?,
        next_update: time_from(row.get(4)?)?,
        der: row.get(5)?,
    })
}
