//! The retry budget: retries may add only so much load, whatever fails. Finagle's `RetryBudget`, Linkerd's
//! `retryBudget` and Envoy's `retry_budget` are the same idea; this one counts over a sliding window, which unlike a
//! token balance cannot be saved up during quiet hours, and unlike a share of what is active is not emptied by
//! requests being fast.

use std::cell::Cell;

use tokio::time::Instant;

use crate::config::Percent;

/// The window: this many buckets of one second.
const BUCKETS: usize = 10;

#[derive(Clone, Copy, Default)]
struct Bucket {
    /// Which second since the first use this bucket counts.
    second: u64,
    requests: u64,
    retries: u64,
}

/// How many retries one worker may make for one service.
///
/// In any window of 10 s (the current second and the nine before it) there are at most
/// `10 x floor_per_second + percent x requests` retries. So when every replica fails, the load on them rises by that
/// percentage and `floor_per_second` requests a second, no more.
pub struct RetryBudget {
    percent: u64,
    floor: u64,
    origin: Cell<Option<Instant>>,
    buckets: [Cell<Bucket>; BUCKETS],
}

impl RetryBudget {
    /// `percent` of requests may be retries, and `floor_per_second` a second always (divide it among the workers).
    pub fn new(percent: Percent, floor_per_second: u32) -> Self {
        Self {
            percent: u64::from(percent.get()),
            floor: u64::from(floor_per_second) * BUCKETS as u64,
            origin: Cell::new(None),
            buckets: Default::default(),
        }
    }

    /// Counts a request. To be called once a request, not for its retries.
    pub fn request(&self, now: Instant) {
        let (cell, mut bucket) = self.current(now);
        bucket.requests += 1;
        cell.set(bucket);
    }

    /// Takes a retry from the budget; false, and nothing is taken, where there is none left.
    pub fn try_retry(&self, now: Instant) -> bool {
        let (cell, mut bucket) = self.current(now);
        let (mut requests, mut retries) = (0, 0);
        for other in self.buckets.iter().map(Cell::get).filter(|b| b.second + (BUCKETS as u64) > bucket.second) {
            requests += other.requests;
            retries += other.retries;
        }
        let allowed = self.floor + requests * self.percent / 100;
        if retries >= allowed {
            return false;
        }
        bucket.retries += 1;
        cell.set(bucket);
        true
    }

    /// The bucket of this second, emptied where it last counted another one.
    fn current(&self, now: Instant) -> (&Cell<Bucket>, Bucket) {
        let origin = self.origin.get().unwrap_or_else(|| {
            self.origin.set(Some(now));
            now
        });
        let second = now.saturating_duration_since(origin).as_secs();
        let cell = &self.buckets[(second % BUCKETS as u64) as usize];
        let mut bucket = cell.get();
        if bucket.second != second {
            bucket = Bucket { second, ..Bucket::default() };
            cell.set(bucket);
        }
        (cell, bucket)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    fn percent(n: u8) -> Percent {
        Percent::new_const(n)
    }

    fn drain(budget: &RetryBudget) -> usize {
        std::iter::repeat_with(|| budget.try_retry(Instant::now())).take_while(|granted| *granted).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_service_may_retry_by_the_floor() {
        let budget = RetryBudget::new(percent(20), 3);
        assert_eq!(drain(&budget), 30, "3 a second over 10 s");
        advance(Duration::from_secs(9)).await;
        assert_eq!(drain(&budget), 0, "the window still holds the thirty");
        advance(Duration::from_secs(1)).await;
        assert_eq!(drain(&budget), 30, "the window slid past them");
    }

    #[tokio::test(start_paused = true)]
    async fn when_every_replica_fails_the_load_rises_by_the_percentage_and_the_floor_only() {
        let budget = RetryBudget::new(percent(20), 3);
        let (mut requests, mut retries) = (0u32, 0u32);
        for _ in 0..60 {
            for _ in 0..100 {
                budget.request(Instant::now());
                requests += 1;
                // Everything fails, and everybody wants two retries.
                retries += (0..2).map(|_| u32::from(budget.try_retry(Instant::now()))).sum::<u32>();
                advance(Duration::from_millis(10)).await;
            }
        }
        let bound = requests / 5 + 60 * 3;
        assert!(retries <= bound + 30, "{retries} retries for {requests} requests over a minute, bound {bound}");
        assert!(retries >= bound * 9 / 10, "the budget is there to be used: {retries} of {bound}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_of_nothing_grants_nothing() {
        let budget = RetryBudget::new(percent(0), 0);
        (0..1_000).for_each(|_| budget.request(Instant::now()));
        assert_eq!(drain(&budget), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_hours_do_not_save_up() {
        let budget = RetryBudget::new(percent(10), 0);
        (0..100_000).for_each(|_| budget.request(Instant::now()));
        advance(Duration::from_secs(3_600)).await;
        (0..50).for_each(|_| budget.request(Instant::now()));
        assert_eq!(drain(&budget), 5);
    }
}
