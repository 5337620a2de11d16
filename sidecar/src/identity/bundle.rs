//! Whom we trust: the roots of one trust domain, and the check of a path to one of them.
//!
//! webpki does signatures, dates, basicConstraints, path length, name constraints and extended key usage. It looks
//! neither at a root's own dates nor at the key usage of intermediates; both are looked at here.

use std::{
    collections::BTreeSet,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime, pem::PemObject};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath, anchor_from_trusted_cert};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

use super::{
    certificate::{algorithm_name, system_time},
    crl::{self, RevocationLists, Signer},
    provider::{provider, sha256},
};

/// The roots of one trust domain.
#[derive(Clone)]
pub struct TrustBundle {
    roots: Vec<Root>,
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Arc<RevocationLists>,
}

/// One root certificate.
#[derive(Debug, Clone)]
pub struct Root {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// Its subject, as `CN=mesh.example root`.
    pub subject: String,
    /// SHA-256 over the certificate, lower-case hexadecimal.
    pub sha256: String,
    /// Beginning of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// The CA is taking it out of use: what leads to it is good, and is to be replaced.
    pub tainted: bool,
    subject_raw: Vec<u8>,
    key_id: Option<Vec<u8>>,
    key: Vec<u8>,
    signs_lists: bool,
}

/// Why a bundle cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not PEM.
    #[error("it is not PEM: {0}")]
    NotPem(String),
    /// No certificate inside.
    #[error("it holds no certificate")]
    Empty,
    /// A certificate inside cannot be a root.
    #[error("certificate {number} of it cannot be a root: {why}")]
    BadRoot {
        /// Counted from 1.
        number: usize,
        /// What is wrong.
        why: String,
    },
}

/// What a certificate is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Its owner accepted a connection.
    Server,
    /// Its owner made a connection.
    Client,
}

/// Why no path leads from a certificate to a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// No root signed the chain.
    #[error("it leads to none of the roots")]
    UnknownRoot,
    /// A certificate of the path is on its issuer's revocation list.
    #[error("a certificate of its path was revoked")]
    Revoked,
    /// A certificate of the path is past its end.
    #[error("a certificate of its path has expired")]
    Expired {
        /// The end of its validity.
        not_after: UnixTime,
    },
    /// A certificate of the path is before its beginning.
    #[error("a certificate of its path is not valid yet")]
    NotYetValid {
        /// The beginning of its validity.
        not_before: UnixTime,
    },
    /// The signature of the very CA that the certificate names does not fit.
    #[error("a signature in its path is wrong")]
    BadSignature,
    /// Signed in a way that is not accepted, such as SHA-1.
    #[error("a certificate of its path is signed by {0}, which is not accepted")]
    SignatureAlgorithm(String),
    /// The leaf is a CA's certificate.
    #[error("it is a CA's certificate")]
    CaCertificate,
    /// The key usage of an intermediate forbids it to sign certificates.
    #[error("{0}")]
    KeyUsage(String),
    /// An intermediate has a workload's SPIFFE id (X509-SVID section 4.2: a signing certificate's id has no path).
    #[error("an intermediate of its chain has a workload's SPIFFE id")]
    IssuerId,
    /// The extended key usage is there and does not allow this use.
    #[error("its extended key usage does not allow both serverAuth and clientAuth")]
    Purpose,
    /// Anything else that makes the chain unusable.
    #[error("it cannot be used: {0}")]
    Malformed(String),
}

impl TrustBundle {
    /// Reads every certificate of a PEM text.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BundleError> {
        let roots = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| BundleError::NotPem(e.to_string()))?;
        Self::from_der(roots)
    }

    /// Takes root certificates. Duplicates are kept once.
    pub fn from_der(certificates: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        let (mut roots, mut anchors) = (Vec::<Root>::new(), Vec::new());
        for (at, der) in certificates.into_iter().enumerate() {
            let bad = |why: String| BundleError::BadRoot { number: at + 1, why };
            if roots.iter().any(|known| known.der == der) {
                continue;
            }
            let anchor = anchor_from_trusted_cert(&der).map_err(|e| bad(e.to_string()))?.to_owned();
            let root = Root::read(&der).map_err(bad)?;
            anchors.push(anchor);
            roots.push(root);
        }
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        Ok(Self { roots, anchors, revoked: Arc::default() })
    }

    /// The same roots, those with these SHA-256 fingerprints tainted, and with these revocation lists.
    pub fn marked(mut self, tainted: &BTreeSet<String>, revoked: Arc<RevocationLists>) -> Self {
        for root in &mut self.roots {
            root.tainted = tainted.contains(&root.sha256);
        }
        self.revoked = revoked;
        self
    }

    /// What issuers took back.
    pub fn revoked(&self) -> &Arc<RevocationLists> {
        &self.revoked
    }

    /// The roots, in the order of the file.
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// Whether both hold the same roots in the same order.
    pub fn same_as(&self, other: &Self) -> bool {
        self.roots.len() == other.roots.len() && self.roots.iter().zip(&other.roots).all(|(a, b)| a.der == b.der)
    }

    /// Whether both judge every certificate alike.
    pub fn judges_as(&self, other: &Self) -> bool {
        self.same_as(other)
            && self.roots.iter().zip(&other.roots).all(|(a, b)| a.tainted == b.tainted)
            && self.revoked.same_as(&other.revoked)
    }

    /// Whether a certificate is among the roots.
    pub fn contains(&self, root: &CertificateDer<'_>) -> bool {
        self.roots.iter().any(|known| known.der == *root)
    }

    /// Finds a path from `leaf` through `intermediates` to a root that is good at `now` for `usage` (RFC 5280 section 6,
    /// SPIFFE X509-SVID section 5). Gives the root.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<&Root, PathFault> {
        self.find_path(leaf, intermediates, now, usage, &mut |_| {})
    }

    /// The same, and which of the intermediates the path leads over: what else was shown proves nothing.
    pub fn verify_path<'a, 'b>(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &'a [CertificateDer<'b>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(&Root, Vec<&'a CertificateDer<'b>>), PathFault> {
        let mut used = Vec::new();
        let root = self.find_path(leaf, intermediates, now, usage, &mut |path| {
            let ders: Vec<_> = path.intermediate_certificates().map(|certificate| certificate.der()).collect();
            used = intermediates.iter().filter(|shown| ders.iter().any(|der| der.as_ref() == shown.as_ref())).collect();
        })?;
        Ok((root, used))
    }

    fn find_path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
        found: &mut dyn FnMut(&VerifiedPath<'_>),
    ) -> Result<&Root, PathFault> {
        let provider = provider();
        let end_entity = EndEntityCert::try_from(leaf).map_err(|e| PathFault::Malformed(e.to_string()))?;
        let purpose = match usage {
            Usage::Server => KeyUsage::server_auth(),
            Usage::Client => KeyUsage::client_auth(),
        };
        // The search goes on after a refusal, so a good path is found beside an expired root of the same name.
        let check = |path: &VerifiedPath<'_>| self.check_path(path, now);
        let path = end_entity
            .verify_for_usage(
                provider.signature_verification_algorithms.all,
                &self.anchors,
                intermediates,
                now,
                purpose,
                None,
                Some(&check),
            )
            .map_err(|e| self.fault(e, leaf, intermediates))?;
        found(&path);
        self.root_of(&path).ok_or(PathFault::UnknownRoot)
    }

    fn root_of(&self, path: &VerifiedPath<'_>) -> Option<&Root> {
        let at = self.anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()))?;
        self.roots.get(at)
    }

    fn check_path(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), webpki::Error> {
        for intermediate in path.intermediate_certificates() {
            let der = intermediate.der();
            let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| webpki::Error::BadDer)?;
            // RFC 5280 section 6.1.4 (n): where the extension is present, keyCertSign must be set.
            match certificate.key_usage() {
                Ok(Some(usage)) if !usage.value.key_cert_sign() => return Err(webpki::Error::EndEntityUsedAsCa),
                Ok(_) => {}
                Err(_) => return Err(webpki::Error::MalformedExtensions),
            }
            let names = certificate.subject_alternative_name().map_err(|_| webpki::Error::MalformedExtensions)?;
            if names.is_some_and(|names| has_workload_id(&names.value.general_names)) {
                // The search carries webpki's errors alone, and we name no keys to it that it would say this of.
                return Err(webpki::Error::CertDistrusted);
            }
        }
        let root = self.root_of(path).ok_or(webpki::Error::UnknownIssuer)?;
        self.check_revoked(path, root)?;
        let (not_before, not_after) = (unix_time(root.not_before), unix_time(root.not_after));
        if now < not_before {
            return Err(webpki::Error::CertNotValidYet { time: now, not_before });
        }
        if now > not_after {
            return Err(webpki::Error::CertExpired { time: now, not_after });
        }
        Ok(())
    }

    /// From the leaf upward, each certificate against the list of the one above it.
    fn check_revoked(&self, path: &VerifiedPath<'_>, root: &Root) -> Result<(), webpki::Error> {
        if self.revoked.lists().is_empty() {
            return Ok(());
        }
        let ders: Vec<_> = std::iter::once(path.end_entity().der())
            .chain(path.intermediate_certificates().map(|intermediate| intermediate.der()))
            .collect();
        let certificates = ders
            .iter()
            .map(|der| X509Certificate::from_der(der).map(|(_, certificate)| certificate))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| webpki::Error::BadDer)?;
        let signers = certificates.iter().skip(1).map(Signer::of).chain([root.signer()]);
        let mut signed = certificates.iter().zip(signers);
        if signed.any(|(certificate, signer)| self.revoked.revokes(certificate.raw_serial(), signer)) {
            return Err(webpki::Error::CertRevoked);
        }
        Ok(())
    }

    fn fault(
        &self,
        error: webpki::Error,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> PathFault {
        use webpki::Error as E;
        match error {
            E::CertExpired { not_after, .. } => PathFault::Expired { not_after },
            E::CertNotValidYet { not_before, .. } => PathFault::NotYetValid { not_before },
            E::UnknownIssuer => PathFault::UnknownRoot,
            E::CertRevoked => PathFault::Revoked,
            // A CA that was made anew under its old name gives exactly this error. Only where the key ids say that the
            // very key is meant has the certificate been tampered with.
            E::InvalidSignatureForPublicKey | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
                if self.names_known_key(leaf, intermediates) { PathFault::BadSignature } else { PathFault::UnknownRoot }
            }
            E::UnsupportedSignatureAlgorithmContext(context) => {
                PathFault::SignatureAlgorithm(algorithm_name(&context.signature_algorithm_id))
            }
            E::CaUsedAsEndEntity => PathFault::CaCertificate,
            E::EndEntityUsedAsCa => {
                PathFault::KeyUsage("an intermediate of its chain may not sign certificates".to_owned())
            }
            E::CertDistrusted => PathFault::IssuerId,
            E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => PathFault::Purpose,
            other => PathFault::Malformed(other.to_string()),
        }
    }

    /// Whether each presented certificate names, by authority key id, an issuer that was presented or is a root.
    fn names_known_key(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> bool {
        let mut certificates = vec![];
        for der in std::iter::once(leaf).chain(intermediates) {
            let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
            certificates.push(certificate);
        }
        certificates.iter().all(|certificate| {
            let Some(wanted) = authority_key_id(certificate) else { return false };
            let issuer = certificate.issuer().as_raw();
            self.roots.iter().any(|r| r.subject_raw == issuer && r.key_id.as_deref() == Some(wanted))
                || certificates.iter().any(|c| c.subject().as_raw() == issuer && subject_key_id(c) == Some(wanted))
        })
    }
}

impl Root {
    pub(super) fn signer(&self) -> Signer<'_> {
        Signer {
            name: &self.subject_raw,
            key_id: self.key_id.as_deref(),
            key: &self.key,
            signs_lists: self.signs_lists,
        }
    }

    /// The certificate as PEM.
    pub fn to_pem(&self) -> String {
        to_pem("CERTIFICATE", &self.der)
    }

    fn read(der: &CertificateDer<'static>) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
        if !certificate.is_ca() {
            return Err(format!("\"{}\" is not a CA's certificate", certificate.subject()));
        }
        Ok(Self {
            subject: certificate.subject().to_string(),
            sha256: sha256(der).ok_or("no SHA-256 in the crypto provider")?,
            not_before: system_time(certificate.validity().not_before),
            not_after: system_time(certificate.validity().not_after),
            tainted: false,
            subject_raw: certificate.subject().as_raw().to_vec(),
            key: certificate.public_key().raw.to_vec(),
            signs_lists: crl::signs_lists(&certificate),
            key_id: subject_key_id(&certificate).map(<[u8]>::to_vec),
            der: der.clone(),
        })
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.roots.iter().map(|r| &r.subject)).finish()
    }
}

/// One PEM block, its lines ended by LF.
pub(super) fn to_pem(tag: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(tag, der), config)
}

fn has_workload_id(names: &[GeneralName<'_>]) -> bool {
    names.iter().any(|name| match name {
        GeneralName::URI(uri) => {
            uri.strip_prefix("spiffe://").is_some_and(|id| id.split_once('/').is_some_and(|(_, path)| !path.is_empty()))
        }
        _ => false,
    })
}

fn authority_key_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.iter_extensions().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|k| k.0),
        _ => None,
    })
}

fn subject_key_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.iter_extensions().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

fn unix_time(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO))
}
