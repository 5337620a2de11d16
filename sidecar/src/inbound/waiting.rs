//! Connections that have not said what they are yet: bounded, the one that is silent for longest giving way.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
};

use tokio::sync::Notify;

#[derive(Default)]
struct Waiter {
    give_up: Notify,
}

/// The places of one worker.
pub(super) struct Waiting {
    limit: usize,
    here: Rc<Cell<usize>>,
    order: RefCell<VecDeque<Weak<Waiter>>>,
}

impl Waiting {
    /// `limit` places, all free.
    pub(super) fn new(limit: u32) -> Self {
        Self { limit: limit as usize, here: Rc::default(), order: RefCell::default() }
    }

    /// Takes a place; where all are taken, the connection that has waited longest is told to give up.
    pub(super) fn enter(&self) -> Place {
        let mut order = self.order.borrow_mut();
        if self.here.get() >= self.limit {
            while let Some(oldest) = order.pop_front() {
                if let Some(oldest) = oldest.upgrade() {
                    oldest.give_up.notify_one();
                    break;
                }
            }
        }
        // Entries of connections that have gone are dropped before they outnumber the living.
        if order.len() > 2 * self.limit {
            order.retain(|w| w.strong_count() > 0);
        }
        let waiter = Rc::new(Waiter::default());
        order.push_back(Rc::downgrade(&waiter));
        self.here.set(self.here.get() + 1);
        Place { waiter, here: Rc::clone(&self.here) }
    }
}

/// A place among the waiting.
pub(super) struct Place {
    waiter: Rc<Waiter>,
    here: Rc<Cell<usize>>,
}

impl Place {
    /// Ends when the place is needed by another.
    pub(super) async fn given_up(&self) {
        self.waiter.give_up.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.here.set(self.here.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_one_that_waits_longest_gives_way() {
        let waiting = Waiting::new(2);
        let (first, second) = (waiting.enter(), waiting.enter());
        assert!(first.given_up().now_or_never().is_none());
        let third = waiting.enter();
        assert!(first.given_up().now_or_never().is_some());
        assert!(second.given_up().now_or_never().is_none());
        drop((first, second));
        let _fourth = waiting.enter();
        assert!(third.given_up().now_or_never().is_none());
    }
}
