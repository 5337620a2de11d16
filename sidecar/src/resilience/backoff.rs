//! Exponential backoff with full jitter: the whole wait is random, so that clients that failed together do not come
//! back together (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

use std::time::Duration;

/// The longest wait between two tries of a request, in bases (Envoy's `retry_back_off.max_interval`: 10 x base).
const CAP: u32 = 10;

/// How long to wait before the `retry`-th retry of a request, counted from 1: a random time in
/// `[0, min(base x (2^retry - 1), 10 x base))`, as [`crate::config::RetryPolicy::backoff`] says. Zero for retry 0.
pub fn full_jitter(base: Duration, retry: u32) -> Duration {
    let steps = 1u32.checked_shl(retry).map_or(CAP, |power| (power - 1).min(CAP));
    base.saturating_mul(steps).mul_f64(fastrand::f64())
}

/// How long a background task waits after its `failures`-th failure in a row, counted from 1: a random time in
/// `[floor, min(floor x 2^failures, cap))`. The floor keeps a task that nobody waits for from spinning.
pub fn full_jitter_between(floor: Duration, cap: Duration, failures: u32) -> Duration {
    let factor = 1u32.checked_shl(failures).unwrap_or(u32::MAX);
    let ceiling = floor.saturating_mul(factor).min(cap);
    floor + ceiling.saturating_sub(floor).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(25);

    fn longest(retry: u32) -> Duration {
        (0..4_000).map(|_| full_jitter(BASE, retry)).max().unwrap_or_default()
    }

    #[test]
    fn each_retry_may_wait_longer_until_ten_bases() {
        fastrand::seed(7);
        for (retry, bound) in [(1, 25), (2, 75), (3, 175), (4, 250), (5, 250), (31, 250), (32, 250), (1_000, 250)] {
            let (seen, bound) = (longest(retry), Duration::from_millis(bound));
            assert!(seen < bound, "retry {retry} waited {seen:?}, bound {bound:?}");
            assert!(seen > bound.mul_f64(0.98), "retry {retry} never came near its bound: {seen:?} of {bound:?}");
        }
    }

    #[test]
    fn the_whole_wait_is_random_not_only_its_end() {
        fastrand::seed(8);
        let short = (0..10_000).filter(|_| full_jitter(BASE, 4) < Duration::from_millis(25)).count();
        assert!((900..1_100).contains(&short), "a tenth of the waits is in the first tenth, not {short} of 10,000");
    }

    #[test]
    fn the_first_try_waits_for_nothing() {
        assert_eq!(full_jitter(BASE, 0), Duration::ZERO);
    }

    #[test]
    fn a_background_task_never_spins_and_never_sleeps_beyond_its_cap() {
        fastrand::seed(9);
        let (floor, cap) = (Duration::from_secs(1), Duration::from_secs(30));
        for failures in [0, 1, 2, 5, 40] {
            for _ in 0..1_000 {
                let wait = full_jitter_between(floor, cap, failures);
                assert!(wait >= floor && wait <= cap.min(floor * 2u32.pow(failures.min(6))), "{failures}: {wait:?}");
            }
        }
    }
}
