//! The database on a thread of its own, so that a disk's fsync never stops the network.
//!
//! What waits while one transaction is written goes into the next one together, each part undone for itself if it fails:
//! one fsync then serves them all.

use std::{panic::AssertUnwindSafe, thread::JoinHandle};

use tokio::sync::{mpsc, oneshot};

use super::{Database, StoreError, Transaction};

/// Work that may wait for the disk. Above it callers are told to come back: a bounded queue is also a bounded wait.
const QUEUE: usize = 1024;

/// Work of so many callers goes into one transaction at most, so that the first of them does not wait for long.
const GROUP: usize = 64;

/// One caller's part of a transaction.
trait Part: Send {
    /// Whether nobody waits for it any more.
    fn is_abandoned(&self) -> bool;
    /// Does it and keeps the result. Called again if the whole transaction has to be tried again.
    fn work(&mut self, tx: &mut Transaction<'_>);
    /// Hands the result over, or says that the transaction came to nothing.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Waiting<F, T, E> {
    work: F,
    result: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Part for Waiting<F, T, E>
where
    F: FnMut(&mut Transaction<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<StoreError> + Send,
{
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn work(&mut self, tx: &mut Transaction<'_>) {
        self.result = Some(tx.part(&mut self.work));
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let result = match (committed, self.result) {
            // A failure of its own says more than that of the whole.
            (_, Some(Err(error))) => Err(error),
            (Ok(()), Some(result)) => result,
            (Err(error), _) => Err(error.into()),
            // Abandoned before its turn, so that nobody waits.
            (Ok(()), None) => return,
        };
        // Nobody may be waiting any more; what was done stays done.
        let _ = self.reply.send(result);
    }
}

/// The work was not done: the queue is full or the thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreGone {
    /// Too much is waiting for the disk.
    #[error("the CA is busy; try again in a moment")]
    Busy,
    /// The CA is shutting down, or the thread died.
    #[error("the CA's database is closed; try again in a moment")]
    Closed,
}

/// A handle to the thread. Clone it freely; the thread ends when every [`Store`] is gone and its queue is empty.
#[derive(Clone)]
pub struct Store {
    queue: mpsc::Sender<Box<dyn Part>>,
}

impl Store {
    /// Gives the database to a new thread.
    pub fn spawn(mut database: Database) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (queue, mut parts) = mpsc::channel::<Box<dyn Part>>(QUEUE);
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || {
            let mut group = Vec::with_capacity(GROUP);
            let mut serve = || {
                while parts.blocking_recv_many(&mut group, GROUP) > 0 {
                    commit(&mut database, &mut group);
                }
            };
            // A server whose database thread is gone would look alive and never issue again; who started it starts it anew.
            if std::panic::catch_unwind(AssertUnwindSafe(&mut serve)).is_err() {
                tracing::error!("the database's thread panicked; this is a defect, please report it");
                std::process::exit(1);
            }
        })?;
        Ok((Self { queue }, thread))
    }

    /// How much work waits.
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Runs `work` on the thread, in a write transaction: see [`Database::transaction`]. Once begun it is run to its end,
    /// even when the caller has gone meanwhile; a caller that goes before is not worked for: a token must not be spent on
    /// a certificate that nobody can get any more.
    pub async fn transaction<T: Send + 'static, E: From<StoreError> + Send + 'static>(
        &self,
        work: impl FnMut(&mut Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<Result<T, E>, StoreGone> {
        let (reply, answer) = oneshot::channel();
        let part = Box::new(Waiting { work, result: None, reply });
        self.queue.try_send(part).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => StoreGone::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreGone::Closed,
        })?;
        answer.await.map_err(|_| StoreGone::Closed)
    }
}

/// One transaction for everybody who waits.
fn commit(database: &mut Database, group: &mut Vec<Box<dyn Part>>) {
    group.retain(|part| !part.is_abandoned());
    if group.is_empty() {
        return;
    }
    let committed = database.transaction(|tx| {
        // Asked again at its turn: those before it take their time.
        group.iter_mut().filter(|part| !part.is_abandoned()).for_each(|part| part.work(tx));
        Ok::<_, StoreError>(())
    });
    for part in group.drain(..) {
        part.answer(committed.clone());
    }
}
