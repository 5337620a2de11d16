//! The end of a root or an intermediate, in the only safe order: another signs, the old root is tainted and everybody
//! renews, and only when nobody needs it any more does it go.

use std::path::Path;

use rcgen::Issuer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    AuthorityError, Directory, Member, Members, Password, crl, revocation::revoke_member, rfc3339, rotation::youngest,
};
use crate::store::{AuthorityKind, AuthorityState, CredentialKind, Database, RevocationReason, Transaction};

/// Certificates of workloads that are still good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Living {
    /// How many.
    pub count: u64,
    /// How many of them were not renewed since.
    pub not_renewed: u64,
    /// When the last one ends.
    pub last: Option<OffsetDateTime>,
}

/// What `rotate revoke` is told.
#[derive(Debug)]
pub struct RevokeOptions<'a> {
    /// Ends certificates that are still good.
    pub force: bool,
    /// Why; for the root's revocation list.
    pub reason: RevocationReason,
    /// The file of the root's key, for its list. `None`: the one in the CA's folder.
    pub root_key: Option<&'a Path>,
    /// Opens that key.
    pub password: Option<&'a Password>,
}

/// What was tainted or revoked.
#[derive(Debug)]
pub struct Retired {
    /// The root or intermediate.
    pub member: Member,
    /// The certificates under it that were good at that moment.
    pub living: Living,
}

impl Directory {
    /// Says that a root is about to go: whoever has a certificate under it renews at once.
    pub fn taint(&self, database: &mut Database, named: &str, now: OffsetDateTime) -> Result<Retired, AuthorityError> {
        let root = self.members().find(named)?;
        let name = root.short().to_owned();
        if root.kind() == AuthorityKind::Intermediate {
            return Err(AuthorityError::NotARoot { name });
        }
        match root.state() {
            AuthorityState::Old => {}
            AuthorityState::Active => return Err(AuthorityError::RootActive { name }),
            AuthorityState::Prepared => return Err(AuthorityError::RootUnused { name }),
            state @ (AuthorityState::Tainted | AuthorityState::Revoked) => {
                return Err(AuthorityError::AlreadySo { name, state: state.as_str() });
            }
        }
        database.transaction(|tx| {
            self.refuse_if_signing(&Members::load(tx)?, root)?;
            let step = (AuthorityState::Old, AuthorityState::Tainted);
            let moved = tx.move_authority(&root.row.fingerprint, root.kind(), step, now)?;
            if !moved {
                return Err(AuthorityError::ChangedMeanwhile);
            }
            // What was prepared under it and never signed has no use any more.
            for next in self.members().under(&root.row.fingerprint) {
                let step = (AuthorityState::Prepared, AuthorityState::Old);
                tx.move_authority(&next.row.fingerprint, next.kind(), step, now)?;
            }
            let members = Members::load(tx)?;
            let living = living_under(tx, &members, root, now)?;
            Ok(Retired { member: root.clone(), living })
        })
    }

    /// Ends a root or an intermediate: what leads to it is not accepted any more.
    pub fn revoke_authority(
        &self,
        database: &mut Database,
        named: &str,
        options: &RevokeOptions<'_>,
        now: OffsetDateTime,
    ) -> Result<Retired, AuthorityError> {
        let member = self.members().find(named)?.clone();
        match member.kind() {
            AuthorityKind::Root => self.revoke_root(database, member, options.force, now),
            AuthorityKind::Intermediate => self.revoke_intermediate(database, member, options, now),
        }
    }

    fn revoke_root(
        &self,
        database: &mut Database,
        root: Member,
        force: bool,
        now: OffsetDateTime,
    ) -> Result<Retired, AuthorityError> {
        let name = root.short().to_owned();
        match root.state() {
            AuthorityState::Tainted => {}
            AuthorityState::Active => return Err(AuthorityError::RootActive { name }),
            AuthorityState::Prepared => return Err(AuthorityError::RootUnused { name }),
            AuthorityState::Old => return Err(AuthorityError::NotTainted { name }),
            AuthorityState::Revoked => return Err(AuthorityError::AlreadySo { name, state: "revoked" }),
        }
        database.transaction(|tx| {
            let members = Members::load(tx)?;
            self.refuse_if_signing(&members, &root)?;
            let living = living_under(tx, &members, &root, now)?;
            if let (Some(last), false) = (living.last, force) {
                let (count, not_renewed, last) = (living.count, living.not_renewed, rfc3339(last));
                return Err(AuthorityError::StillUsed { name: name.clone(), count, not_renewed, last });
            }
            let step = (AuthorityState::Tainted, AuthorityState::Revoked);
            if !tx.move_authority(&root.row.fingerprint, root.kind(), step, now)? {
                return Err(AuthorityError::ChangedMeanwhile);
            }
            for under in members.under(&root.row.fingerprint) {
                let step = (under.state(), AuthorityState::Revoked);
                tx.move_authority(&under.row.fingerprint, under.kind(), step, now)?;
            }
            Ok(Retired { member: root.clone(), living })
        })
    }

    fn revoke_intermediate(
        &self,
        database: &mut Database,
        member: Member,
        options: &RevokeOptions<'_>,
        now: OffsetDateTime,
    ) -> Result<Retired, AuthorityError> {
        let name = member.short().to_owned();
        match member.state() {
            AuthorityState::Active => return Err(AuthorityError::IntermediateActive { name }),
            AuthorityState::Revoked => return Err(AuthorityError::AlreadySo { name, state: "revoked" }),
            AuthorityState::Prepared | AuthorityState::Old | AuthorityState::Tainted => {}
        }
        let root = self.members().root_of(&member).ok_or(AuthorityError::NothingActive)?;
        let path = options.root_key.map_or_else(|| self.key_path(root), Path::to_owned);
        let signer = self.issuer(root, &path, options.password)?;
        database.transaction(|tx| {
            let step = (member.state(), AuthorityState::Revoked);
            if !tx.move_authority(&member.row.fingerprint, member.kind(), step, now)? {
                return Err(AuthorityError::ChangedMeanwhile);
            }
            let members = Members::load(tx)?;
            let living = living_of(tx, &members, now, |issuer| issuer.row.fingerprint == member.row.fingerprint)?;
            if let (Some(last), false) = (living.last, options.force) {
                let (count, not_renewed, last) = (living.count, living.not_renewed, rfc3339(last));
                return Err(AuthorityError::StillUsed { name: name.clone(), count, not_renewed, last });
            }
            revoke_member(tx, &member, options.reason, now)?;
            crl::publish(tx, root, &signer, youngest(&members, root), now)?;
            Ok(Retired { member: member.clone(), living })
        })
    }

    /// Another folder's intermediate may sign under a root that this one has left.
    fn refuse_if_signing(&self, members: &Members, root: &Member) -> Result<(), AuthorityError> {
        let mut under = members.under(&root.row.fingerprint);
        match under.find(|it| it.state() == AuthorityState::Active) {
            Some(active) => Err(AuthorityError::StillSigning {
                root: root.short().to_owned(),
                intermediate: active.short().to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// Removes the key files of intermediates that have nothing to sign any more, and gives back their names. Until then
    /// the key is needed for the revocation list.
    pub fn remove_spent_keys(&self, now: OffsetDateTime) -> Vec<String> {
        let over = |member: &&Member| {
            member.kind() == AuthorityKind::Intermediate
                && member.row.fingerprint != self.active().row.fingerprint
                && !member.is_of_use(now)
        };
        let mut removed = Vec::new();
        for member in self.members().all().iter().filter(over) {
            let Some(path) = self.ring().key_of(&member.row.fingerprint) else { continue };
            match std::fs::remove_file(path) {
                Ok(()) => removed.push(path.display().to_string()),
                Err(error) => tracing::warn!(file = %path.display(), %error, "an old key could not be removed"),
            }
        }
        removed
    }
}

/// The certificates of workloads under a root that are still good. The server's own are not counted: it makes itself
/// another as soon as another intermediate signs.
pub(super) fn living_under(
    tx: &mut Transaction<'_>,
    members: &Members,
    root: &Member,
    now: OffsetDateTime,
) -> Result<Living, AuthorityError> {
    living_of(tx, members, now, |issuer| issuer.row.issuer.as_deref() == Some(&root.row.fingerprint))
}

fn living_of(
    tx: &mut Transaction<'_>,
    members: &Members,
    now: OffsetDateTime,
    counts: impl Fn(&Member) -> bool,
) -> Result<Living, AuthorityError> {
    let mut found = Vec::new();
    let mut renewed = std::collections::HashSet::new();
    tx.for_each_unexpired::<AuthorityError>(now, |tx, entry| {
        if entry.credential == CredentialKind::Certificate {
            renewed.extend(entry.credential_ref);
        }
        if entry.credential == CredentialKind::Server || tx.revoked_at(&entry.serial)?.is_some() {
            return Ok(());
        }
        // A certificate that cannot be read counts: it might be one of them.
        let counted = match X509Certificate::from_der(&entry.certificate) {
            Ok((_, parsed)) => members.issuer_of(&parsed).is_none_or(&counts),
            Err(_) => true,
        };
        if counted {
            found.push((entry.serial, entry.not_after));
        }
        Ok(())
    })?;
    Ok(Living {
        count: found.len() as u64,
        not_renewed: found.iter().filter(|(serial, _)| !renewed.contains(serial)).count() as u64,
        last: found.iter().map(|(_, not_after)| *not_after).max(),
    })
}

/// A member's revocation list with a key from its file.
pub(super) fn publish_with(
    tx: &mut Transaction<'_>,
    members: &Members,
    member: &Member,
    signer: &Issuer<'static, super::SecretKey>,
    now: OffsetDateTime,
) -> Result<(), AuthorityError> {
    crl::publish(tx, member, signer, youngest(members, member), now)
}
