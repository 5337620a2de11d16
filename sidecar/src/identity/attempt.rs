//! One try to get a certificate from the CA: what is asked, by whom the CA is authenticated, what is accepted.

use std::{
    collections::BTreeSet,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use outrigger_identity::{
    SpiffeId, TrustDomain,
    csr::{CsrPem, KeyPairPem, new_key_and_csr},
    enrol::{Credential, EnrolCause, EnrolError, EnrolRequest, Enrolled},
};
use rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject};

use super::{
    Clock, Identity, NotValidNow, Usage,
    bundle::to_pem,
    enrol::CertificateAuthority,
    files::{self, Material},
    provider::sha256,
};
use crate::config::CaConfig;

/// Why an attempt brought no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    #[error(transparent)]
    Ca(#[from] EnrolError),
    #[error(
        "there is no valid certificate in {} and identity.ca.token_file is not set; set it, or put a certificate there (\"outrigger-ca issue --out\")", .0.display()
    )]
    NoCredential(PathBuf),
    #[error("cannot read the join token {}: {why}; make one with \"outrigger-ca token create\"", path.display())]
    Token { path: PathBuf, why: String },
    #[error(
        "cannot read identity.ca.bundle {}: {why}; write the output of \"outrigger-ca bundle show\" there", path.display()
    )]
    Bundle { path: PathBuf, why: String },
    #[error("{0}")]
    Key(String),
    #[error("what {address} issued cannot be used: {why}; look at the CA's log")]
    Unusable { address: String, why: String },
}

impl AttemptError {
    /// Whether none of the roots vouches for the CA.
    pub(super) fn is_unknown_root(&self) -> bool {
        matches!(self, Self::Ca(EnrolError { cause: EnrolCause::UnknownRoot, .. }))
    }

    /// Whether somebody has to change something before an attempt can succeed.
    pub(super) fn is_permanent(&self) -> bool {
        match self {
            Self::Ca(e) => e.is_permanent(),
            Self::NoCredential(_) | Self::Token { .. } | Self::Bundle { .. } => true,
            Self::Key(_) | Self::Unusable { .. } => false,
        }
    }
}

/// What the CA issued. The material's bundle is the one root that came with it.
pub(super) struct Issued {
    pub(super) identity: Identity,
    pub(super) material: Material,
    /// The roots that the CA was authenticated by, PEM.
    pub(super) ca_bundle_pem: String,
}

pub(super) type Attempt = Pin<Box<dyn Future<Output = Result<Issued, AttemptError>> + Send>>;

/// A token that was tried, with its key, and has brought nothing yet.
pub(super) struct Pending {
    token: String,
    id: Option<SpiffeId>,
    key: KeyPairPem,
    csr: CsrPem,
}

/// A try, which owns all that it needs.
pub(super) struct Task {
    pub(super) config: CaConfig,
    pub(super) ca: Arc<dyn CertificateAuthority>,
    pub(super) certificate: Option<Credential>,
    pub(super) pending: Arc<Mutex<Option<Pending>>>,
    /// The roots in use, for a renewal.
    pub(super) held: Option<String>,
    /// SHA-256 fingerprints of roots that the CA took out of its bundle: their keys may be stolen.
    pub(super) withdrawn: BTreeSet<String>,
    pub(super) id: Option<SpiffeId>,
    pub(super) dir: PathBuf,
    pub(super) trust_domain: Option<TrustDomain>,
    pub(super) clock: Clock,
}

impl Task {
    pub(super) async fn run(self) -> Result<Issued, AttemptError> {
        let bundle_pem = match &self.held {
            Some(held) => held.clone(),
            None => self.operators_roots()?,
        };
        let credential = match self.certificate.clone() {
            Some(certificate) => certificate,
            None => self.token()?,
        };
        let (key, csr) = self.key_for(&credential)?;
        let address = self.config.address.to_string();
        let (enrolled, bundle_pem) = match self.ask(&bundle_pem, credential.clone(), &csr).await {
            Err(error) if self.held.is_some() && matches!(error.cause, EnrolCause::UnknownRoot) => {
                // Nothing was said to that CA yet: the handshake came first.
                tracing::warn!(%error, "the roots in use do not fit; identity.ca.bundle is tried");
                let roots = self.operators_roots()?;
                (self.ask(&roots, credential, &csr).await?, roots)
            }
            answer => (answer?, bundle_pem),
        };
        let material = Material {
            chain_pem: enrolled.chain_pem.into_bytes(),
            key_pem: key.as_str().as_bytes().to_vec(),
            bundle_pem: enrolled.roots_pem.into_bytes(),
        };
        // The answer has come: from now on another try is another enrolment.
        *self.pending() = None;
        let identity = self.check(&material).map_err(|why| AttemptError::Unusable { address, why })?;
        Ok(Issued { identity, material, ca_bundle_pem: bundle_pem })
    }

    async fn ask(&self, bundle_pem: &str, credential: Credential, csr: &CsrPem) -> Result<Enrolled, EnrolError> {
        let request = EnrolRequest {
            address: &self.config.address.to_string(),
            bundle_pem,
            credential,
            csr_pem: csr.as_str(),
            ttl: self.config.ttl.map(|ttl| ttl.get()),
            cluster_id: self.config.cluster_id.as_deref(),
        };
        self.ca.enrol(request).await
    }

    /// identity.ca.bundle without what the CA took out of its own.
    fn operators_roots(&self) -> Result<String, AttemptError> {
        let fail = |why: String| AttemptError::Bundle { path: self.config.bundle.clone(), why };
        let text = read_text(&self.config.bundle).map_err(fail)?;
        if self.withdrawn.is_empty() {
            return Ok(text);
        }
        let mut kept = String::new();
        for der in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let der = der.map_err(|e| fail(format!("it is not PEM ({e})")))?;
            if sha256(&der).is_some_and(|fingerprint| !self.withdrawn.contains(&fingerprint)) {
                kept.push_str(&to_pem("CERTIFICATE", &der));
            }
        }
        if kept.is_empty() {
            Err(fail("it has no root that the CA did not take out of use".to_owned()))
        } else {
            Ok(kept)
        }
    }

    fn pending(&self) -> MutexGuard<'_, Option<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key of the first try with the same token, or a new one.
    fn key_for(&self, credential: &Credential) -> Result<(KeyPairPem, CsrPem), AttemptError> {
        let mut pending = self.pending();
        if let (Credential::Token(token), Some(known)) = (credential, &*pending)
            && *token == known.token
            && self.id == known.id
        {
            return Ok((known.key.clone(), known.csr.clone()));
        }
        let (key, csr) = new_key_and_csr(self.id.as_ref()).map_err(|e| AttemptError::Key(e.to_string()))?;
        if let Credential::Token(token) = credential {
            *pending = Some(Pending { token: token.clone(), id: self.id.clone(), key: key.clone(), csr: csr.clone() });
        }
        Ok((key, csr))
    }

    fn token(&self) -> Result<Credential, AttemptError> {
        let Some(path) = &self.config.token_file else {
            return Err(AttemptError::NoCredential(self.dir.clone()));
        };
        let fail = |why: String| AttemptError::Token { path: path.clone(), why };
        let token = read_text(path).map_err(fail)?;
        match token.trim() {
            "" => Err(fail("it is empty".to_owned())),
            token => Ok(Credential::Token(token.to_owned())),
        }
    }

    /// A certificate that peers would refuse, or that makes us somebody else, must not replace a good one.
    fn check(&self, material: &Material) -> Result<Identity, String> {
        let identity = files::parse(material, &self.dir, self.trust_domain.as_ref()).map_err(|e| e.to_string())?;
        // Not the time at which we asked: a CA that does not set notBefore back dates it later than that.
        let now = (self.clock)();
        let judged_at = match identity.check_valid(now) {
            Ok(()) => now,
            // Where there is nothing better, this one is waited for: the token is spent, and the fault is a clock's.
            Err(NotValidNow::NotYet { .. }) if self.id.is_none() => identity.not_before,
            Err(why) => return Err(why.to_string()),
        };
        if let Some(id) = self.id.as_ref().filter(|id| **id != identity.id) {
            return Err(format!("it is for {}, but we are {id}", identity.id));
        }
        let Some((leaf, intermediates)) = identity.key.cert.split_first() else {
            return Err("it is empty".to_owned());
        };
        let since = judged_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        for usage in [Usage::Server, Usage::Client] {
            identity
                .bundle
                .verify(leaf, intermediates, UnixTime::since_unix_epoch(since), usage)
                .map_err(|fault| format!("its chain does not verify against the root that came with it ({fault})"))?;
        }
        Ok(identity)
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let bytes = files::read(path).map_err(|e| match e {
        files::IdentityError::Missing(_) => "it is not there".to_owned(),
        files::IdentityError::Unreadable { why, uid, .. } => format!("{why} (the sidecar runs as uid {uid})"),
        other => other.to_string(),
    })?;
    String::from_utf8(bytes).map_err(|_| "it is not text".to_owned())
}
