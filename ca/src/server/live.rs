//! The CA while it runs: another process may activate, taint or revoke at any time, and a server takes it up without a
//! restart. It looks every few seconds, and at once at SIGHUP.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::{sync::watch, time::timeout};

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

/// What the thread that looks is told.
enum Told {
    Look,
    End,
}

/// The authorities of this moment.
pub struct Live {
    current: ArcSwap<Authority>,
    changes: watch::Sender<u64>,
    tell: Sender<Told>,
    idle: Mutex<Option<Idle>>,
}

/// What the thread that looks works with, until there is one.
struct Idle {
    told: Receiver<Told>,
    database: Database,
    password: Option<Password>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Live")
    }
}

/// Ends the thread that looks when it goes.
pub(super) struct Keeper(Sender<Told>);

impl Drop for Keeper {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.0.send(Told::End);
    }
}

impl Live {
    /// Begins with what was read at start. `database` is a connection for this alone, so that a password's hash keeps no
    /// caller waiting; `password` opens keys, and the next one is encrypted with it.
    pub fn new(authority: Authority, database: Database, password: Option<Password>) -> Arc<Self> {
        let (tell, told) = channel();
        let current = ArcSwap::from_pointee(authority);
        let idle = Mutex::new(Some(Idle { told, database, password }));
        Arc::new(Self { current, changes: watch::Sender::new(0), tell, idle })
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
        // Without a thread that looks nothing changes.
        let _ = self.tell.send(Told::Look);
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

    /// Looks on a thread of its own, because files, passwords and a database's client block, until the keeper goes.
    /// `changed` hears of each new state before anybody else can see it.
    pub(super) fn keep(
        self: &Arc<Self>,
        changed: impl Fn(&Authority) -> Result<(), ServeError> + Send + 'static,
    ) -> Result<Keeper, ServeError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let idle = idle
            .ok_or_else(|| ServeError::System("look at the authorities twice", io::ErrorKind::AlreadyExists.into()))?;
        let live = Arc::clone(self);
        std::thread::Builder::new()
            .name("upkeep".into())
            .spawn(move || live.look_for_ever(idle, &changed))
            .map_err(|e| ServeError::System("start the thread that looks at the authorities", e))?;
        Ok(Keeper(self.tell.clone()))
    }

    fn look_for_ever(&self, idle: Idle, changed: &impl Fn(&Authority) -> Result<(), ServeError>) {
        let Idle { told, mut database, password } = idle;
        let mut failed: Option<Instant> = None;
        let mut warned: Vec<String> = Vec::new();
        loop {
            // The clock of a machine that slept may be far on.
            match told.recv_timeout(POLL) {
                Ok(Told::Look) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Told::End) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let current = self.get();
            if failed.is_some_and(|at| at.elapsed() < AFTER_A_FAILURE) && !is_behind(&current, &mut database) {
                continue;
            }
            let found = match upkeep(&current, &mut database, password.as_ref(), OffsetDateTime::now_utc()) {
                Ok(found) => found,
                Err(error) => Upkeep { warnings: vec![error.to_string()], ..Upkeep::default() },
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
                self.take_up(next, changed);
            }
        }
    }

    fn take_up(&self, next: Authority, changed: &impl Fn(&Authority) -> Result<(), ServeError>) {
        if let Err(error) = changed(&next) {
            tracing::error!(%error, "callers' certificates are still judged by the roots and lists of before");
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
