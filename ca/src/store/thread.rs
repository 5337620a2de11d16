//! The database on a thread of its own, so that a disk's fsync never stops the network.

use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::Database;

/// Work that may wait for the disk. Above it callers are told to come back: a bounded queue is also a bounded wait.
const QUEUE: usize = 1024;

type Work = Box<dyn FnOnce(&mut Database) + Send>;

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
    queue: mpsc::Sender<Work>,
}

impl Store {
    /// Gives the database to a new thread.
    pub fn spawn(mut database: Database) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (queue, mut work) = mpsc::channel::<Work>(QUEUE);
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || {
            while let Some(next) = work.blocking_recv() {
                next(&mut database);
            }
        })?;
        Ok((Self { queue }, thread))
    }

    /// How much work waits.
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Runs `work` on the thread. Once begun it is run to its end, even when the caller has gone meanwhile; a caller that
    /// goes before is not worked for: a token must not be spent on a certificate that nobody can get any more.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> T + Send + 'static,
    ) -> Result<T, StoreGone> {
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |database| {
            if reply.is_closed() {
                return;
            }
            // Nobody may be waiting any more; what was done stays done.
            let _ = reply.send(work(database));
        });
        self.queue.try_send(work).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => StoreGone::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreGone::Closed,
        })?;
        answer.await.map_err(|_| StoreGone::Closed)
    }
}
