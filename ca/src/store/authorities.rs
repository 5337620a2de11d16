//! Roots and intermediates with what each of them is at the moment, shared by every process that uses the database. Their
//! keys are files and not in here.
//!
//! Every change counts the bundle's version up, which is how a running server notices it.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};
use time::OffsetDateTime;

use super::{StoreError, time_from};

/// What it may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityKind {
    /// Signs intermediates; verifiers trust it.
    Root,
    /// Signs everything else.
    Intermediate,
}

impl AuthorityKind {
    /// As in the database and in `rotate status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
        }
    }
}

/// Where it stands in a rotation. It moves down this list and never up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityState {
    /// Made, and nothing signs with it yet. A prepared root is in the bundle already.
    Prepared,
    /// Signs. Each replica has an active intermediate of its own.
    Active,
    /// Signed until another was activated; what it signed is good.
    Old,
    /// A root that is about to go: who has a certificate under it renews now.
    Tainted,
    /// Nothing under it is good any more.
    Revoked,
}

impl AuthorityState {
    const ALL: [Self; 5] = [Self::Prepared, Self::Active, Self::Old, Self::Tainted, Self::Revoked];

    /// As in the database and in `rotate status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Old => "old",
            Self::Tainted => "tainted",
            Self::Revoked => "revoked",
        }
    }
}

/// One root or intermediate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityRow {
    /// SHA-256 of the certificate, lower-case hex: its name everywhere. A serial would not do: a root that somebody else
    /// made may have any.
    pub fingerprint: String,
    /// Root or intermediate.
    pub kind: AuthorityKind,
    /// Where it stands.
    pub state: AuthorityState,
    /// The fingerprint of the root that signed it; `None` for a root.
    pub issuer: Option<String>,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// When it was recorded, and for a root: since when it is in the bundle.
    pub created_at: OffsetDateTime,
    /// When it came into its present state.
    pub changed_at: OffsetDateTime,
}

/// What is said of the bundle as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BundleRow {
    /// Counts changes of the roots (SPIFFE's `spiffe_sequence`).
    pub sequence: u64,
    /// Counts every change that a running server must take up.
    pub version: u64,
    /// How often verifiers look for a new bundle.
    pub refresh_hint: Duration,
}

const COLUMNS: &str = "fingerprint, kind, state, issuer, certificate, created_at, changed_at";

/// Records a new one.
pub fn insert_authority(connection: &Connection, row: &AuthorityRow) -> Result<(), StoreError> {
    connection.execute(
        &format!("INSERT INTO authority ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"),
        params![
            row.fingerprint,
            row.kind.as_str(),
            row.state.as_str(),
            row.issuer,
            row.certificate,
            row.created_at.unix_timestamp(),
            row.changed_at.unix_timestamp()
        ],
    )?;
    count(connection, row.kind)
}

/// Moves one from the state `from` to `to`. `false`: it was not in `from`, and nothing changed. The row count is the
/// answer, so of two callers one gets `true`.
pub fn move_authority(
    connection: &Connection,
    fingerprint: &str,
    kind: AuthorityKind,
    (from, to): (AuthorityState, AuthorityState),
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let changed = connection.execute(
        "UPDATE authority SET state = ?4, changed_at = ?5 WHERE fingerprint = ?1 AND kind = ?2 AND state = ?3",
        params![fingerprint, kind.as_str(), from.as_str(), to.as_str(), now.unix_timestamp()],
    )?;
    if changed == 1 {
        count(connection, kind)?;
    }
    Ok(changed == 1)
}

/// Every one that was ever recorded, oldest first.
pub fn list_authorities(connection: &Connection) -> Result<Vec<AuthorityRow>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM authority ORDER BY position"))?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(authority(row)?);
    }
    Ok(all)
}

/// The state of one.
pub fn authority_state(connection: &Connection, fingerprint: &str) -> Result<Option<AuthorityState>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT state FROM authority WHERE fingerprint = ?1")?;
    let text: Option<String> = statement.query_row([fingerprint], |row| row.get(0)).optional()?;
    text.map(|text| state(&text)).transpose()
}

/// What is said of the bundle as a whole.
pub fn bundle_row(connection: &Connection) -> Result<BundleRow, StoreError> {
    let mut statement = connection.prepare_cached("SELECT sequence, version, refresh_hint FROM bundle")?;
    let (sequence, version, hint): (i64, i64, i64) =
        statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let number = |n: i64| u64::try_from(n).map_err(|_| StoreError::Damaged(format!("the impossible number {n}")));
    Ok(BundleRow {
        sequence: number(sequence)?,
        version: number(version)?,
        refresh_hint: Duration::from_secs(number(hint)?),
    })
}

/// Says how often verifiers shall look for a new bundle.
pub fn set_refresh_hint(connection: &Connection, hint: Duration) -> Result<(), StoreError> {
    let seconds = i64::try_from(hint.as_secs()).unwrap_or(i64::MAX);
    connection.execute("UPDATE bundle SET refresh_hint = ?1", [seconds])?;
    count(connection, AuthorityKind::Root)
}

/// Lets running servers look again.
pub(super) fn touch(connection: &Connection) -> Result<(), StoreError> {
    connection.execute("UPDATE bundle SET version = version + 1", [])?;
    Ok(())
}

fn count(connection: &Connection, kind: AuthorityKind) -> Result<(), StoreError> {
    if kind == AuthorityKind::Root {
        connection.execute("UPDATE bundle SET sequence = sequence + 1", [])?;
    }
    touch(connection)
}

fn state(text: &str) -> Result<AuthorityState, StoreError> {
    let found = AuthorityState::ALL.into_iter().find(|state| state.as_str() == text);
    found.ok_or_else(|| StoreError::Damaged(format!("the unknown state \"{text}\" of an authority")))
}

fn authority(row: &Row<'_>) -> Result<AuthorityRow, StoreError> {
    let kind: String = row.get(1)?;
    let kind = [AuthorityKind::Root, AuthorityKind::Intermediate]
        .into_iter()
        .find(|known| known.as_str() == kind)
        .ok_or_else(|| StoreError::Damaged(format!("the unknown kind \"{kind}\" of an authority")))?;
    Ok(AuthorityRow {
        fingerprint: row.get(0)?,
        kind,
        state: state(&row.get::<_, String>(2)?)?,
        issuer: row.get(3)?,
        certificate: row.get(4)?,
        created_at: time_from(row.get(5)?)?,
        changed_at: time_from(row.get(6)?)?,
    })
}
