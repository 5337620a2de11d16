//! Who this workload is and whom it trusts: the current certificate, its key, the roots, and how they stay current.
//!
//! One task on the control runtime owns all of it and publishes each new [`Identity`] as a snapshot; workers read the snapshot
//! when they make a connection. A connection keeps the identity that it was made with, so a renewal drops nothing.
//!
//! - With neither of the two below, the files in `identity.dir` are somebody else's: they are read, watched and read again.
//! - With `identity.workload_api` there are no files: an agent on this machine gives everything, see `workload.rs`.
//! - With `identity.ca` the files are ours: enrolled with a token, renewed at half of their life with the certificate itself, kept across
//!   restarts. The rules of retrying stand in `enrol.rs`.
//!
//! What the identity trusts is part of it: the roots with their marks, and the revocation lists. They come from the files, and
//! with `identity.ca` from what the CA publishes (`follow.rs`, `trust.rs`), which is kept in the files.
//!
//! A bad reload or a failed renewal changes nothing and is loud. Only expiry ends an identity.

mod assemble;
mod attempt;
mod bundle;
mod certificate;
mod crl;
mod document;
mod enrol;
mod expiry;
mod files;
mod folder;
mod follow;
mod kept;
mod provider;
mod readings;
mod source;
mod status;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_ca;
#[cfg(test)]
mod tests_interrupted;
#[cfg(test)]
mod tests_kept;
#[cfg(test)]
mod tests_missed;
#[cfg(test)]
mod tests_trust;
#[cfg(test)]
mod tests_workload;
mod trust;
mod workload;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use outrigger_identity::{SpiffeId, TrustDomain};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use x509_parser::time::ASN1Time;

use crate::config::IdentityConfig;

pub use bundle::{BundleError, PathFault, Root, TrustBundle, Usage};
pub use certificate::{CertificateFault, WorkloadCertificate, validity};
pub use crl::{CrlError, RevocationList, RevocationLists};
pub use files::{IdentityError, load};
pub(crate) use provider::provider;
pub use readings::Readings;
pub use status::{CertificateStatus, IdentityState, IdentityStatus, RevocationStatus, RootStatus};

/// One generation of this workload's identity. Never changes; a renewal makes another one.
#[derive(Clone)]
pub struct Identity {
    /// Our SPIFFE id.
    pub id: SpiffeId,
    /// The trust domain that peers must belong to.
    pub trust_domain: TrustDomain,
    /// The DNS names that our certificate may serve.
    pub dns_names: Vec<String>,
    /// The chain, leaf first, and the key.
    pub key: Arc<CertifiedKey>,
    /// The roots that peers must chain to.
    pub bundle: Arc<TrustBundle>,
    /// Beginning of the chain's validity: the latest of its certificates'.
    pub not_before: SystemTime,
    /// End of the chain's validity, inclusive: the first of its certificates'.
    pub not_after: SystemTime,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// The issuer's name.
    pub issuer: String,
    /// Counts up by one with each identity that is published; caches of TLS configurations are keyed by it.
    pub generation: u64,
}

/// Our own certificate is outside its validity, so every new mesh connection is refused on our side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotValidNow {
    /// Past its end.
    #[error("our own certificate ({id}, serial {serial}) expired {} ago; look at /certs of the admin address for why it was not renewed", words_for(*.ago))]
    Expired {
        /// Whose.
        id: SpiffeId,
        /// Which.
        serial: String,
        /// Since when.
        ago: Duration,
    },
    /// Before its beginning.
    #[error("our own certificate ({id}, serial {serial}) becomes valid in {}; compare this machine's clock with the CA's", words_for(*.wait))]
    NotYet {
        /// Whose.
        id: SpiffeId,
        /// Which.
        serial: String,
        /// For how long.
        wait: Duration,
    },
}

impl Identity {
    /// Whether peers can accept the certificate now.
    pub fn is_valid_now(&self) -> bool {
        self.check_valid(SystemTime::now()).is_ok()
    }

    /// Whether peers can accept the certificate at `now`, and if not, why.
    pub fn check_valid(&self, now: SystemTime) -> Result<(), NotValidNow> {
        if let Ok(wait) = self.not_before.duration_since(now)
            && !wait.is_zero()
        {
            return Err(NotValidNow::NotYet { id: self.id.clone(), serial: self.serial.clone(), wait });
        }
        // notAfter is written in whole seconds and includes its second (RFC 5280 section 4.1.2.5).
        match now.duration_since(self.not_after) {
            Ok(ago) if ago >= Duration::from_secs(1) => {
                Err(NotValidNow::Expired { id: self.id.clone(), serial: self.serial.clone(), ago })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// The current identity, for everybody who needs it.
#[derive(Clone)]
pub struct IdentityHandle {
    shared: Arc<Shared>,
    // The task ends with the last handle.
    _task: Arc<AbortOnDrop>,
}

impl IdentityHandle {
    /// An identity that never changes, for a process that has one certificate for its whole life, and for tests.
    pub fn fixed(identity: Identity) -> Self {
        let shared = Shared::new("given once".to_owned());
        shared.publish(identity);
        Self { shared, _task: Arc::new(AbortOnDrop(None)) }
    }

    /// Publishes another one, as the task would.
    #[cfg(test)]
    pub(crate) fn replace(&self, identity: Identity) {
        self.shared.publish(identity);
    }

    /// The current identity. `None` until the first one was loaded or enrolled; an expired one is still returned, see
    /// [`Identity::check_valid`].
    pub fn current(&self) -> Option<Arc<Identity>> {
        self.shared.current.borrow().clone()
    }

    /// Tells of every new identity.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Identity>>> {
        self.shared.current.subscribe()
    }

    /// Everything that an operator may know: no key material.
    pub fn status(&self) -> IdentityStatus {
        self.shared.status(SystemTime::now())
    }

    /// Certificates obtained from the CA, and attempts that failed, since the start.
    pub fn renewals(&self) -> (u64, u64) {
        let notes = self.shared.notes();
        (notes.renewals_ok, notes.renewals_failed)
    }

    /// How well the CA's bundle and revocation lists could be followed; nothing without `identity.ca`.
    pub fn readings(&self) -> Readings {
        self.shared.notes().readings
    }

    /// When the first of the revocation lists in use was to be replaced; `None` without lists, and where none says so.
    pub fn lists_next_update(&self) -> Option<SystemTime> {
        let identity = self.current()?;
        identity.bundle.revoked().lists().iter().filter_map(|list| list.next_update).min()
    }
}

/// Loads the files once, then keeps the identity current from a task of the current runtime until the last handle
/// is dropped. Never fails: what is wrong is logged, and in [`IdentityHandle::status`], until it is put right.
pub fn start(config: &IdentityConfig) -> IdentityHandle {
    if let Some(endpoint) = &config.workload_api {
        let shared = Shared::new(format!("the Workload API at {endpoint}"));
        let task = tokio::spawn(workload::Workload::new(config, endpoint.clone(), shared.clone()).run());
        return IdentityHandle { shared, _task: Arc::new(AbortOnDrop(Some(task))) };
    }
    let ca = config.ca.clone().map(|ca| enrol::Enroller::new(ca, Arc::new(enrol::GrpcCa)));
    start_with(config, ca, Arc::new(SystemTime::now))
}

/// The wall clock. Tests give one that follows tokio's paused clock.
type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

fn start_with(config: &IdentityConfig, ca: Option<enrol::Enroller>, clock: Clock) -> IdentityHandle {
    let origin = match &config.ca {
        Some(ca) => format!("enrolled with {}, kept in {}", ca.address, config.dir.display()),
        None => format!("files in {}", config.dir.display()),
    };
    let shared = Shared::new(origin);
    let mut source = source::Source::new(config, ca, clock, shared.clone());
    source.first_load();
    let task = tokio::spawn(source.run());
    IdentityHandle { shared, _task: Arc::new(AbortOnDrop(Some(task))) }
}

struct AbortOnDrop(Option<tokio::task::JoinHandle<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// What the task writes and the handles read.
struct Shared {
    current: watch::Sender<Option<Arc<Identity>>>,
    // Control runtime and admin only; workers read `current` alone.
    notes: Mutex<status::Notes>,
}

impl Shared {
    fn new(origin: String) -> Arc<Self> {
        let notes = Mutex::new(status::Notes { origin, ..status::Notes::default() });
        Arc::new(Self { current: watch::Sender::new(None), notes })
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, status::Notes> {
        // Plain values: a panic of another holder leaves nothing half-written that matters.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, identity: Identity) {
        self.current.send_replace(Some(Arc::new(identity)));
    }
}

/// A length of time in words, two units at most: `3 min 20 s`, `23 h 59 min`.
pub(crate) fn words_for(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (big, small) = match seconds {
        0..60 => return format!("{seconds} s"),
        60..3_600 => ((seconds / 60, "min"), (seconds % 60, "s")),
        3_600..86_400 => ((seconds / 3_600, "h"), (seconds % 3_600 / 60, "min")),
        _ => ((seconds / 86_400, "d"), (seconds % 86_400 / 3_600, "h")),
    };
    match small.0 {
        0 => format!("{} {}", big.0, big.1),
        _ => format!("{} {} {} {}", big.0, big.1, small.0, small.1),
    }
}

/// A time as RFC 3339 writes it, in UTC and whole seconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    match i64::try_from(seconds).ok().and_then(|s| ASN1Time::from_timestamp(s).ok()) {
        Some(time) => {
            let t = time.to_datetime();
            let (date, month) = (t.date(), u8::from(t.month()));
            format!(
                "{:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z",
                date.year(),
                date.day(),
                t.hour(),
                t.minute(),
                t.second()
            )
        }
        None => "after the year 9999".to_owned(),
    }
}
