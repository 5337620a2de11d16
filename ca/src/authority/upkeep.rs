//! What a running server does for its authorities by itself: takes up what others changed, signs revocation lists that are
//! due, replaces the intermediate in time where the root's key is at hand, and removes keys that have nothing to sign.

use time::OffsetDateTime;

use super::{Algorithm, Authority, AuthorityError, Member, Members, Password, PrepareOptions, rfc3339};
use crate::store::{AuthorityKind, AuthorityState, Database};

/// With so much life left the next intermediate is prepared, at the earliest (SPIRE's numbers).
const PREPARE_WITHIN: time::Duration = time::Duration::days(30);
/// With so much left it signs.
const ACTIVATE_WITHIN: time::Duration = time::Duration::days(7);

/// What a look found.
#[derive(Default)]
pub struct Upkeep {
    /// The CA as it is now, if that is another than before.
    pub changed: Option<Authority>,
    /// What was done, one line each.
    pub done: Vec<String>,
    /// What could not be done and must be, one line each.
    pub warnings: Vec<String>,
}

/// The life that is left when the next intermediate is prepared: half, at most 30 days.
pub(super) fn prepare_left(member: &Member) -> time::Duration {
    let whole: time::Duration = member.not_after - member.not_before;
    PREPARE_WITHIN.min(whole / 2)
}

/// The life that is left when it signs: a sixth, at most 7 days.
pub(super) fn activate_left(member: &Member) -> time::Duration {
    let whole: time::Duration = member.not_after - member.not_before;
    ACTIVATE_WITHIN.min(whole / 6)
}

/// Looks once. Blocking: it reads files and, where keys are encrypted, hashes passwords.
pub fn upkeep(
    current: &Authority,
    database: &mut Database,
    password: Option<&Password>,
    now: OffsetDateTime,
) -> Result<Upkeep, AuthorityError> {
    let mut look = Upkeep::default();
    if version(database)? != current.members().bundle.version {
        look.reload(current, database, password)?;
    }
    look.lists(current, database, password, now);
    look.rotate(current, database, password, now);
    let authority = look.changed.as_ref().unwrap_or(current);
    look.done.extend(
        authority.remove_spent_keys(now).into_iter().map(|path| format!("removed {path}, a key of no more use")),
    );
    if version(database)? != look.changed.as_ref().unwrap_or(current).members().bundle.version {
        look.reload(current, database, password)?;
    }
    Ok(look)
}

impl Upkeep {
    fn reload(
        &mut self,
        current: &Authority,
        database: &mut Database,
        password: Option<&Password>,
    ) -> Result<(), AuthorityError> {
        let before = self.changed.as_ref().unwrap_or(current);
        self.changed = Some(before.with_members(database.snapshot(Members::load)?, password)?);
        Ok(())
    }

    /// Signs the lists that are due of every issuer whose key is here.
    fn lists(
        &mut self,
        current: &Authority,
        database: &mut Database,
        password: Option<&Password>,
        now: OffsetDateTime,
    ) {
        let authority = self.changed.as_ref().unwrap_or(current);
        for member in authority.members().all().iter().filter(|member| member.is_of_use(now)) {
            if authority.ring().key_of(&member.row.fingerprint).is_none() {
                continue;
            }
            if let Err(error) = authority.publish_list(database, &member.row.fingerprint, password, now) {
                self.warnings.push(format!("the revocation list of {} is due and not signed: {error}", member.short()));
            }
        }
    }

    /// The next step of the intermediate's rotation, if it is time for one.
    fn rotate(
        &mut self,
        current: &Authority,
        database: &mut Database,
        password: Option<&Password>,
        now: OffsetDateTime,
    ) {
        let authority = self.changed.as_ref().unwrap_or(current);
        let (active, root) = (authority.active(), authority.active_root());
        let left = active.not_after - now;
        // Another replica activated a new root: this one follows.
        let follow = root.state() != AuthorityState::Active;
        if let Some(prepared) = authority.prepared() {
            let prepared_root = authority.members().root_of(prepared).map(Member::state);
            if prepared_root != Some(AuthorityState::Active) || !(follow || left <= activate_left(active)) {
                return;
            }
            match authority.activate(database, password, false, now) {
                Ok(next) => {
                    self.done.push(format!(
                        "the intermediate {} signs from now on, until {}",
                        next.active().short(),
                        rfc3339(next.expires_at())
                    ));
                    self.changed = Some(next);
                }
                Err(error) => self.warnings.push(format!("the prepared intermediate cannot be activated: {error}")),
            }
            return;
        }
        if !follow && left > prepare_left(active) {
            return;
        }
        let Some(signer) = authority.members().roots().find(|it| it.state() == AuthorityState::Active) else { return };
        let ends = rfc3339(active.not_after);
        if authority.ring().key_of(&signer.row.fingerprint).is_none() {
            self.warnings.push(format!(
                "the intermediate ends at {ends} and the root's key is not here to sign the next one; run \"outrigger-ca rotate prepare --root-key FILE\" and \"outrigger-ca rotate activate\""
            ));
            return;
        }
        // What would end no later than the current one is no successor.
        if !follow && signer.not_after <= active.not_after {
            self.warnings.push(format!(
                "the intermediate ends at {ends} and so does its root; begin with a new root: \"outrigger-ca rotate prepare --root\""
            ));
            return;
        }
        let options = PrepareOptions {
            new_root: None,
            root_key: None,
            algorithm: algorithm_of(active),
            ttl: (active.not_after - active.not_before - super::BACKDATE).try_into().unwrap_or(super::MAX_TTL),
            password,
        };
        match authority.prepare_under(database, signer, &options, now) {
            Ok(prepared) => self.done.push(format!(
                "prepared the intermediate {}, until {}",
                prepared.intermediate.short(),
                rfc3339(prepared.intermediate.not_after)
            )),
            Err(error) => self.warnings.push(format!("the next intermediate cannot be made: {error}")),
        }
    }
}

fn version(database: &mut Database) -> Result<u64, AuthorityError> {
    Ok(database.snapshot(|tx| tx.bundle_row())?.version)
}

impl Authority {
    /// The kind of the key that signs.
    pub fn algorithm(&self) -> Algorithm {
        algorithm_of(self.active())
    }
}

/// The kind of a member's key; another than ours becomes the default.
fn algorithm_of(member: &Member) -> Algorithm {
    debug_assert_eq!(member.kind(), AuthorityKind::Intermediate);
    Algorithm::of_public_key(&member.public_key).unwrap_or_default()
}
