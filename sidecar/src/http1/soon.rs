//! Waits of about the same length of very many, of whom hardly any waits to the end.
//!
//! A timer of the runtime that ends before all others makes it write to itself, once for each request. This one is the
//! runtime's once for all who wait.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{task::spawn_local, time::sleep};

/// At least so long, and at most about twice that.
const SOON: Duration = Duration::from_millis(10);

thread_local! {
    static NEXT: RefCell<Vec<Rc<Wait>>> = const { RefCell::new(Vec::new()) };
    static TICKS: Cell<bool> = const { Cell::new(false) };
}

#[derive(Default)]
struct Wait {
    over: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

/// A wait, which begins when it is first polled.
#[derive(Default)]
pub(super) struct Soon(Option<Rc<Wait>>);

impl Soon {
    /// Ends 10 to 20 ms after it was first polled. Wakes the task that polled it first.
    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        let wait = self.0.get_or_insert_with(|| {
            let wait = Rc::new(Wait { over: Cell::new(false), waker: Cell::new(Some(cx.waker().clone())) });
            NEXT.with_borrow_mut(|next| next.push(Rc::clone(&wait)));
            if !TICKS.replace(true) {
                spawn_local(tick());
            }
            wait
        });
        if wait.over.get() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Soon {
    fn drop(&mut self) {
        // A waker would keep the task's memory.
        if let Some(wait) = &self.0 {
            wait.waker.take();
        }
    }
}

/// Also when the runtime ends: another one of this thread would wait for it in vain.
struct Ticks;

impl Drop for Ticks {
    fn drop(&mut self) {
        TICKS.set(false);
    }
}

async fn tick() {
    let _ticks = Ticks;
    loop {
        let now = NEXT.take();
        if now.is_empty() {
            return;
        }
        sleep(SOON).await;
        for wait in now {
            wait.over.set(true);
            if let Some(waker) = wait.waker.take() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{task::LocalSet, time::Instant};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_waits_long_enough_and_not_much_longer_and_who_has_gone_is_not_woken() {
        let waits = async {
            let mut gone = Soon::default();
            assert!(poll_fn(|cx| Poll::Ready(gone.poll(cx))).await.is_pending());
            drop(gone);
            for pause in [0, 3, 7, 30, 100] {
                sleep(Duration::from_millis(pause)).await;
                let began = Instant::now();
                let mut soon = Soon::default();
                poll_fn(|cx| soon.poll(cx)).await;
                assert!((SOON..=2 * SOON + Duration::from_millis(1)).contains(&began.elapsed()));
            }
            sleep(4 * SOON).await;
            assert!(!TICKS.get(), "nobody waits and it ticks");
        };
        LocalSet::new().run_until(waits).await;
    }
}
