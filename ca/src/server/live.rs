//! The CA while it runs: another process may activate, taint or revoke at any time, and a server takes it up without a
//! restart. It looks every few seconds, and at once at SIGHUP.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::ServeError;
use crate::{
    authority::{Authority, AuthorityError, Password, Upkeep, upkeep},
    issue::{IssueError, Issued},
    store::{Database, Store, StoreGone, Transaction},
};

/// How often the database is asked whether something changed: one small row.
const POLL: Duration = Duration::from_secs(2);
/// After a step that failed the next one waits so long, unless something changed.
const AFTER_A_FAILURE: Duration = Duration::from_secs(60);
/// How long a request waits for a change that the database has and this process has not.
const PATIENCE: Duration = Duration::from_secs(5);

/// The authorities of this moment.
pub struct Live {
    current: ArcSwap<Authority>,
    changes: watch::Sender<u64>,
    look: Notify,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Live")
    }
}

impl Live {
    /// Begins with what was read at start.
    pub fn new(authority: Authority) -> Arc<Self> {
        let current = ArcSwap::from_pointee(authority);
        Arc::new(Self { current, changes: watch::Sender::new(0), look: Notify::new() })
    }

    /// The CA of this moment.
    pub fn get(&self) -> Arc<Authority> {
        self.current.load_full()
    }

    /// Counts changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Looks now and not in a few seconds.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// Issues with the intermediate of this moment, and gives back whose it was. Another process may have activated
    /// another one a moment ago; then that one is waited for, and the work done again.
    pub(crate) async fn issue(
        &self,
        store: &Store,
        work: impl FnMut(&mut Transaction<'_>, &Authority) -> Result<Issued, IssueError> + Clone + Send + 'static,
    ) -> Result<Result<(Issued, Arc<Authority>), IssueError>, StoreGone> {
        let mut again = true;
        loop {
            let authority = self.get();
            let (signer, mut work) = (Arc::clone(&authority), work.clone());
            match store.transaction(move |tx| work(tx, &signer)).await? {
                Err(IssueError::Authority(AuthorityError::Retired { .. }))
                    if again && self.wait_for_another(&authority).await =>
                {
                    again = false;
                }
                other => return Ok(other.map(|issued| (issued, authority))),
            }
        }
    }

    /// Waits until another intermediate signs than that of `old`, for a few seconds at most. `false`: it does not.
    async fn wait_for_another(&self, old: &Authority) -> bool {
        let mut changes = self.changes();
        let is_other = || self.get().active().row.fingerprint != old.active().row.fingerprint;
        self.look();
        timeout(PATIENCE, changes.wait_for(|_| is_other())).await.is_ok_and(|changed| changed.is_ok())
    }

    /// Looks for ever. `changed` hears of each new state before anybody else can see it.
    pub(super) async fn keep(
        self: Arc<Self>,
        mut database: Database,
        password: Option<Password>,
        changed: impl Fn(&Authority) -> Result<(), ServeError>,
    ) {
        let mut password = password;
        let mut failed: Option<Instant> = None;
        let mut warned: Vec<String> = Vec::new();
        loop {
            // The clock of a machine that slept may be far on.
            let _ = timeout(POLL, self.look.notified()).await;
            let current = self.get();
            let wait = failed.is_some_and(|at| at.elapsed() < AFTER_A_FAILURE);
            let looked = tokio::task::spawn_blocking(move || {
                let result = if wait && !is_behind(&current, &mut database) {
                    None
                } else {
                    Some(upkeep(&current, &mut database, password.as_ref(), OffsetDateTime::now_utc()))
                };
                (result, database, password)
            });
            let result;
            (result, database, password) = match looked.await {
                Ok(back) => back,
                Err(error) => return tracing::error!(%error, "the look at the authorities ended; restart this server"),
            };
            let found = match result {
                None => continue,
                Some(Ok(found)) => found,
                Some(Err(error)) => Upkeep { warnings: vec![error.to_string()], ..Upkeep::default() },
            };
            for done in &found.done {
                tracing::info!("{done}");
            }
            // Each once, until it is over.
            for warning in found.warnings.iter().filter(|warning| !warned.contains(warning)) {
                tracing::warn!("{warning}");
            }
            failed = (!found.warnings.is_empty()).then(Instant::now);
            warned = found.warnings;
            if let Some(next) = found.changed {
                self.take_up(next, &changed);
            }
        }
    }

    fn take_up(&self, next: Authority, changed: impl Fn(&Authority) -> Result<(), ServeError>) {
        if let Err(error) = changed(&next) {
            // Verifying by the state before is less safe than not going on.
            tracing::error!(%error, "the new roots and lists cannot be used for callers' certificates");
        }
        let members = next.members();
        tracing::info!(
            intermediate = next.active().short(),
            root = next.active_root().short(),
            roots = members.roots().count(),
            sequence = members.bundle.sequence,
            "took up what the database says of the authorities"
        );
        self.current.store(Arc::new(next));
        self.changes.send_modify(|count| *count += 1);
    }
}

fn is_behind(current: &Authority, database: &mut Database) -> bool {
    database.snapshot(|tx| tx.bundle_row()).is_ok_and(|row| row.version != current.members().bundle.version)
}
