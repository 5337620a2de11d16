//! Whom the task trusts at the moment: what the CA publishes, what lies in `crl.pem`, and what follows from both for our own
//! certificate.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use outrigger_identity::documents::{Document, Documents, ReadError};
use rustls::pki_types::UnixTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    Identity, IdentityError, PathFault, RevocationLists, TrustBundle, Usage,
    attempt::Issued,
    crl::Signer,
    document::BundleDocument,
    files::{self, Fingerprint, Material},
    follow::{self, Follower},
    source::{Source, TICK},
};

/// Marks and lists, which stand beside the roots of `bundle.pem`.
#[derive(Default)]
pub(super) struct Trust {
    pub(super) follower: Option<Follower>,
    /// SHA-256 fingerprints of tainted roots.
    tainted: BTreeSet<String>,
    /// Those of roots that the CA took out of its bundle.
    pub(super) withdrawn: BTreeSet<String>,
    revoked: Arc<RevocationLists>,
    /// `crl.pem` as it was last looked at, and as it was last read.
    seen: Option<Fingerprint>,
    read: Option<Fingerprint>,
}

impl Trust {
    pub(super) fn new(follower: Option<Follower>) -> Self {
        Self { follower, ..Self::default() }
    }

    /// The identity with these marks and lists.
    pub(super) fn mark(&self, identity: Identity) -> Identity {
        let bundle = (*identity.bundle).clone().marked(&self.tainted, Arc::clone(&self.revoked));
        Identity { bundle: Arc::new(bundle), ..identity }
    }

    /// The root that came with a certificate, where the CA's own bundle has dropped it.
    pub(super) fn withdrawn_root_of(&self, issued: &Issued) -> Option<String> {
        let roots = issued.identity.bundle.roots().iter();
        roots.filter(|root| self.withdrawn.contains(&root.sha256)).map(|root| root.subject.clone()).next()
    }
}

/// Why our own certificate is to be replaced before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distrust {
    /// Its root is tainted: it is good for now.
    Tainted,
    /// It, or an intermediate above it, is revoked.
    Revoked,
    /// Its root is no root any more.
    NoRoot,
}

impl Distrust {
    fn words(self) -> &'static str {
        match self {
            Self::Tainted => "the CA is taking the root of our own certificate out of use",
            Self::Revoked => "our own certificate is revoked, and peers refuse it",
            Self::NoRoot => "our own certificate leads to none of the roots any more, and peers refuse it",
        }
    }
}

/// What our own bundle says of our own certificate. Its dates are judged elsewhere.
fn distrust(identity: &Identity, now: SystemTime) -> Option<Distrust> {
    let (leaf, intermediates) = identity.key.cert.split_first()?;
    let at = now.min(identity.not_after).max(identity.not_before);
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    match identity.bundle.verify(leaf, intermediates, UnixTime::since_unix_epoch(since), Usage::Server) {
        Ok(root) => root.tainted.then_some(Distrust::Tainted),
        Err(PathFault::Revoked) => Some(Distrust::Revoked),
        Err(PathFault::UnknownRoot) => Some(Distrust::NoRoot),
        Err(_) => None,
    }
}

impl Source {
    /// Takes what the CA answered.
    pub(super) fn read_from_ca(&mut self, answer: Result<Documents, ReadError>, now: SystemTime) {
        let Some(follower) = &mut self.trust.follower else { return };
        let documents = answer.map(<[Result<Document, ReadError>; 2]>::try_from);
        let [bundle, lists] = match documents {
            Ok(Ok(documents)) => documents,
            Ok(Err(_)) => return follower.answered(now),
            Err(error) => return self.reading_failed(&error.to_string(), now),
        };
        if matches!(bundle, Ok(Document::Absent)) {
            if follower.has_published() {
                let address = follower.address().to_owned();
                return self.reading_failed(&format!("the CA {address} publishes no bundle any more"), now);
            }
            if follower.absent(now) {
                tracing::info!(ca = %follower.address(), "the CA publishes no bundle; the root of each certificate joins bundle.pem");
            }
            self.shared.notes().trust_error = None;
            return;
        }
        // Each by itself: a list that is too long must not keep a new root away, nor a replica that is behind a revocation.
        let failed: Vec<String> =
            [&bundle, &lists].iter().filter_map(|read| Some(read.as_ref().err()?.to_string())).collect();
        let refused = self.take(bundle.ok(), lists.ok(), now);
        if !failed.is_empty() {
            return self.reading_failed(&failed.join("; "), now);
        }
        if let Some(follower) = &mut self.trust.follower {
            follower.answered(now);
        }
        let mut notes = self.shared.notes();
        notes.trust_read = Some(now);
        let known = notes.trust_error.take();
        if !refused.is_empty() {
            let why = refused.join("; ");
            if known.as_ref().is_none_or(|(text, _)| *text != why) {
                tracing::error!("{why}");
            }
            notes.trust_error = Some((why, now));
        }
    }

    fn reading_failed(&mut self, error: &str, now: SystemTime) {
        let Some(follower) = &mut self.trust.follower else { return };
        let (pause, first) = follower.failed(now);
        let retry = format!("{:.1} s", pause.as_secs_f32());
        // Once an outage: how long it lasts, /certs says.
        if first {
            tracing::warn!(%error, %retry, "the CA's documents cannot all be read; what is known stays");
        } else {
            tracing::debug!(%error, %retry, "the CA's documents cannot all be read");
        }
        self.shared.notes().trust_error = Some((error.to_owned(), now));
    }

    /// Takes what of it is good, and gives why the rest is not.
    fn take(&mut self, bundle: Option<Document>, lists: Option<Document>, now: SystemTime) -> Vec<String> {
        let Some((identity, material)) = self.current.clone() else { return Vec::new() };
        let Some(follower) = &mut self.trust.follower else { return Vec::new() };
        let ca = follower.address().to_owned();
        let mut refused = Vec::new();
        let mut refuse = |path: &str, why: String| {
            refused.push(format!(
                "{path} of the CA {ca} changes nothing: {why}; what is known stays; look at the CA's log"
            ));
        };
        let mut next = (*identity.bundle).clone();
        if let Some(Document::Text { body, etag }) = bundle {
            match BundleDocument::parse(&body, &identity.trust_domain) {
                Err(why) => refuse(follow::BUNDLE, why.to_string()),
                Ok(document) if !follower.is_current(document.sequence) => {
                    refuse(follow::BUNDLE, "it is older than one that was read before".to_owned());
                }
                Ok(document) => {
                    follower.took_bundle(etag, document.sequence, document.refresh_hint);
                    (next, self.trust.tainted) = (document.bundle, document.tainted);
                }
            }
        }
        match lists {
            Some(Document::Text { body, etag }) => match RevocationLists::from_pem(&body) {
                Err(why) => refuse(follow::LISTS, why.to_string()),
                Ok(mut read) => match forged(&read, &next, &identity) {
                    Some(issuer) => refuse(follow::LISTS, format!("the list of {issuer} is not signed by it")),
                    None => {
                        for issuer in read.keep_newer(&self.trust.revoked, now) {
                            tracing::warn!(%issuer, %ca, "the CA gave an older revocation list than before; both count");
                        }
                        follower.took_lists(etag);
                        self.trust.revoked = Arc::new(read);
                    }
                },
            },
            Some(Document::Absent) if follower.has_published_lists() => {
                refuse(follow::LISTS, "it is not there any more".to_owned());
            }
            Some(Document::Absent | Document::Unchanged) | None => {}
        }
        let next = next.marked(&self.trust.tainted, Arc::clone(&self.trust.revoked));
        if !next.judges_as(&identity.bundle) {
            self.change_trust(identity, material, next);
        }
        refused
    }

    /// Keeps what is new on disk and publishes it.
    fn change_trust(&mut self, identity: Identity, mut material: Material, next: TrustBundle) {
        let known = &identity.bundle;
        let names = |bundle: &TrustBundle, of: &dyn Fn(&super::Root) -> bool| -> Vec<String> {
            bundle.roots().iter().filter(|root| of(root)).map(|root| root.subject.clone()).collect()
        };
        let added = names(&next, &|root| !known.contains(&root.der));
        let removed = names(known, &|root| !next.contains(&root.der));
        let tainted = names(&next, &|root| root.tainted);
        let on_lists = next.revoked().lists().iter().map(|list| list.revoked).sum::<usize>();
        tracing::info!(?added, ?removed, ?tainted, revoked = on_lists, "the CA's bundle is taken up");
        for root in known.roots().iter().filter(|root| !next.contains(&root.der)) {
            self.trust.withdrawn.insert(root.sha256.clone());
        }
        for root in next.roots() {
            self.trust.withdrawn.remove(&root.sha256);
        }
        let mut warnings = Vec::new();
        if !next.same_as(known) {
            material.bundle_pem = next.roots().iter().map(super::Root::to_pem).collect::<String>().into_bytes();
            self.keep("bundle.pem", &material.bundle_pem, &mut warnings);
        }
        if !next.revoked().same_as(known.revoked()) {
            self.keep(files::LISTS, next.revoked().to_pem().as_bytes(), &mut warnings);
        }
        self.look();
        self.trust.seen = files::fingerprint(&self.dir.join(files::LISTS));
        self.trust.read = self.trust.seen;
        self.adopt(Identity { bundle: Arc::new(next), ..identity }, material, warnings);
        self.renew_if_distrusted(false);
    }

    fn keep(&self, name: &str, bytes: &[u8], warnings: &mut Vec<String>) {
        if let Err(error) = files::replace(&self.dir, name, bytes) {
            let uid = nix::unistd::geteuid().as_raw();
            warnings.push(format!(
                "{name} cannot be kept in {} ({error}); a restart begins without it; make the folder writable for uid {uid}",
                self.dir.display()
            ));
        }
    }

    /// Renews before the time where our own certificate stands in the way of a rotation, or is good for nothing. `fresh`: it
    /// was issued a moment ago, so that asking at once would bring the same.
    pub(super) fn renew_if_distrusted(&mut self, fresh: bool) {
        let Some((identity, _)) = &self.current else { return };
        let now = (self.clock)();
        let Some(why) = distrust(identity, now) else { return };
        let Some(enroller) = &mut self.enroller else {
            if !fresh {
                tracing::error!("{}; put a new one into {}", why.words(), self.dir.display());
            }
            return;
        };
        let wait = enroller.hurry(identity, fresh, now);
        let wait = format!("{:.1} s", wait.as_secs_f32());
        match why {
            Distrust::Tainted => tracing::warn!(%wait, "{}; it is renewed", why.words()),
            Distrust::Revoked | Distrust::NoRoot => tracing::error!(%wait, "{}; another one is asked for", why.words()),
        }
        self.shared.notes().next_renewal = enroller.due();
    }

    /// Looks at `crl.pem`, which may be an operator's. A file is read when it has been still for two ticks. Where the CA
    /// publishes its lists, it is where they are kept for the next start and nothing else: whoever takes it away takes nothing
    /// back.
    pub(super) fn look_at_lists(&mut self, at_start: bool) {
        if !at_start && self.trust.follower.as_ref().is_some_and(|follower| !follower.is_absent()) {
            return;
        }
        let path = self.dir.join(files::LISTS);
        let now = files::fingerprint(&path);
        let still = now == self.trust.seen && now.is_none_or(|f| !f.is_younger_than(2 * TICK));
        self.trust.seen = now;
        if now == self.trust.read || !(still || at_start) {
            return;
        }
        self.trust.read = now;
        let read = match files::read_up_to(&path, follow::MAX_LISTS as u64) {
            Ok(pem) => RevocationLists::from_pem(&pem).map_err(|why| IdentityError::Lists { path: path.clone(), why }),
            Err(IdentityError::Missing(_)) => Ok(RevocationLists::default()),
            Err(other) => Err(other),
        };
        let lists = match read {
            Ok(lists) => lists,
            Err(error) => return self.complain_of_lists(&error),
        };
        if let Some((identity, _)) = &self.current
            && let Some(issuer) = forged(&lists, &identity.bundle, identity)
        {
            return self.complain_of_lists(&IdentityError::Forged { path, issuer });
        }
        self.shared.notes().lists_error = None;
        if lists.same_as(&self.trust.revoked) {
            return;
        }
        self.trust.revoked = Arc::new(lists);
        if let Some((identity, material)) = self.current.clone() {
            let revoked = self.trust.revoked.lists().iter().map(|list| list.revoked).sum::<usize>();
            tracing::info!(revoked, dir = %self.dir.display(), "crl.pem changed, loaded");
            self.adopt(identity, material, Vec::new());
            self.renew_if_distrusted(false);
        }
    }
}

impl Source {
    /// The note stays until a good file is read, whatever else is loaded meanwhile.
    fn complain_of_lists(&self, error: &IdentityError) {
        tracing::error!(%error, "the revocation lists in the folder are not used; those that are known stay");
        self.shared.notes().lists_error = Some((error.to_string(), (self.clock)()));
    }
}

/// The issuer of a list that one of our own roots or intermediates did not sign, though it names it.
pub(super) fn forged(lists: &RevocationLists, bundle: &TrustBundle, identity: &Identity) -> Option<String> {
    let own: Vec<_> = identity
        .key
        .cert
        .iter()
        .skip(1)
        .filter_map(|der| X509Certificate::from_der(der).ok())
        .map(|(_, c)| c)
        .collect();
    let signers: Vec<Signer<'_>> =
        own.iter().map(Signer::of).chain(bundle.roots().iter().map(super::Root::signer)).collect();
    lists.forged(&signers).map(|list| list.issuer.clone())
}
