//! How many endpoints may be left alone at once because they asked for it.
//!
//! An endpoint that answers 429 or 503 with `Retry-After` gets no request for that long (Linkerd's failure accrual does
//! the same). Where all replicas of a service are overloaded that would leave nobody, or the rest with everybody's load:
//! together with what outlier detection has ejected there are never more than `max_ejection_percent` of them, and one
//! always stays.

use std::{cell::RefCell, cmp::Reverse, collections::BinaryHeap};

use tokio::time::Instant;

use crate::config;

/// The rests of a service's endpoints, as one worker knows them.
pub struct Rests {
    max_percent: usize,
    /// The ends of those that are in force. That of an endpoint that has left counts until its time.
    ends: RefCell<BinaryHeap<Reverse<Instant>>>,
}

impl Rests {
    /// Rests within `max_ejection_percent`.
    pub fn new(config: &config::OutlierDetection) -> Self {
        Self { max_percent: usize::from(config.max_ejection_percent.get()), ends: RefCell::default() }
    }

    /// Takes a place until `end` for an endpoint that does not rest now; false where there is none. `ejected` of the
    /// `total` endpoints are ejected. One endpoint may always rest if there is another.
    pub fn try_begin(&self, now: Instant, end: Instant, ejected: usize, total: usize) -> bool {
        let mut ends = self.ends.borrow_mut();
        while ends.peek().is_some_and(|Reverse(end)| *end <= now) {
            ends.pop();
        }
        let out = ejected + ends.len() + 1;
        let fits = out < total && (out == 1 || out * 100 <= self.max_percent * total);
        if fits {
            ends.push(Reverse(end));
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Percent;

    fn rests(percent: u8) -> Rests {
        let max_ejection_percent = Percent::new_const(percent);
        Rests::new(&config::OutlierDetection { max_ejection_percent, ..config::OutlierDetection::default() })
    }

    #[test]
    fn no_more_rest_than_the_share_and_one_always_stays() {
        let now = Instant::now();
        let end = now + Duration::from_secs(10);
        for (total, percent, ejected, wanted) in [
            (10, 50, 0, 5),
            (10, 50, 3, 2),
            (10, 50, 5, 0),
            (10, 0, 0, 1),
            (3, 50, 0, 1),
            (2, 50, 0, 1),
            (2, 50, 1, 0),
            (1, 100, 0, 0),
            (4, 100, 0, 3),
        ] {
            let rests = rests(percent);
            let begun = (0..total).filter(|_| rests.try_begin(now, end, ejected, total)).count();
            assert_eq!(begun, wanted, "{percent} % of {total}, {ejected} ejected");
        }
    }

    #[test]
    fn a_place_is_free_again_when_its_time_is_over() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let rests = rests(50);
        assert!(rests.try_begin(now, at(10), 0, 4) && rests.try_begin(now, at(5), 0, 4));
        assert!(!rests.try_begin(at(4), at(20), 0, 4));
        assert!(rests.try_begin(at(5), at(20), 0, 4), "the one that was over first");
        assert!(!rests.try_begin(at(9), at(20), 0, 4));
        assert!(rests.try_begin(at(10), at(20), 0, 4));
    }
}
