//! Whether anything is asked on a connection, so that one on which nothing is can be ended.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

/// Requests under way on one connection.
#[derive(Clone)]
pub(super) struct Activity(Arc<Mutex<State>>);

struct State {
    requests: usize,
    quiet_since: Instant,
}

/// One request; over when dropped.
pub(super) struct UnderWay(Activity);

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { requests: 0, quiet_since: Instant::now() })))
    }

    pub(super) fn begin(&self) -> UnderWay {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).requests += 1;
        UnderWay(self.clone())
    }

    /// Returns when no request has been under way for `limit`.
    pub(super) async fn quiet_for(&self, limit: Duration) {
        loop {
            let (requests, since) = {
                let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                (state.requests, state.quiet_since)
            };
            match since + limit {
                _ if requests > 0 => sleep(limit).await,
                over if over <= Instant::now() => return,
                over => sleep_until(over).await,
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.requests -= 1;
        state.quiet_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn quiet_begins_when_the_last_request_ends() {
        let limit = Duration::from_secs(15);
        let activity = Activity::new();
        let start = Instant::now();
        activity.quiet_for(limit).await;
        assert_eq!(start.elapsed(), limit);

        let (one, two) = (activity.begin(), activity.begin());
        let watching = tokio::spawn({
            let activity = activity.clone();
            async move { activity.quiet_for(limit).await }
        });
        sleep(limit * 2).await;
        drop(one);
        sleep(limit * 2).await;
        assert!(!watching.is_finished(), "a request is still under way");
        drop(two);
        let ended = Instant::now();
        let _ = watching.await;
        assert!(ended.elapsed() >= limit && ended.elapsed() <= limit * 2, "{:?}", ended.elapsed());
    }
}
