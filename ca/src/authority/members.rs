//! The roots and intermediates of a trust domain as the database has them at one moment, with the bundle's numbers and the
//! revocation lists that go with them.

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use x509_parser::{
    extensions::ParsedExtension,
    prelude::{FromDer, X509Certificate},
};

use super::{AuthorityError, MAX_TTL, hex};
use crate::store::{AuthorityKind, AuthorityRow, AuthorityState, BundleRow, CrlRow, StoreError, Transaction};

/// The fewest hex digits that name an authority on a command line.
pub const MIN_FINGERPRINT_LEN: usize = 8;

/// One root or intermediate.
#[derive(Debug, Clone)]
pub struct Member {
    /// What the database has.
    pub row: AuthorityRow,
    /// Its certificate.
    pub der: CertificateDer<'static>,
    /// The same as PEM.
    pub pem: String,
    /// Its serial, lower-case hex.
    pub serial: String,
    /// First second of validity.
    pub not_before: OffsetDateTime,
    /// Last second of validity.
    pub not_after: OffsetDateTime,
    /// Its subjectKeyIdentifier, which what it signs names.
    pub key_id: Option<Vec<u8>>,
    subject: Vec<u8>,
    pub(super) public_key: Vec<u8>,
}

impl Member {
    pub(super) fn of(row: AuthorityRow) -> Result<Self, StoreError> {
        let der = CertificateDer::from(row.certificate.clone());
        let damaged = || StoreError::Damaged(format!("an authority that is no certificate: {}", row.fingerprint));
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| damaged())?;
        let member = Self {
            serial: hex(parsed.raw_serial()),
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
            key_id: subject_key_id(&parsed),
            subject: parsed.subject().as_raw().to_vec(),
            public_key: parsed.public_key().raw.to_vec(),
            pem: to_pem(&der),
            der: der.clone(),
            row,
        };
        Ok(member)
    }

    /// The first digits of its fingerprint, as people see it.
    pub fn short(&self) -> &str {
        self.row.fingerprint.get(..16).unwrap_or(&self.row.fingerprint)
    }

    /// Root or intermediate.
    pub fn kind(&self) -> AuthorityKind {
        self.row.kind
    }

    /// Where it stands.
    pub fn state(&self) -> AuthorityState {
        self.row.state
    }

    /// The share of its lifetime that is left at `now`, 0.0 to 1.0.
    pub fn lifetime_left(&self, now: OffsetDateTime) -> f64 {
        let whole = (self.not_after - self.not_before).as_seconds_f64();
        ((self.not_after - now).as_seconds_f64() / whole).clamp(0.0, 1.0)
    }

    /// Whether a certificate that it signed may still be good at `now`: until then its revocation list is of use, and
    /// so is the key that signs the list.
    pub fn is_of_use(&self, now: OffsetDateTime) -> bool {
        if now > self.not_after {
            return false;
        }
        match (self.kind(), self.state()) {
            (AuthorityKind::Root, state) => state != AuthorityState::Revoked,
            (_, AuthorityState::Prepared | AuthorityState::Active) => true,
            (_, AuthorityState::Old | AuthorityState::Tainted) => now <= self.row.changed_at + MAX_TTL,
            (_, AuthorityState::Revoked) => false,
        }
    }

    /// Whether it is the issuer that a certificate names.
    pub(crate) fn has_signed(&self, certificate: &X509Certificate<'_>) -> bool {
        self.subject == certificate.issuer().as_raw()
            && match (&self.key_id, authority_key_id(certificate)) {
                (Some(own), Some(named)) => *own == named,
                _ => true,
            }
    }
}

/// Everything at one moment.
#[derive(Debug, Clone)]
pub struct Members {
    all: Vec<Member>,
    /// The bundle's numbers.
    pub bundle: BundleRow,
    crls: Vec<CrlRow>,
}

impl Members {
    /// Reads them.
    pub fn load(tx: &mut Transaction<'_>) -> Result<Self, StoreError> {
        let bundle = tx.bundle_row()?;
        let all = tx.list_authorities()?.into_iter().map(Member::of).collect::<Result<Vec<_>, _>>()?;
        let mut crls = Vec::new();
        for member in &all {
            crls.extend(tx.crl_of(&member.row.fingerprint)?);
        }
        Ok(Self { all, bundle, crls })
    }

    /// Every one that was ever recorded, oldest first.
    pub fn all(&self) -> &[Member] {
        &self.all
    }

    /// The roots that verifiers must trust: the one that signs first, then by age.
    pub fn roots(&self) -> impl Iterator<Item = &Member> {
        let trusted = |active: bool| {
            self.all.iter().filter(move |member| {
                member.kind() == AuthorityKind::Root
                    && member.state() != AuthorityState::Revoked
                    && (member.state() == AuthorityState::Active) == active
            })
        };
        trusted(true).chain(trusted(false))
    }

    /// The intermediates in a state, newest first.
    pub fn intermediates(&self, state: AuthorityState) -> impl Iterator<Item = &Member> {
        self.all.iter().rev().filter(move |it| it.kind() == AuthorityKind::Intermediate && it.state() == state)
    }

    /// The intermediates that a root has signed.
    pub fn under(&self, root: &str) -> impl Iterator<Item = &Member> {
        self.all.iter().filter(move |member| member.row.issuer.as_deref() == Some(root))
    }

    /// The one with this fingerprint.
    pub fn get(&self, fingerprint: &str) -> Option<&Member> {
        self.all.iter().find(|member| member.row.fingerprint == fingerprint)
    }

    /// The root that has signed an intermediate.
    pub fn root_of(&self, intermediate: &Member) -> Option<&Member> {
        self.get(intermediate.row.issuer.as_deref()?)
    }

    /// The one whose fingerprint or serial begins with these hex digits; colons between them are ignored.
    pub fn find(&self, digits: &str) -> Result<&Member, AuthorityError> {
        let wanted: String = digits.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
        let bad = |why: &str| AuthorityError::NoAuthority { named: digits.to_owned(), why: why.to_owned() };
        if wanted.len() < MIN_FINGERPRINT_LEN || !wanted.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad("give at least 8 hex digits of its fingerprint or serial"));
        }
        let mut found =
            self.all.iter().filter(|it| it.row.fingerprint.starts_with(&wanted) || it.serial.starts_with(&wanted));
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(bad("there is none")),
            (Some(_), Some(_)) => Err(bad("there is more than one; give more digits")),
        }
    }

    /// The authority that has signed a certificate, by the names in it.
    pub fn issuer_of(&self, certificate: &X509Certificate<'_>) -> Option<&Member> {
        self.all.iter().find(|member| member.has_signed(certificate))
    }

    /// The newest revocation list of each issuer that is of use at `now`.
    pub fn crls(&self, now: OffsetDateTime) -> impl Iterator<Item = &CrlRow> {
        self.crls.iter().filter(move |crl| self.get(&crl.issuer).is_some_and(|issuer| issuer.is_of_use(now)))
    }

    /// The newest revocation list of one issuer.
    pub fn crl_of(&self, fingerprint: &str) -> Option<&CrlRow> {
        self.crls.iter().find(|crl| crl.issuer == fingerprint)
    }
}

/// The name of a certificate's bytes.
pub fn fingerprint(der: &[u8]) -> String {
    hex(&Sha256::digest(der))
}

pub(super) fn to_pem(der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der), config)
}

pub(super) fn subject_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn authority_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}
