//! A new intermediate, and with it a new root where one is wished: prepared while the old one signs, then activated in one
//! stroke.
//!
//! Keys and certificates are written as files first and recorded last, in one transaction, so a crash leaves files that
//! nothing refers to, or everything. Under the same root verifiers notice nothing: every leaf travels with the
//! intermediate that signed it. A new root must be in every verifier's bundle before anything under it is shown to one,
//! so it joins the bundle when it is prepared and signs only after verifiers had the time to look.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{Issuer, PublicKeyData as _};
use time::OffsetDateTime;

use super::{
    Algorithm, Authority, AuthorityError, Directory, Member, Members, Password, SecretKey, crl, files, hex,
    members::fingerprint, profile, rfc3339, sealed,
};
use crate::store::{AuthorityKind, AuthorityRow, AuthorityState, Database};

/// So many refresh hints a new root must have been in the bundle before anything is signed under it.
const HINTS_BEFORE_USE: u32 = 2;

/// A new root.
#[derive(Debug)]
pub struct NewRoot {
    /// Its lifetime.
    pub ttl: Duration,
    /// Where its key goes instead of the CA's folder; nothing may be there yet.
    pub offline: Option<PathBuf>,
}

/// What `rotate prepare` is told.
#[derive(Debug)]
pub struct PrepareOptions<'a> {
    /// Makes a new root first. `None`: the root whose key is used.
    pub new_root: Option<NewRoot>,
    /// The file of the root's key. `None`: that of a prepared root or else of the active one, in the CA's folder.
    pub root_key: Option<&'a Path>,
    /// The kind of the new keys.
    pub algorithm: Algorithm,
    /// Lifetime of the intermediate; it ends with the root's at the latest.
    pub ttl: Duration,
    /// Opens the keys that are there and encrypts the new ones.
    pub password: Option<&'a Password>,
}

/// What was prepared.
#[derive(Debug)]
pub struct Prepared {
    /// The next intermediate.
    pub intermediate: Member,
    /// Its root.
    pub root: Member,
    /// Whether the root is new.
    pub new_root: bool,
    /// When [`Authority::activate`] will let it sign.
    pub ready_at: OffsetDateTime,
}

/// A root with its key.
struct Signer {
    root: Member,
    issuer: Issuer<'static, SecretKey>,
}

impl Authority {
    /// Makes the next intermediate; the current one goes on signing.
    pub fn prepare(
        &self,
        database: &mut Database,
        options: &PrepareOptions<'_>,
        now: OffsetDateTime,
    ) -> Result<Prepared, AuthorityError> {
        self.prepare_with(database, options, now, |made| match &options.new_root {
            Some(wish) => self.make_root(wish, options, now, made),
            None => self.find_root(options.root_key, options.password),
        })
    }

    /// As [`Self::prepare`], under a root whose key is in this folder.
    pub(super) fn prepare_under(
        &self,
        database: &mut Database,
        root: &Member,
        options: &PrepareOptions<'_>,
        now: OffsetDateTime,
    ) -> Result<Prepared, AuthorityError> {
        self.prepare_with(database, options, now, |_| {
            let issuer = self.issuer(root, &self.key_path(root), options.password)?;
            Ok(Signer { root: root.clone(), issuer })
        })
    }

    fn prepare_with(
        &self,
        database: &mut Database,
        options: &PrepareOptions<'_>,
        now: OffsetDateTime,
        signer: impl FnOnce(&mut Made) -> Result<Signer, AuthorityError>,
    ) -> Result<Prepared, AuthorityError> {
        if let Some(prepared) = self.prepared() {
            return Err(AuthorityError::AlreadyPrepared { name: prepared.short().to_owned() });
        }
        let mut made = Made::default();
        let result = signer(&mut made).and_then(|signer| self.make(database, signer, options, now, &mut made));
        // Nothing refers to them; after a failure of the database that is not certain.
        if result.as_ref().is_err_and(|error| !matches!(error, AuthorityError::Store(_))) {
            made.remove();
        }
        result
    }

    fn make(
        &self,
        database: &mut Database,
        signer: Signer,
        options: &PrepareOptions<'_>,
        now: OffsetDateTime,
        made: &mut Made,
    ) -> Result<Prepared, AuthorityError> {
        let root = &signer.root;
        if now >= root.not_after {
            return Err(AuthorityError::RootExpired { at: rfc3339(root.not_after) });
        }
        let window = profile::Window::new(now, options.ttl)?;
        let window = profile::Window { not_after: window.not_after.min(root.not_after), ..window };
        let key = SecretKey::generate(options.algorithm)?;
        let certificate = profile::intermediate(self.trust_domain(), &window)?.signed_by(&key, &signer.issuer)?;
        let row = row(AuthorityKind::Intermediate, certificate.der(), Some(root), now);
        let intermediate = Member::of(row)?;
        made.write(&self.dir, "intermediate", &window, &key, &intermediate.pem, options.password)?;

        let issuer = Issuer::from_ca_cert_der(&intermediate.der, key)?;
        database.transaction(|tx| {
            let members = Members::load(tx)?;
            // Somebody else may have been faster.
            if let Some(other) = self.directory.with_members(members)?.prepared() {
                return Err(AuthorityError::AlreadyPrepared { name: other.short().to_owned() });
            }
            if options.new_root.is_some() {
                tx.insert_authority(&root.row)?;
            }
            tx.insert_authority(&intermediate.row)?;
            crl::publish(tx, &intermediate, &issuer, None, now)?;
            let youngest = youngest(&Members::load(tx)?, root);
            crl::publish(tx, root, &signer.issuer, youngest, now)
        })?;
        let new_root = options.new_root.is_some();
        let ready_at = self.ready_at(root).unwrap_or(now);
        Ok(Prepared { intermediate, root: signer.root, new_root, ready_at })
    }

    fn make_root(
        &self,
        wish: &NewRoot,
        options: &PrepareOptions<'_>,
        now: OffsetDateTime,
        made: &mut Made,
    ) -> Result<Signer, AuthorityError> {
        if let Some(other) = self.members().roots().find(|root| root.state() == AuthorityState::Prepared) {
            return Err(AuthorityError::RootPrepared { name: other.short().to_owned() });
        }
        if let Some(path) = &wish.offline {
            super::ceremony::refuse_inside(path, &self.dir)?;
        }
        let window = profile::Window::new(now, wish.ttl)?;
        let key = SecretKey::generate(options.algorithm)?;
        let certificate = profile::root(self.trust_domain(), &window)?.self_signed(&key)?;
        let root = Member::of(row(AuthorityKind::Root, certificate.der(), None, now))?;
        match &wish.offline {
            Some(path) => {
                made.write_key(path, &key, options.password)?;
                let name = format!("root-{}", hex(&window.serial[..8]));
                made.write_certificate(&self.dir.join(format!("{name}.pem")), &root.pem)?;
            }
            None => made.write(&self.dir, "root", &window, &key, &root.pem, options.password)?,
        }
        let issuer = Issuer::from_ca_cert_der(&root.der, key)?;
        Ok(Signer { root, issuer })
    }

    /// The root whose key is at hand: a prepared one counts before the active one.
    fn find_root(&self, file: Option<&Path>, password: Option<&Password>) -> Result<Signer, AuthorityError> {
        let usable = |state| move |root: &&Member| root.state() == state;
        let prepared = self.members().roots().find(usable(AuthorityState::Prepared));
        let active = self.members().roots().find(usable(AuthorityState::Active));
        let Some(file) = file else {
            let at_hand = prepared.filter(|root| self.ring().key_of(&root.row.fingerprint).is_some()).or(active);
            let root = at_hand.unwrap_or(self.active_root());
            let issuer = self.issuer(root, &self.key_path(root), password)?;
            return Ok(Signer { root: root.clone(), issuer });
        };
        let key = sealed::open(file, password)?;
        let public = key.subject_public_key_info();
        let fitting = [prepared, active].into_iter().flatten().find(|root| root.public_key == public);
        let Some(root) = fitting else {
            let names: Vec<_> = [prepared, active].into_iter().flatten().map(Member::short).collect();
            let why = format!("it is not the key of a root that may sign here ({})", names.join(", "));
            return Err(files::damaged(file, why));
        };
        Ok(Signer { root: root.clone(), issuer: Issuer::from_ca_cert_der(&root.der, key)? })
    }

    /// Lets the prepared intermediate sign from now on, and with it its root. A server that runs takes it up by itself.
    /// `force` does not wait until verifiers have a new root.
    pub fn activate(
        &self,
        database: &mut Database,
        password: Option<&Password>,
        force: bool,
        now: OffsetDateTime,
    ) -> Result<Self, AuthorityError> {
        self.directory.activate(database, password, force, now)
    }
}

impl Directory {
    /// As [`Authority::activate`]; the key of the intermediate that goes is not needed.
    pub fn activate(
        &self,
        database: &mut Database,
        password: Option<&Password>,
        force: bool,
        now: OffsetDateTime,
    ) -> Result<Authority, AuthorityError> {
        let Some(next) = self.prepared() else { return Err(AuthorityError::NothingPrepared) };
        // What cannot be used must not come into use.
        self.issuer(next, &self.key_path(next), password)?;
        if now >= next.not_after {
            return Err(AuthorityError::IssuerExpired { at: rfc3339(next.not_after) });
        }
        let root = self.members().root_of(next).ok_or(AuthorityError::NothingActive)?;
        match root.state() {
            AuthorityState::Active => {}
            AuthorityState::Prepared => {
                let ready_at = self.ready_at(root).unwrap_or(now);
                if !force && now < ready_at {
                    return Err(AuthorityError::NotPublished {
                        root: root.short().to_owned(),
                        since: rfc3339(root.row.created_at),
                        hint: self.members().bundle.refresh_hint,
                        ready_at: rfc3339(ready_at),
                    });
                }
            }
            AuthorityState::Old | AuthorityState::Tainted | AuthorityState::Revoked => {
                return Err(AuthorityError::UnderRetiredRoot {
                    name: next.short().to_owned(),
                    root: root.short().to_owned(),
                    state: root.state().as_str(),
                });
            }
        }
        let (from, current) = (next.row.fingerprint.as_str(), self.active());
        let stale = || AuthorityError::ChangedMeanwhile;
        database.transaction(|tx| {
            let mut step = |member: &Member, to: AuthorityState| {
                tx.move_authority(&member.row.fingerprint, member.kind(), (member.state(), to), now)
            };
            if root.state() == AuthorityState::Prepared {
                for old in self.members().roots().filter(|it| it.state() == AuthorityState::Active) {
                    step(old, AuthorityState::Old)?.then_some(()).ok_or_else(stale)?;
                }
                step(root, AuthorityState::Active)?.then_some(()).ok_or_else(stale)?;
            }
            if current.state() == AuthorityState::Active && current.row.fingerprint != from {
                step(current, AuthorityState::Old)?.then_some(()).ok_or_else(stale)?;
            }
            step(next, AuthorityState::Active)?.then_some(()).ok_or_else(stale)
        })?;
        self.with_members(database.snapshot(Members::load)?)?.unlock(password)
    }

    /// Whether the prepared intermediate's key can be opened and is its own. Nothing prepared is no error.
    pub fn try_prepared(&self, password: Option<&Password>) -> Result<(), AuthorityError> {
        let Some(next) = self.prepared() else { return Ok(()) };
        self.issuer(next, &self.key_path(next), password).map(drop)
    }

    /// When a root has been in the bundle long enough to be used; `None`: it is in use already.
    pub fn ready_at(&self, root: &Member) -> Option<OffsetDateTime> {
        let wait = self.members().bundle.refresh_hint * HINTS_BEFORE_USE;
        (root.state() == AuthorityState::Prepared).then(|| root.row.created_at + wait)
    }
}

/// The end of the youngest intermediate under a root that is not revoked.
pub(super) fn youngest(members: &Members, root: &Member) -> Option<OffsetDateTime> {
    let alive = members.under(&root.row.fingerprint).filter(|it| it.state() != AuthorityState::Revoked);
    alive.map(|it| it.not_after).max()
}

fn row(kind: AuthorityKind, der: &[u8], issuer: Option<&Member>, now: OffsetDateTime) -> AuthorityRow {
    AuthorityRow {
        fingerprint: fingerprint(der),
        kind,
        state: AuthorityState::Prepared,
        issuer: issuer.map(|issuer| issuer.row.fingerprint.clone()),
        certificate: der.to_vec(),
        created_at: now,
        changed_at: now,
    }
}

/// Files that were written and are not recorded yet.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn write(
        &mut self,
        dir: &Path,
        kind: &str,
        window: &profile::Window,
        key: &SecretKey,
        pem: &str,
        password: Option<&Password>,
    ) -> Result<(), AuthorityError> {
        let name = format!("{kind}-{}", hex(&window.serial[..8]));
        self.write_key(&dir.join(format!("{name}-key.pem")), key, password)?;
        self.write_certificate(&dir.join(format!("{name}.pem")), pem)
    }

    fn write_key(&mut self, path: &Path, key: &SecretKey, password: Option<&Password>) -> Result<(), AuthorityError> {
        files::write_new_secret(path, &sealed::seal(key, password)?).map_err(not_written)?;
        self.0.push(path.to_owned());
        Ok(())
    }

    fn write_certificate(&mut self, path: &Path, pem: &str) -> Result<(), AuthorityError> {
        files::write_public(path, pem).map_err(not_written)?;
        self.0.push(path.to_owned());
        Ok(())
    }

    fn remove(&self) {
        for path in &self.0 {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(file = %path.display(), %error, "a file that nothing refers to could not be removed");
            }
        }
    }
}

fn not_written(error: files::OutputError) -> AuthorityError {
    AuthorityError::File { action: "write", path: error.path, source: error.source }
}
