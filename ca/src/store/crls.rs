//! The newest certificate revocation list of each issuer, as its key's holder has signed it. Here, because every replica
//! publishes all of them and holds the keys of few.

use time::OffsetDateTime;

use super::{StoreError, Transaction, authorities::number, sql::Row};

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

const COLUMNS: &str = "issuer, number, newest, made_at, next_update, der";

impl Transaction<'_> {
    /// The number for the next list of an issuer.
    pub fn next_crl_number(&mut self, issuer: &str) -> Result<u64, StoreError> {
        Ok(self.crl_of(issuer)?.map_or(1, |row| row.number + 1))
    }

    /// Puts a list in the place of the one before. Call it in the transaction that asked for the number.
    pub fn put_crl(&mut self, row: &CrlRow) -> Result<(), StoreError> {
        let number = i64::try_from(row.number).unwrap_or(i64::MAX);
        self.execute(
            &format!(
                "INSERT INTO crl ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (issuer) DO UPDATE SET number = excluded.number, newest = excluded.newest,
                 made_at = excluded.made_at, next_update = excluded.next_update, der = excluded.der"
            ),
            &[
                (&row.issuer).into(),
                number.into(),
                row.newest.into(),
                row.made_at.into(),
                row.next_update.into(),
                row.der.as_slice().into(),
            ],
        )?;
        self.touch()
    }

    /// The newest list of an issuer.
    pub fn crl_of(&mut self, issuer: &str) -> Result<Option<CrlRow>, StoreError> {
        let row = self.query_first(&format!("SELECT {COLUMNS} FROM crl WHERE issuer = ?1"), &[issuer.into()])?;
        row.map(|row| crl(&row)).transpose()
    }
}

fn crl(row: &Row) -> Result<CrlRow, StoreError> {
    Ok(CrlRow {
        issuer: row.text(0)?.to_owned(),
        number: number(row.int(1)?)?,
        newest: row.int(2)?,
        made_at: row.time(3)?,
        next_update: row.time(4)?,
        der: row.blob(5)?.to_vec(),
    })
}
