//! A CA's folder: its settings, its key files, and what the database says of the authorities whose keys they are.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{Issuer, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use super::{
    Authority, AuthorityError, DATABASE, Member, Members, Password, ROOT_KEY, SETTINGS, ServerNameText, Settings,
    Subject, SubjectError, files, import, keyring::Keyring, sealed, whole_second,
};
use crate::store::{AuthorityState, Claim, Database, Location, StoreError};
use outrigger_identity::TrustDomain;

/// A CA's folder, without its keys: what it is and whom it may name.
pub struct Directory {
    pub(super) dir: PathBuf,
    settings: Settings,
    members: Members,
    ring: Keyring,
    active: Member,
    root: Member,
    bundle_pem: String,
    only_looks: bool,
}

impl Directory {
    /// Reads a directory made by [`super::init`] and what its database says of it, and no key. What an earlier version left
    /// is brought up to date.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let (settings, location) = Self::settings(dir)?;
        let mut database = Database::at(&location, &settings.trust_domain, Claim::Existing)?;
        import::run(&mut database, dir, &settings, OffsetDateTime::now_utc())?;
        Self::of(dir.to_owned(), settings, database.snapshot(Members::load)?)
    }

    /// The same for who only looks: nothing is changed, and no writer kept waiting.
    pub fn look(dir: &Path) -> Result<Self, AuthorityError> {
        let (settings, location) = Self::settings(dir)?;
        let mut database = Database::look(&location, &settings.trust_domain)?;
        let this = Self::of(dir.to_owned(), settings, database.snapshot(Members::load)?)?;
        Ok(Self { only_looks: true, ..this })
    }

    /// Keeps `init --force` from replacing the CA in this folder until the file is dropped; to be called before it is opened.
    /// `None`: that is under way.
    pub fn hold(dir: &Path) -> Result<Option<std::fs::File>, AuthorityError> {
        match files::hold(dir, false) {
            // That there is no CA, opening it says better.
            Err(_) if !dir.exists() => Err(AuthorityError::Missing { dir: dir.display().to_string() }),
            held => held,
        }
    }

    /// Whether its database is to be looked at only.
    pub fn only_looks(&self) -> bool {
        self.only_looks
    }

    fn settings(dir: &Path) -> Result<(Settings, Location), AuthorityError> {
        let settings_path = dir.join(SETTINGS);
        let text = match std::fs::read(&settings_path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(AuthorityError::Missing { dir: dir.display().to_string() });
            }
            Err(source) => return Err(files::error("read", &settings_path, source)),
        };
        let settings: Settings =
            serde_json::from_slice(&text).map_err(|e| files::damaged(&settings_path, e.to_string()))?;
        let location = Location::choose(settings.database.as_deref(), &dir.join(DATABASE))?;
        Ok((settings, location))
    }

    fn of(dir: PathBuf, settings: Settings, members: Members) -> Result<Self, AuthorityError> {
        let ring = Keyring::of(&dir)?;
        // Other replicas have active intermediates too; ours is the one whose certificate lies here.
        let ours = |member: &&Member| ring.get(&member.row.fingerprint).is_some();
        let active = members.intermediates(AuthorityState::Active).find(ours);
        let active = active.or_else(|| members.intermediates(AuthorityState::Active).next());
        let active = active.cloned().ok_or(AuthorityError::NothingActive)?;
        let root = members.root_of(&active).cloned().ok_or(AuthorityError::NothingActive)?;
        let bundle_pem = members.bundle_pem();
        Ok(Self { dir, settings, members, ring, active, root, bundle_pem, only_looks: false })
    }

    pub(super) fn with_members(&self, members: Members) -> Result<Self, AuthorityError> {
        Self::of(self.dir.clone(), self.settings.clone(), members)
    }

    /// Reads the intermediate's key too, with the password if it is encrypted.
    pub fn unlock(self, password: Option<&Password>) -> Result<Authority, AuthorityError> {
        self.check_active()?;
        let issuer = self.issuer(&self.active, &self.intermediate_key_path(), password)?;
        Ok(Authority { directory: self, issuer: Arc::new(issuer), opened_at: whole_second(OffsetDateTime::now_utc()) })
    }

    /// What would be signed with another intermediate leads nowhere, or into another trust domain.
    fn check_active(&self) -> Result<(), AuthorityError> {
        let path = self.certificate_path(&self.active);
        let damaged = |why: String| files::damaged(&path, why);
        let read = |der| X509Certificate::from_der(der).map(|(_, certificate)| certificate);
        let active = read(&self.active.der).map_err(|e| damaged(e.to_string()))?;
        let root = read(&self.root.der).map_err(|e| damaged(e.to_string()))?;
        if active.verify_signature(Some(root.public_key())).is_err() {
            return Err(damaged(format!("the root \"{}\" has not signed it", root.subject())));
        }
        let own = format!("spiffe://{}", self.settings.trust_domain);
        let names = active.subject_alternative_name().map_err(|e| damaged(e.to_string()))?;
        let foreign = names.iter().flat_map(|names| &names.value.general_names).find_map(|name| match name {
            GeneralName::URI(uri) if *uri != own => Some((*uri).to_owned()),
            _ => None,
        });
        match foreign {
            Some(uri) => Err(damaged(format!("it is for {uri}, and this CA for {own}"))),
            None => Ok(()),
        }
    }

    /// A member with its key, which must be the one in the file.
    pub(super) fn issuer(
        &self,
        member: &Member,
        key_path: &Path,
        password: Option<&Password>,
    ) -> Result<Issuer<'static, super::SecretKey>, AuthorityError> {
        let key = sealed::open(key_path, password)?;
        if key.subject_public_key_info() != member.public_key {
            let certificate = self.certificate_path(member);
            return Err(files::damaged(key_path, format!("it is not the key of {}", certificate.display())));
        }
        Ok(Issuer::from_ca_cert_der(&member.der, key)?)
    }

    /// The trust domain that this CA speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.settings.trust_domain
    }

    /// DNS names and IP addresses of the enrolment server.
    pub fn server_names(&self) -> &[String] {
        &self.settings.names
    }

    pub(super) fn add_server_name(&mut self, name: ServerNameText) {
        if !self.settings.names.iter().any(|n| n == name.as_str()) {
            self.settings.names.push(name.into());
        }
    }

    /// The database of this CA.
    pub fn database(&self) -> Result<Location, StoreError> {
        Location::choose(self.settings.database.as_deref(), &self.database_path())
    }

    /// Where the issuance log is, unless it is in a shared database.
    pub fn database_path(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Every root and intermediate.
    pub fn members(&self) -> &Members {
        &self.members
    }

    pub(super) fn ring(&self) -> &Keyring {
        &self.ring
    }

    /// The intermediate that signs here.
    pub fn active(&self) -> &Member {
        &self.active
    }

    /// The next intermediate of this folder, if one is prepared.
    pub fn prepared(&self) -> Option<&Member> {
        let mut prepared = self.members.intermediates(AuthorityState::Prepared);
        prepared.find(|member| self.ring.get(&member.row.fingerprint).is_some())
    }

    fn certificate_path(&self, member: &Member) -> PathBuf {
        let file = self.ring.get(&member.row.fingerprint);
        file.map_or_else(|| self.dir.join(format!("{}.pem", member.kind().as_str())), |f| f.certificate.clone())
    }

    /// Where a member's key is, or would be if it were here.
    pub fn key_path(&self, member: &Member) -> PathBuf {
        let file = self.ring.get(&member.row.fingerprint);
        file.map_or_else(|| self.dir.join(format!("{}-key.pem", member.kind().as_str())), |f| f.key.clone())
    }

    /// Where the active root's key is, unless it is kept elsewhere.
    pub fn root_key_path(&self) -> PathBuf {
        let file = self.ring.get(&self.root.row.fingerprint);
        file.map_or_else(|| self.dir.join(ROOT_KEY), |file| file.key.clone())
    }

    /// Where the intermediate's key is.
    pub fn intermediate_key_path(&self) -> PathBuf {
        self.key_path(&self.active)
    }

    /// The root of the intermediate that signs here.
    pub fn active_root(&self) -> &Member {
        &self.root
    }

    /// The root of the intermediate that signs here.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root.der
    }

    /// The same as PEM: the last of an enrolled workload's chain.
    pub fn root_pem(&self) -> &str {
        &self.root.pem
    }

    /// The intermediate, which travels with every leaf.
    pub fn intermediate(&self) -> &CertificateDer<'static> {
        &self.active.der
    }

    /// The intermediate as PEM.
    pub fn intermediate_pem(&self) -> &str {
        &self.active.pem
    }

    /// The trust bundle as PEM: every root that verifiers must trust.
    pub fn bundle_pem(&self) -> &str {
        &self.bundle_pem
    }

    /// The last second at which this CA can sign.
    pub fn expires_at(&self) -> OffsetDateTime {
        self.active.not_after
    }

    /// The share of the intermediate's lifetime that is left at `now`, 0.0 to 1.0.
    pub fn lifetime_left(&self, now: OffsetDateTime) -> f64 {
        self.active.lifetime_left(now)
    }

    /// Parses a workload's id and DNS names and checks that this CA may put them into a certificate.
    pub fn subject(&self, id: &str, dns_names: &[String]) -> Result<Subject, AuthorityError> {
        let subject = Subject::parse(id, dns_names)?;
        self.check(&subject)?;
        Ok(subject)
    }

    pub(super) fn check(&self, subject: &Subject) -> Result<(), AuthorityError> {
        if !subject.id.is_member_of(&self.settings.trust_domain) {
            return Err(SubjectError::OtherTrustDomain {
                id: subject.id.to_string(),
                trust_domain: self.settings.trust_domain.to_string(),
            }
            .into());
        }
        // Whoever holds the CA's own name could stand between the CA and those who enrol.
        match subject.dns_names.iter().find(|n| self.settings.names.contains(n)) {
            Some(name) => Err(SubjectError::ReservedName(name.clone()).into()),
            None => Ok(()),
        }
    }
}
