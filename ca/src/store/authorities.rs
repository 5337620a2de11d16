//! Roots and intermediates with what each of them is at the moment, shared by every process that uses the database. Their
//! keys are files and not in here.
//!
//! Every change counts the bundle's version up, which is how a running server notices it.

use std::time::Duration;

use time::OffsetDateTime;

use super::{StoreError, Transaction, sql::Row};

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

impl Transaction<'_> {
    /// Records a new one.
    pub fn insert_authority(&mut self, row: &AuthorityRow) -> Result<(), StoreError> {
        self.execute(
            &format!("INSERT INTO authority ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"),
            &[
                (&row.fingerprint).into(),
                row.kind.as_str().into(),
                row.state.as_str().into(),
                row.issuer.as_ref().into(),
                row.certificate.as_slice().into(),
                row.created_at.into(),
                row.changed_at.into(),
            ],
        )?;
        self.count(row.kind)
    }

    /// Moves one from the state `from` to `to`. `false`: it was not in `from`, and nothing changed. The row count is the
    /// answer, so of two callers one gets `true`.
    pub fn move_authority(
        &mut self,
        fingerprint: &str,
        kind: AuthorityKind,
        (from, to): (AuthorityState, AuthorityState),
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let changed = self.execute(
            "UPDATE authority SET state = ?4, changed_at = ?5 WHERE fingerprint = ?1 AND kind = ?2 AND state = ?3",
            &[fingerprint.into(), kind.as_str().into(), from.as_str().into(), to.as_str().into(), now.into()],
        )?;
        if changed == 1 {
            self.count(kind)?;
        }
        Ok(changed == 1)
    }

    /// Every one that was ever recorded, oldest first.
    pub fn list_authorities(&mut self) -> Result<Vec<AuthorityRow>, StoreError> {
        let rows = self.query(&format!("SELECT {COLUMNS} FROM authority ORDER BY position"), &[])?;
        rows.iter().map(authority).collect()
    }

    /// The state of one.
    pub fn authority_state(&mut self, fingerprint: &str) -> Result<Option<AuthorityState>, StoreError> {
        let row = self.query_first("SELECT state FROM authority WHERE fingerprint = ?1", &[fingerprint.into()])?;
        row.map(|row| state(row.text(0)?)).transpose()
    }

    /// What is said of the bundle as a whole.
    pub fn bundle_row(&mut self) -> Result<BundleRow, StoreError> {
        let row = self.query_first("SELECT sequence, version, refresh_hint FROM bundle", &[])?;
        let row = row.ok_or_else(|| StoreError::Damaged("no row about the bundle".into()))?;
        Ok(BundleRow {
            sequence: number(row.int(0)?)?,
            version: number(row.int(1)?)?,
            refresh_hint: Duration::from_secs(number(row.int(2)?)?),
        })
    }

    /// Says how often verifiers shall look for a new bundle.
    pub fn set_refresh_hint(&mut self, hint: Duration) -> Result<(), StoreError> {
        let seconds = i64::try_from(hint.as_secs()).unwrap_or(i64::MAX);
        self.execute("UPDATE bundle SET refresh_hint = ?1", &[seconds.into()])?;
        self.count(AuthorityKind::Root)
    }

    /// Lets running servers look again.
    pub(super) fn touch(&mut self) -> Result<(), StoreError> {
        self.execute("UPDATE bundle SET version = version + 1", &[]).map(drop)
    }

    fn count(&mut self, kind: AuthorityKind) -> Result<(), StoreError> {
        if kind == AuthorityKind::Root {
            self.execute("UPDATE bundle SET sequence = sequence + 1", &[])?;
        }
        self.touch()
    }
}

/// A number that is never negative.
pub(super) fn number(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| StoreError::Damaged(format!("the impossible number {number}")))
}

fn state(text: &str) -> Result<AuthorityState, StoreError> {
    let found = AuthorityState::ALL.into_iter().find(|state| state.as_str() == text);
    found.ok_or_else(|| StoreError::Damaged(format!("the unknown state \"{text}\" of an authority")))
}

fn authority(row: &Row) -> Result<AuthorityRow, StoreError> {
    let kind = row.text(1)?;
    let kind = [AuthorityKind::Root, AuthorityKind::Intermediate]
        .into_iter()
        .find(|known| known.as_str() == kind)
        .ok_or_else(|| StoreError::Damaged(format!("the unknown kind \"{kind}\" of an authority")))?;
    Ok(AuthorityRow {
        fingerprint: row.text(0)?.to_owned(),
        kind,
        state: state(row.text(2)?)?,
        issuer: row.optional_text(3)?.map(str::to_owned),
        certificate: row.blob(4)?.to_vec(),
        created_at: row.time(5)?,
        changed_at: row.time(6)?,
    })
}
