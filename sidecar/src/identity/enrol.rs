//! Getting a certificate from the CA: which credential to show, and when to try again. One try is in `attempt.rs`.
//!
//! - A valid certificate renews itself over mTLS. Only without one, or where the CA refused it for good, the token is used:
//!   tokens are often single-use, and one that is read at each try can be replaced while we wait.
//! - A renewal takes the CA for what it is by the roots in use, which follow the CA's own; identity.ca.bundle is for the token,
//!   where nothing is known yet, and where nothing that is known fits: so an operator helps who has missed a change of roots.
//!   A root that the CA took out of its bundle does not come back that way.
//! - Every attempt makes a new key, but that a token is tried again with the key of its first try: a CA that died after it
//!   had spent the token answers again for that key alone. A key never leaves this process but for `key.pem`.
//! - Transient failures are retried with full jitter under a ceiling that doubles from 1 s to 60 s; permanent ones every
//!   60 s, or as soon as the token or the CA's bundle changes, because files do get replaced. While a certificate is valid the
//!   ceiling is a quarter of what is left of it, so that a short-lived one is not slept through.

use std::{
    collections::BTreeSet,
    future::Future,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use outrigger_identity::{
    TrustDomain,
    documents::{self, Documents, ReadError, Wanted},
    enrol::{Credential, EnrolError, EnrolRequest, Enrolled, enrol},
};

use super::{
    Clock, Identity, NotValidNow,
    attempt::{Attempt, AttemptError, Pending, Task},
    files::{self, Fingerprint, Material},
    follow::Follower,
};
use crate::config::CaConfig;

/// First and last ceiling of the backoff after transient failures.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Pause after a failure that somebody has to mend.
const PERMANENT_PAUSE: Duration = Duration::from_secs(60);
/// No two attempts are closer than this.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// The CA. A trait, so that tests can be one.
pub(super) trait CertificateAuthority: Send + Sync {
    fn enrol<'a>(
        &'a self,
        request: EnrolRequest<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<Enrolled, EnrolError>> + Send + 'a>>;

    /// Reads what it publishes, see [`documents::read`].
    fn read<'a>(
        &'a self,
        address: &'a str,
        bundle_pem: &'a str,
        wanted: &'a [Wanted<'a>],
    ) -> Pin<Box<dyn Future<Output = Result<Documents, ReadError>> + Send + 'a>>;
}

/// The real one, over gRPC.
pub(super) struct GrpcCa;

impl CertificateAuthority for GrpcCa {
    fn enrol<'a>(
        &'a self,
        request: EnrolRequest<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<Enrolled, EnrolError>> + Send + 'a>> {
        Box::pin(enrol(request))
    }

    fn read<'a>(
        &'a self,
        address: &'a str,
        bundle_pem: &'a str,
        wanted: &'a [Wanted<'a>],
    ) -> Pin<Box<dyn Future<Output = Result<Documents, ReadError>> + Send + 'a>> {
        Box::pin(documents::read(address, bundle_pem, wanted))
    }
}

/// When and how to ask the CA next.
pub(super) struct Enroller {
    config: CaConfig,
    ca: Arc<dyn CertificateAuthority>,
    failures: u32,
    due: Option<SystemTime>,
    used_certificate: bool,
    certificate_refused: bool,
    inputs: [Option<Fingerprint>; 2],
    pending: Arc<Mutex<Option<Pending>>>,
}

impl Enroller {
    pub(super) fn new(config: CaConfig, ca: Arc<dyn CertificateAuthority>) -> Self {
        let mut enroller = Self {
            config,
            ca,
            failures: 0,
            due: None,
            used_certificate: false,
            certificate_refused: false,
            inputs: [None, None],
            pending: Arc::default(),
        };
        enroller.inputs = enroller.fingerprints();
        enroller
    }

    /// Who follows the same CA's bundle.
    pub(super) fn follower(&self) -> Follower {
        Follower::new(&self.config, Arc::clone(&self.ca))
    }

    pub(super) fn address(&self) -> String {
        self.config.address.to_string()
    }

    /// When the next attempt is due.
    pub(super) fn due(&self) -> Option<SystemTime> {
        self.due
    }

    /// Plans the renewal of an identity. `fresh`: issued a moment ago, so that a notBefore that the CA set back, against clocks
    /// that differ, does not count as lived time.
    pub(super) fn plan(&mut self, identity: Option<&Identity>, fresh: bool, now: SystemTime) {
        self.failures = 0;
        self.due = Some(match identity {
            Some(identity) if !matches!(identity.check_valid(now), Err(NotValidNow::Expired { .. })) => {
                // One that becomes valid later is waited for: another one would have the same dates.
                let from = if fresh { now.max(identity.not_before) } else { identity.not_before };
                let at = renewal_time(from, identity.not_after, fastrand::f64());
                // Many that start together with old certificates do not all ask at once.
                if at > now { at } else { now + at_most(Duration::from_secs(30), left(identity, now) / 10) }
            }
            _ => now,
        });
    }

    /// Plans the next attempt after a failed one, and gives the pause.
    pub(super) fn failed(&mut self, error: &AttemptError, current: Option<&Identity>, now: SystemTime) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let permanent = error.is_permanent();
        // The certificate and the token take turns once the CA has refused the certificate for good. A CA that we do not know
        // has refused nothing.
        self.certificate_refused = permanent && self.used_certificate && !error.is_unknown_root();
        let mut ceiling = if permanent {
            PERMANENT_PAUSE
        } else {
            BACKOFF.0.saturating_mul(1 << (self.failures - 1).min(16)).min(BACKOFF.1)
        };
        if let Some(identity) = current.filter(|i| i.check_valid(now).is_ok()) {
            ceiling = ceiling.min(left(identity, now) / 4);
        }
        let pause = if permanent && self.certificate_refused && self.config.token_file.is_some() {
            SHORTEST_PAUSE
        } else if permanent {
            ceiling.mul_f64(0.9 + 0.2 * fastrand::f64())
        } else {
            ceiling.mul_f64(fastrand::f64())
        };
        let pause = pause.max(SHORTEST_PAUSE);
        self.due = Some(now + pause);
        pause
    }

    /// Plans a renewal before the time, and gives the wait: within 30 s, and not in one moment with every other workload.
    /// `fresh`: the certificate was issued a moment ago, by a CA that is behind, so that it gets a minute.
    pub(super) fn hurry(&mut self, identity: &Identity, fresh: bool, now: SystemTime) -> Duration {
        let wait = if fresh {
            PERMANENT_PAUSE.mul_f64(0.9 + 0.2 * fastrand::f64())
        } else {
            at_most(Duration::from_secs(30), left(identity, now) / 10)
        };
        let at = self.due.map_or(now + wait, |due| due.min(now + wait));
        self.due = Some(at);
        at.duration_since(now).unwrap_or_default()
    }

    /// Whether an attempt is due. A changed token or CA bundle makes it so while attempts are failing.
    pub(super) fn is_due(&mut self, now: SystemTime) -> bool {
        let inputs = self.fingerprints();
        if inputs != self.inputs {
            self.inputs = inputs;
            if self.failures > 0 {
                self.due = Some(now);
            }
        }
        self.due.is_some_and(|due| now >= due)
    }

    fn fingerprints(&self) -> [Option<Fingerprint>; 2] {
        [files::fingerprint(&self.config.bundle), self.config.token_file.as_deref().and_then(files::fingerprint)]
    }

    /// One attempt, which owns all that it needs. `withdrawn`: SHA-256 fingerprints of the roots that the CA took out of its
    /// bundle.
    pub(super) fn attempt(
        &mut self,
        current: Option<(&Identity, &Material)>,
        withdrawn: &BTreeSet<String>,
        dir: &Path,
        trust_domain: Option<&TrustDomain>,
        clock: &Clock,
    ) -> Attempt {
        let now = clock();
        let valid = current.filter(|(identity, _)| identity.check_valid(now).is_ok());
        let with_token = valid.is_none() || (self.certificate_refused && self.config.token_file.is_some());
        self.used_certificate = !with_token;
        let certificate = valid.filter(|_| !with_token).map(|(_, material)| Credential::Certificate {
            chain_pem: String::from_utf8_lossy(&material.chain_pem).into_owned(),
            key_pem: String::from_utf8_lossy(&material.key_pem).into_owned(),
        });
        let held = certificate.as_ref().and(valid).map(|(_, m)| String::from_utf8_lossy(&m.bundle_pem).into_owned());
        // Only a renewal knows whom it is for; a token says it to the CA alone.
        let id = valid.map(|(identity, _)| identity.id.clone());
        let task = Task {
            config: self.config.clone(),
            ca: self.ca.clone(),
            certificate,
            pending: Arc::clone(&self.pending),
            held,
            withdrawn: withdrawn.clone(),
            id,
            dir: dir.to_owned(),
            trust_domain: trust_domain.cloned(),
            clock: clock.clone(),
        };
        Box::pin(task.run())
    }
}

/// Half of the life, give or take a tenth of that (SPIRE): enough tries before the end, and no herd. `roll` is in 0..1.
fn renewal_time(from: SystemTime, not_after: SystemTime, roll: f64) -> SystemTime {
    let life = not_after.duration_since(from).unwrap_or(Duration::ZERO);
    from + life.mul_f64(0.45 + 0.1 * roll)
}

fn left(identity: &Identity, now: SystemTime) -> Duration {
    identity.not_after.duration_since(now).unwrap_or(Duration::ZERO)
}

/// A random time up to the smaller of both.
fn at_most(a: Duration, b: Duration) -> Duration {
    a.min(b).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_at_half_of_the_life_within_a_tenth_of_it() {
        let from = SystemTime::UNIX_EPOCH;
        let end = from + Duration::from_secs(1000);
        assert_eq!(renewal_time(from, end, 0.0), from + Duration::from_secs(450));
        assert_eq!(renewal_time(from, end, 1.0), from + Duration::from_secs(550));
        assert_eq!(renewal_time(end, from, 0.5), end, "a life that ends before it begins renews at once");
    }
}
