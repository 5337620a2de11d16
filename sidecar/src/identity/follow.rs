//! When the CA is asked for its bundle and its revocation lists, and whether it has any.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use outrigger_identity::documents::{Documents, ReadError, Wanted};

use super::{document::REFRESH_HINT, enrol::CertificateAuthority};
use crate::config::CaConfig;

/// Where the two documents are, and how long they may be: the largest list of a quarter of a million revocations.
pub(super) const BUNDLE: &str = "/bundle.json";
pub(super) const LISTS: &str = "/crl.pem";
const MAX_BUNDLE: usize = 1024 * 1024;
pub(super) const MAX_LISTS: usize = 16 * 1024 * 1024;
/// The first ceiling of the backoff after failures; the last is the refresh hint.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// How often a CA that publishes nothing is asked whether it does now.
const ASK_ABSENT: Duration = Duration::from_secs(3_600);
/// No two readings are closer than this.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
/// A document with a lower sequence is a replica's that is behind, until so many in a row say the same: then the CA was set up
/// anew, or from a backup.
const BEHIND: u32 = 3;

/// Both documents, in this order.
pub(super) type Reading = Pin<Box<dyn Future<Output = Result<Documents, ReadError>> + Send>>;

/// When to ask next, and what is known of the documents.
pub(super) struct Follower {
    ca: Arc<dyn CertificateAuthority>,
    address: String,
    etags: [Option<String>; 2],
    sequence: Option<u64>,
    behind: u32,
    hint: Duration,
    absent: bool,
    published: bool,
    published_lists: bool,
    due: Option<SystemTime>,
    failures: u32,
}

impl Follower {
    pub(super) fn new(config: &CaConfig, ca: Arc<dyn CertificateAuthority>) -> Self {
        Self {
            ca,
            address: config.address.to_string(),
            etags: [None, None],
            sequence: None,
            behind: 0,
            hint: REFRESH_HINT,
            absent: false,
            published: false,
            published_lists: false,
            due: None,
            failures: 0,
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Asks at the next moment, unless that is planned already: there is an identity to follow for, or a new certificate, with
    /// which a CA that published nothing is asked again.
    pub(super) fn begin(&mut self, now: SystemTime) {
        if self.absent {
            self.due = Some(now);
        }
        self.due.get_or_insert(now);
    }

    pub(super) fn is_due(&self, now: SystemTime) -> bool {
        self.due.is_some_and(|due| now >= due)
    }

    /// Asks at once, as if nothing were known: what is in use comes from somewhere else by now.
    pub(super) fn forget(&mut self, now: SystemTime) {
        self.etags = [None, None];
        self.due = Some(now);
    }

    /// Whether this CA has published something since the start.
    pub(super) fn has_published(&self) -> bool {
        self.published
    }

    /// Whether this CA has published revocation lists since the start.
    pub(super) fn has_published_lists(&self) -> bool {
        self.published_lists
    }

    /// Whether the CA has said that it publishes nothing.
    pub(super) fn is_absent(&self) -> bool {
        self.absent
    }

    /// A plan made by a clock that was then set back may lie years ahead.
    pub(super) fn clock_went_back(&mut self, now: SystemTime) {
        self.due = self.due.map(|due| due.min(now + self.hint));
    }

    /// Reads both documents from a CA that `bundle_pem` vouches for.
    pub(super) fn ask(&self, bundle_pem: String) -> Reading {
        let (ca, address, etags) = (Arc::clone(&self.ca), self.address.clone(), self.etags.clone());
        Box::pin(async move {
            let wanted = [
                Wanted { path: BUNDLE, etag: etags[0].as_deref(), max: MAX_BUNDLE },
                Wanted { path: LISTS, etag: etags[1].as_deref(), max: MAX_LISTS },
            ];
            ca.read(&address, &bundle_pem, &wanted).await
        })
    }

    /// The CA answered; the next question is one refresh hint away, give or take a tenth.
    pub(super) fn answered(&mut self, now: SystemTime) {
        self.failures = 0;
        self.due = Some(now + self.hint.mul_f64(0.9 + 0.2 * fastrand::f64()));
    }

    /// The CA publishes nothing (istiod). Gives whether that is news. It is asked again once an hour: it may be another
    /// one by then, or one answer have been a proxy's.
    pub(super) fn absent(&mut self, now: SystemTime) -> bool {
        self.failures = 0;
        self.due = Some(now + ASK_ABSENT.mul_f64(0.9 + 0.2 * fastrand::f64()));
        !std::mem::replace(&mut self.absent, true)
    }

    /// The CA could not be read; gives the pause, and whether this is the first failure in a row.
    pub(super) fn failed(&mut self, now: SystemTime) -> (Duration, bool) {
        self.failures = self.failures.saturating_add(1);
        let ceiling = FIRST_BACKOFF.saturating_mul(1 << (self.failures - 1).min(16)).min(self.hint);
        let pause = ceiling.mul_f64(fastrand::f64()).max(SHORTEST_PAUSE);
        self.due = Some(now + pause);
        (pause, self.failures == 1)
    }

    /// Whether a document of this sequence is to be taken.
    pub(super) fn is_current(&mut self, sequence: Option<u64>) -> bool {
        let older = sequence.zip(self.sequence).is_some_and(|(new, known)| new < known);
        self.behind = if older { self.behind.saturating_add(1) } else { 0 };
        !older || self.behind >= BEHIND
    }

    /// This document was taken.
    pub(super) fn took_bundle(&mut self, etag: Option<String>, sequence: Option<u64>, hint: Duration) {
        self.etags[0] = etag;
        (self.sequence, self.hint, self.behind, self.absent) = (sequence, hint, 0, false);
        self.published = true;
    }

    /// These lists were taken.
    pub(super) fn took_lists(&mut self, etag: Option<String>) {
        self.etags[1] = etag;
        self.published_lists = true;
    }
}
