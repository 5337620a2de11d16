//! What issuers took back: their revocation lists (RFC 5280 section 5), read once and looked into at each handshake.
//!
//! webpki can look into lists itself, but takes the first that bears an issuer's name: during a rotation two issuers have
//! one, and it would refuse everybody whose issuer is the other. Here a list counts for an issuer when its signature is by that
//! issuer's key, and that is found out once for each issuer. A certificate without a list is taken, and a list past its
//! nextUpdate still counts: what is revoked stays so, and a CA that is away must not stop a mesh.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rustls::pki_types::{CertificateRevocationListDer, pem::PemObject};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::{
    extensions::ParsedExtension,
    prelude::{CertificateRevocationList, FromDer, X509Certificate},
    x509::SubjectPublicKeyInfo,
};

use super::{bundle::to_pem, certificate::system_time};

/// The lists of all issuers.
#[derive(Debug, Default)]
pub struct RevocationLists(Vec<Arc<RevocationList>>);

/// The list of one issuer.
pub struct RevocationList {
    /// The issuer's name, as `CN=mesh.example intermediate`.
    pub issuer: String,
    /// cRLNumber, big-endian without leading zeros; empty where it has none.
    pub number: Vec<u8>,
    /// When the next one was to come.
    pub next_update: Option<SystemTime>,
    /// Certificates on it.
    pub revoked: usize,
    issuer_raw: Vec<u8>,
    key_id: Option<Vec<u8>>,
    der: CertificateRevocationListDer<'static>,
    serials: CertRevocationList<'static>,
    /// Keys of issuers of this name, and whether the list is signed by them. Only keys that lead to a root come here.
    judged: Mutex<Vec<(Vec<u8>, bool)>>,
}

/// Why revocation lists cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Not PEM.
    #[error("it is not PEM: {0}")]
    NotPem(String),
    /// No list inside; an issuer that revoked nothing has an empty one.
    #[error("it holds no revocation list")]
    Empty,
    /// A list inside cannot be read.
    #[error("revocation list {number} of it cannot be used: {why}")]
    Bad {
        /// Counted from 1.
        number: usize,
        /// What is wrong.
        why: String,
    },
}

/// Who signed something: what a list must fit to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signer<'a> {
    /// The name, DER.
    pub(super) name: &'a [u8],
    /// subjectKeyIdentifier.
    pub(super) key_id: Option<&'a [u8]>,
    /// The public key (SubjectPublicKeyInfo), DER.
    pub(super) key: &'a [u8],
    /// Whether its key usage allows lists.
    pub(super) signs_lists: bool,
}

impl<'a> Signer<'a> {
    pub(super) fn of(certificate: &'a X509Certificate<'a>) -> Self {
        let key_id = certificate.iter_extensions().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        });
        Self {
            name: certificate.subject().as_raw(),
            key_id,
            key: certificate.public_key().raw,
            signs_lists: signs_lists(certificate),
        }
    }
}

/// RFC 5280 section 6.3.3 (f): where the key usage is there it must have cRLSign.
pub(super) fn signs_lists(certificate: &X509Certificate<'_>) -> bool {
    match certificate.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.crl_sign()),
        Err(_) => false,
    }
}

impl RevocationLists {
    /// Reads every list of a PEM text. Signatures are looked at later, see [`RevocationLists::revokes`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, CrlError> {
        let ders = CertificateRevocationListDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| CrlError::NotPem(e.to_string()))?;
        if ders.is_empty() { Err(CrlError::Empty) } else { Self::from_der(ders) }
    }

    /// Reads lists; there need not be any.
    pub fn from_der(ders: Vec<CertificateRevocationListDer<'static>>) -> Result<Self, CrlError> {
        let read =
            |(at, der)| RevocationList::read(der).map(Arc::new).map_err(|why| CrlError::Bad { number: at + 1, why });
        ders.into_iter().enumerate().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// The lists, in the order of the file.
    pub fn lists(&self) -> &[Arc<RevocationList>] {
        &self.0
    }

    /// The same as PEM.
    pub fn to_pem(&self) -> String {
        self.0.iter().map(|list| to_pem("X509 CRL", &list.der)).collect()
    }

    /// Whether both hold the same lists in the same order.
    pub fn same_as(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| a.der == b.der)
    }

    /// Whether a list that is truly the signer's has this serial, as it stands in the certificate.
    pub(super) fn revokes(&self, serial: &[u8], signer: Signer<'_>) -> bool {
        self.0.iter().any(|list| list.has(serial) && list.is_of(signer))
    }

    /// The first list that names one of these signers, by name and key id, and is not signed by it: somebody altered it.
    pub(super) fn forged(&self, signers: &[Signer<'_>]) -> Option<&RevocationList> {
        let forged = |list: &&Arc<RevocationList>| {
            let mut named = signers.iter().filter(|s| s.signs_lists && list.key_id.is_some() && list.names(**s));
            named.any(|signer| !list.is_of(*signer))
        };
        self.0.iter().find(forged).map(|list| &**list)
    }

    /// Keeps what `known` has beyond these lists: a replica may be behind the others, or a CA restored from a backup that
    /// has not seen its latest revocations. A list that is newer than the one here stands beside it, and one that is missing
    /// here stays, each until its time is over; where a list is the same, what is known of its signature is kept. Gives the
    /// issuers of lists that are newer than the one here.
    pub(super) fn keep_newer(&mut self, known: &Self, now: SystemTime) -> Vec<String> {
        let mut behind = Vec::new();
        let mut kept = Vec::new();
        for old in &known.0 {
            if let Some(same) = self.0.iter_mut().find(|new| new.der == old.der) {
                *same = Arc::clone(old);
                continue;
            }
            let is_over = old.next_update.is_some_and(|until| until < now);
            let mut of_issuer =
                self.0.iter().filter(|new| new.issuer_raw == old.issuer_raw && new.key_id == old.key_id);
            let newest = of_issuer.clone().map(|new| (new.number.len(), &new.number)).max();
            let is_newer = newest.is_some_and(|newest| (old.number.len(), &old.number) > newest);
            if is_newer {
                behind.push(old.issuer.clone());
            }
            if !is_over && (is_newer || of_issuer.next().is_none()) {
                kept.push(Arc::clone(old));
            }
        }
        self.0.extend(kept);
        behind
    }
}

impl RevocationList {
    fn read(der: CertificateRevocationListDer<'static>) -> Result<Self, String> {
        let serials = OwnedCertRevocationList::from_der(&der).map_err(|e| e.to_string())?;
        let (_, list) = CertificateRevocationList::from_der(&der).map_err(|e| e.to_string())?;
        let key_id = list.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|k| k.0.to_vec()),
            _ => None,
        });
        let number = list.crl_number().map(|number| number.to_bytes_be()).unwrap_or_default();
        Ok(Self {
            issuer: list.issuer().to_string(),
            number: number.into_iter().skip_while(|byte| *byte == 0).collect(),
            next_update: list.next_update().map(system_time),
            revoked: list.iter_revoked_certificates().count(),
            issuer_raw: list.issuer().as_raw().to_vec(),
            key_id,
            serials: serials.into(),
            judged: Mutex::default(),
            der: der.clone(),
        })
    }

    fn has(&self, serial: &[u8]) -> bool {
        // What cannot be looked up is not known to be good.
        self.serials.find_serial(serial).map_or(true, |found| found.is_some())
    }

    fn names(&self, signer: Signer<'_>) -> bool {
        self.issuer_raw == signer.name
            && match (&self.key_id, signer.key_id) {
                (Some(named), Some(its)) => named == its,
                _ => true,
            }
    }

    fn is_of(&self, signer: Signer<'_>) -> bool {
        if !signer.signs_lists || !self.names(signer) {
            return false;
        }
        // A handshake's affair, of no request's.
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, verdict)) = judged.iter().find(|(key, _)| key == signer.key) {
            return *verdict;
        }
        let verdict = self.is_signed_by(signer.key);
        judged.push((signer.key.to_vec(), verdict));
        verdict
    }

    fn is_signed_by(&self, key: &[u8]) -> bool {
        let Ok((_, list)) = CertificateRevocationList::from_der(&self.der) else { return false };
        SubjectPublicKeyInfo::from_der(key).is_ok_and(|(_, key)| list.verify_signature(&key).is_ok())
    }
}

impl fmt::Debug for RevocationList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RevocationList({}: {})", self.issuer, self.revoked)
    }
}
