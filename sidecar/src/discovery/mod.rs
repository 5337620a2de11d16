//! Names to endpoint sets. One task a target looks its name up when the TTL is over, and publishes a snapshot whenever
//! something changed; whoever watches reads snapshots and never waits for a look-up.
//!
//! What it promises:
//! - a *successful* answer is believed, also an empty one (NXDOMAIN, NODATA): the set becomes empty, and the name is
//!   asked for again when the negative TTL of the SOA is over (RFC 2308 section 5);
//! - a *failure* (SERVFAIL, REFUSED, a timeout) changes nothing but the state: the last good set stays in use;
//! - TTLs are obeyed within `dns.min_ttl` and `dns.max_ttl`, and no cache stands between them and the task;
//! - A and AAAA are asked for at the same time, and one family's failure takes nothing from the other;
//! - an answer that differs only in its order is no change;
//! - /etc/hosts comes before DNS, and it and /etc/resolv.conf are read again when they change.
//!
//! A name with a dot is taken as fully qualified and is asked for as it stands; the search list of /etc/resolv.conf is
//! for single labels. Kubernetes' `ndots:5` would turn each look-up of a mesh name into ten queries.

mod dns;
mod set;
mod system;
mod task;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, watch},
};

use crate::config::{DnsConfig, EndpointSource};

pub use set::{EndpointAddress, EndpointSet, SetState};

/// Targets that may be watched at once. An application that makes up names under a mesh domain must not be able to fill
/// the memory or flood the DNS server.
const MAX_TARGETS: usize = 2_000;

/// Targets that are looked up at the same moment, so that a start with many services is no burst of thousands of
/// queries; one that is slow holds its place for `dns.timeout` at most.
const MAX_LOOKUPS: usize = 128;

/// What is to be resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Where the endpoints come from.
    pub source: EndpointSource,
    /// The endpoints' port where the source gives none.
    pub port: u16,
}

/// Counts of look-ups, each of them of all the queries that one refresh of one target takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiscoveryStats {
    /// Answered with records.
    pub lookups_ok: u64,
    /// Answered, without records.
    pub lookups_empty: u64,
    /// Not answered.
    pub lookups_failed: u64,
}

/// Why discovery cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up name resolution: {0}")]
pub struct DiscoveryError(String);

/// Resolves targets on the control runtime. Clones are handles of the same thing.
#[derive(Clone)]
pub struct Discovery(Arc<Inner>);

struct Inner {
    dns: dns::Dns,
    bounds: task::Bounds,
    runtime: Handle,
    lookups: Semaphore,
    max_targets: usize,
    targets: Mutex<HashMap<Target, Watched>>,
    ok: AtomicU64,
    empty: AtomicU64,
    failed: AtomicU64,
}

/// The publishing side of a target that somebody watches.
#[derive(Clone)]
struct Watched {
    sets: Arc<watch::Sender<Arc<EndpointSet>>>,
    hint: Arc<Notify>,
}

impl Discovery {
    /// Starts name resolution. To be called within the control runtime, where its tasks will run.
    pub fn new(config: &DnsConfig) -> Result<Self, DiscoveryError> {
        Self::with_files(config, Path::new("/etc/hosts"), Path::new("/etc/resolv.conf"), MAX_TARGETS)
    }

    fn with_files(
        config: &DnsConfig,
        hosts: &Path,
        resolv_conf: &Path,
        max_targets: usize,
    ) -> Result<Self, DiscoveryError> {
        let runtime = Handle::try_current().map_err(|e| DiscoveryError(e.to_string()))?;
        Ok(Self(Arc::new(Inner {
            dns: dns::Dns::new(config, hosts, resolv_conf)?,
            bounds: task::Bounds::new(config),
            runtime,
            lookups: Semaphore::new(MAX_LOOKUPS),
            max_targets,
            targets: Mutex::default(),
            ok: AtomicU64::new(0),
            empty: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })))
    }

    /// Watches a target: the first to do so starts its task, and the last `Watch` to be dropped ends it. From any
    /// thread.
    pub fn watch(&self, target: Target) -> Watch {
        if let Some(set) = constant(&target) {
            return Watch::of(set);
        }
        let mut targets = self.0.targets();
        if let Some(watched) = targets.get(&target) {
            return watched.watch();
        }
        if targets.len() >= self.0.max_targets {
            let error = format!(
                "cannot resolve {}: {} names are being resolved, which is the limit; the application may be making \
                 names up",
                dns::name_of(&target),
                self.0.max_targets
            );
            tracing::warn!("{error}");
            return Watch::of(EndpointSet { state: SetState::Failed { error }, ..EndpointSet::default() });
        }
        let watched = Watched { sets: Arc::new(watch::Sender::default()), hint: Arc::default() };
        // Before the task starts, or it would see that nobody watches and end.
        let watch = watched.watch();
        targets.insert(target.clone(), watched.clone());
        self.0.runtime.spawn(task::run(Arc::clone(&self.0), target, watched));
        watch
    }

    /// Targets that are being resolved.
    pub fn targets(&self) -> usize {
        self.0.targets().len()
    }

    /// Counts since the start.
    pub fn stats(&self) -> DiscoveryStats {
        DiscoveryStats {
            lookups_ok: self.0.ok.load(Ordering::Relaxed),
            lookups_empty: self.0.empty.load(Ordering::Relaxed),
            lookups_failed: self.0.failed.load(Ordering::Relaxed),
        }
    }
}

impl Inner {
    fn targets(&self) -> MutexGuard<'_, HashMap<Target, Watched>> {
        // Nothing in here can be left half done by a panic.
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a target that nobody watches. False if somebody has begun to in the meantime.
    fn retire(&self, target: &Target, watched: &Watched) -> bool {
        let mut targets = self.targets();
        let unwatched = watched.sets.receiver_count() == 0;
        if unwatched {
            targets.remove(target);
        }
        unwatched
    }
}

impl Watched {
    fn watch(&self) -> Watch {
        Watch { sets: self.sets.subscribe(), hint: Some(Arc::clone(&self.hint)) }
    }
}

/// The set of a target that needs no look-up: addresses, or a "name" that is one.
fn constant(target: &Target) -> Option<EndpointSet> {
    let addresses = match &target.source {
        EndpointSource::Static(addresses) => addresses.clone(),
        EndpointSource::Dns(host) => vec![SocketAddr::new(host.as_str().parse::<IpAddr>().ok()?, target.port)],
        EndpointSource::Srv(_) => return None,
    };
    let endpoints = set::normalise(addresses.into_iter().map(EndpointAddress::plain).collect());
    let state = if endpoints.is_empty() { SetState::Empty } else { SetState::Fresh };
    Some(EndpointSet { endpoints, state, generation: 1 })
}

/// A view of one target's endpoints. `Send`; clones see the same target.
#[derive(Clone)]
pub struct Watch {
    sets: watch::Receiver<Arc<EndpointSet>>,
    hint: Option<Arc<Notify>>,
}

impl Watch {
    fn of(set: EndpointSet) -> Self {
        Self { sets: watch::channel(Arc::new(set)).1, hint: None }
    }

    /// The endpoints as they are known now.
    pub fn snapshot(&self) -> Arc<EndpointSet> {
        Arc::clone(&self.sets.borrow())
    }

    /// Waits until the endpoints or their state differ from what this `Watch` was made with or last waited for; for
    /// ever where they cannot. Safe to cancel.
    pub async fn changed(&mut self) {
        if self.sets.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits for the end of the first look-up, good or bad, and returns what is known then. Safe to cancel.
    pub async fn resolved(&mut self) -> Arc<EndpointSet> {
        loop {
            let set = Arc::clone(&self.sets.borrow_and_update());
            if set.state != SetState::Resolving {
                return set;
            }
            self.changed().await;
        }
    }

    /// Hints that the endpoints may be out of date, as after a connect failure: they are looked up again, at most once
    /// a second. While look-ups fail the hint is ignored: the backoff protects the DNS server.
    pub fn re_resolve(&self) {
        if let Some(hint) = &self.hint {
            hint.notify_one();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod test_server;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
