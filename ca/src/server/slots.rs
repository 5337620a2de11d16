//! How many connections there may be: in total, of one source, and in the middle of a handshake.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::Source;

/// TLS handshakes under way; those beyond wait within their time-out. A handshake is a millisecond of one core.
const HANDSHAKES: usize = 256;
/// Of one source, so that a source whose handshakes stand still does not hold up the others'.
const HANDSHAKES_OF_ONE: usize = 64;

/// Every place that a connection can take.
pub(super) struct Slots {
    total: Arc<Semaphore>,
    size: u32,
    of_one: u32,
    sources: Mutex<HashMap<Source, Used>>,
    handshakes: Arc<Semaphore>,
}

struct Used {
    connections: u32,
    handshakes: Arc<Semaphore>,
}

/// One connection's place; given back when dropped.
pub(super) struct Slot {
    _place: OwnedSemaphorePermit,
    source: Source,
    handshakes: Arc<Semaphore>,
    slots: Arc<Slots>,
}

impl Slots {
    /// `size` connections in total and `of_one` from one source.
    pub(super) fn new(size: u32, of_one: u32) -> Arc<Self> {
        Arc::new(Self {
            total: Arc::new(Semaphore::new(size as usize)),
            size,
            of_one,
            sources: Mutex::default(),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
        })
    }

    /// Waits until one more connection may be accepted. `None` never comes: the semaphore is not closed.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.total).acquire_owned().await.ok()
    }

    /// Gives the place to a connection of `source`. `None`: that source has as many as it may.
    pub(super) fn enter(self: &Arc<Self>, place: OwnedSemaphorePermit, source: Source) -> Option<Slot> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Used { connections: 0, handshakes: Arc::new(Semaphore::new(HANDSHAKES_OF_ONE)) };
        let used = sources.entry(source).or_insert_with(new);
        if used.connections >= self.of_one {
            return None;
        }
        used.connections += 1;
        Some(Slot { _place: place, source, handshakes: Arc::clone(&used.handshakes), slots: Arc::clone(self) })
    }

    /// Connections at this moment.
    pub(super) fn used(&self) -> usize {
        // Not by the places: the one for the next connection is taken before it comes.
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.values().map(|used| used.connections as usize).sum()
    }

    /// Waits until every connection has ended.
    pub(super) async fn all_free(&self) {
        // Never closed, and `size` permits are all that there are.
        let _ = self.total.acquire_many(self.size).await;
    }
}

impl Slot {
    /// Waits until this connection may begin its handshake; to be held until it is done.
    pub(super) async fn handshake(&self) -> (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>) {
        // The source's first: who waits for his own kind holds nothing that others wait for.
        let own = Arc::clone(&self.handshakes).acquire_owned().await.ok();
        (own, Arc::clone(&self.slots.handshakes).acquire_owned().await.ok())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut sources = self.slots.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = sources.get_mut(&self.source) {
            used.connections -= 1;
            if used.connections == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn source(ip: &str) -> Source {
        ip.parse::<IpAddr>().unwrap().into()
    }

    #[tokio::test]
    async fn one_source_cannot_take_every_place_and_nothing_of_it_stays_behind() {
        let slots = Slots::new(3, 2);
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(slots.enter(slots.place().await.unwrap(), source("10.0.0.1")).unwrap());
        }
        assert!(slots.enter(slots.place().await.unwrap(), source("10.0.0.1")).is_none());
        assert_eq!(slots.used(), 2, "the refused one's place is free again");
        held.push(slots.enter(slots.place().await.unwrap(), source("10.0.0.2")).unwrap());
        let full = tokio::time::timeout(std::time::Duration::from_millis(20), slots.place()).await;
        assert!(full.is_err(), "a fourth had a place");
        drop(held);
        slots.all_free().await;
        assert!(slots.sources.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn handshakes_that_stand_still_hold_up_their_own_source_alone() {
        let slots = Slots::new(1000, 1000);
        let mut held = Vec::new();
        for _ in 0..HANDSHAKES_OF_ONE {
            let slot = slots.enter(slots.place().await.unwrap(), source("10.0.0.1")).unwrap();
            let under_way = slot.handshake().await;
            held.push((slot, under_way));
        }
        let soon = std::time::Duration::from_millis(20);
        let one_more = slots.enter(slots.place().await.unwrap(), source("10.0.0.1")).unwrap();
        assert!(tokio::time::timeout(soon, one_more.handshake()).await.is_err());
        let other = slots.enter(slots.place().await.unwrap(), source("10.0.0.2")).unwrap();
        assert!(tokio::time::timeout(soon, other.handshake()).await.is_ok());
    }
}
