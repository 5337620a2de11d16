//! The promises of outlier detection, on a clock that the tests move.

use tokio::time::advance;

use super::*;
use crate::config::Percent;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn detector(change: impl FnOnce(&mut config::OutlierDetection)) -> OutlierDetector {
    let mut config = config::OutlierDetection::default();
    change(&mut config);
    OutlierDetector::new(&config)
}

fn hosts(n: usize) -> Vec<HostHealth> {
    std::iter::repeat_with(HostHealth::new).take(n).collect()
}

/// Fails an endpoint five times, the default threshold of every detector.
fn break_it(d: &OutlierDetector, host: &HostHealth, total: usize) -> Option<Ejection> {
    (0..5).filter_map(|_| d.record(host, total, Outcome::LocalOrigin, Instant::now())).last()
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_eject_and_the_cause_is_the_most_specific() {
    for (outcome, cause) in [
        (Outcome::Http5xx, "consecutive_5xx"),
        (Outcome::GatewayFailure, "consecutive_gateway_failure"),
        (Outcome::LocalOrigin, "consecutive_local_origin_failure"),
    ] {
        let (d, host) = (detector(|_| {}), HostHealth::new());
        for _ in 0..4 {
            assert_eq!(d.record(&host, 3, outcome, Instant::now()), None);
        }
        let ejection = d.record(&host, 3, outcome, Instant::now()).unwrap();
        assert_eq!(ejection, Ejection { cause, until: Instant::now() + secs(30) });
        assert!(host.is_ejected(Instant::now()));
        assert_eq!(host.ejected_for(Instant::now()), Some(secs(30)));
    }
}

#[tokio::test(start_paused = true)]
async fn one_success_starts_the_count_again() {
    let (d, host) = (detector(|_| {}), HostHealth::new());
    for _ in 0..100 {
        for outcome in [Outcome::LocalOrigin, Outcome::Http5xx, Outcome::GatewayFailure, Outcome::LocalOrigin] {
            assert_eq!(d.record(&host, 3, outcome, Instant::now()), None);
        }
        d.record(&host, 3, Outcome::Success, Instant::now());
    }
}

#[tokio::test(start_paused = true)]
async fn failures_of_every_kind_in_a_row_are_5xx_in_a_row() {
    let (d, host) = (detector(|_| {}), HostHealth::new());
    let mixed =
        [Outcome::LocalOrigin, Outcome::Http5xx, Outcome::GatewayFailure, Outcome::LocalOrigin, Outcome::Http5xx];
    let last = mixed.into_iter().filter_map(|o| d.record(&host, 3, o, Instant::now())).last();
    assert_eq!(last.unwrap().cause, "consecutive_5xx");
}

#[tokio::test(start_paused = true)]
async fn a_500_ends_a_row_of_gateway_failures_and_any_response_one_of_connect_failures() {
    let d = detector(|c| {
        c.consecutive_5xx = 0;
        c.consecutive_gateway_failure = 2;
        c.consecutive_local_origin_failure = 2;
    });
    let host = HostHealth::new();
    for _ in 0..10 {
        for outcome in [Outcome::GatewayFailure, Outcome::Http5xx, Outcome::LocalOrigin, Outcome::Http5xx] {
            assert_eq!(d.record(&host, 3, outcome, Instant::now()), None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_threshold_of_zero_switches_a_detector_off() {
    let d = detector(|c| {
        c.consecutive_5xx = 0;
        c.consecutive_gateway_failure = 0;
        c.consecutive_local_origin_failure = 0;
    });
    let host = HostHealth::new();
    for outcome in [Outcome::LocalOrigin, Outcome::Http5xx, Outcome::GatewayFailure] {
        assert!((0..1_000).all(|_| d.record(&host, 3, outcome, Instant::now()).is_none()));
    }
}

#[tokio::test(start_paused = true)]
async fn each_ejection_is_longer_up_to_the_maximum_and_health_shortens_it_again() {
    let d = detector(|c| c.max_ejection_time = secs(100).into());
    let host = HostHealth::new();
    for expected in [30, 60, 90, 100, 100, 100] {
        let ejection = break_it(&d, &host, 1).unwrap();
        assert_eq!(ejection.until - Instant::now(), secs(expected));
        advance(secs(expected)).await;
        assert_eq!(d.sweep([&host], Instant::now()), 1, "readmitted on time");
    }
    assert_eq!(host.ejections(), 6);
    // Three intervals of health forgive three of the four ejections that count.
    for _ in 0..3 {
        advance(secs(10)).await;
        d.sweep([&host], Instant::now());
    }
    assert_eq!(break_it(&d, &host, 1).unwrap().until - Instant::now(), secs(60));
}

#[tokio::test(start_paused = true)]
async fn jitter_lengthens_an_ejection_by_at_most_its_bound() {
    fastrand::seed(3);
    let d = detector(|c| c.max_ejection_time_jitter = secs(10).into());
    let times: Vec<_> = hosts(200)
        .iter()
        .map(|host| {
            let time = break_it(&d, host, 1).unwrap().until - Instant::now();
            d.forget(host);
            time
        })
        .collect();
    let (least, most) = (*times.iter().min().unwrap(), *times.iter().max().unwrap());
    assert!(least >= secs(30) && least < secs(31) && most > secs(39) && most <= secs(40), "{least:?} to {most:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_percentage_is_ejected_but_one_always_may() {
    for (total, percent, expected) in [(10, 50, 5), (3, 50, 1), (3, 10, 1), (1, 0, 1), (4, 50, 2), (10, 100, 10)] {
        let d = detector(|c| c.max_ejection_percent = Percent::new_const(percent));
        let all = hosts(total);
        let ejected = all.iter().filter_map(|host| break_it(&d, host, total)).count();
        assert_eq!((ejected, d.ejected()), (expected, expected), "{percent} % of {total}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_could_not_be_ejected_is_as_soon_as_there_is_room() {
    let d = detector(|c| c.max_ejection_percent = Percent::new_const(10));
    let all = hosts(2);
    assert!(break_it(&d, &all[0], 2).is_some());
    assert!(break_it(&d, &all[1], 2).is_none(), "no room");
    advance(secs(30)).await;
    assert_eq!(d.sweep(&all, Instant::now()), 1);
    assert!(d.record(&all[1], 2, Outcome::LocalOrigin, Instant::now()).is_some(), "its next failure");
}

#[tokio::test(start_paused = true)]
async fn an_ejection_ends_by_the_clock_and_is_counted_once() {
    let d = detector(|_| {});
    let all = hosts(4);
    break_it(&d, &all[0], 4).unwrap();
    break_it(&d, &all[1], 4).unwrap();
    advance(secs(29)).await;
    assert_eq!((d.sweep(&all, Instant::now()), d.ejected()), (0, 2));
    advance(secs(1)).await;
    assert!(!all[0].is_ejected(Instant::now()), "over, although nobody swept");
    // A request ends on the first before the sweep: it is readmitted there, and the sweep still reports it.
    d.record(&all[0], 4, Outcome::Success, Instant::now());
    assert_eq!(d.ejected(), 1);
    assert_eq!((d.sweep(&all, Instant::now()), d.ejected()), (2, 0));
    assert_eq!(d.sweep(&all, Instant::now()), 0);
}

#[tokio::test(start_paused = true)]
async fn failures_that_arrive_during_an_ejection_do_not_lengthen_it_nor_count_after_it() {
    let (d, host) = (detector(|_| {}), HostHealth::new());
    let until = break_it(&d, &host, 3).unwrap().until;
    assert!((0..100).all(|_| d.record(&host, 3, Outcome::LocalOrigin, Instant::now()).is_none()));
    assert_eq!(host.ejection(Instant::now()).unwrap().until, until);
    advance(secs(30)).await;
    assert!((0..4).all(|_| d.record(&host, 3, Outcome::LocalOrigin, Instant::now()).is_none()));
    assert!(d.record(&host, 3, Outcome::LocalOrigin, Instant::now()).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_leaves_while_ejected_makes_room_for_another() {
    let d = detector(|c| c.max_ejection_percent = Percent::new_const(10));
    let all = hosts(2);
    break_it(&d, &all[0], 2).unwrap();
    d.forget(&all[0]);
    d.forget(&all[0]);
    assert_eq!(d.ejected(), 0, "twice is harmless");
    assert!(break_it(&d, &all[1], 1).is_some());
}

#[test]
fn the_count_of_ejected_endpoints_never_drifts() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    fastrand::seed(seed);
    let d = detector(|c| c.max_ejection_percent = Percent::new_const(60));
    let mut all = hosts(12);
    let mut now = Instant::now();
    let (mut begun, mut ended, mut left) = (0usize, 0usize, 0usize);
    for _ in 0..50_000 {
        now += Duration::from_millis(fastrand::u64(0..400));
        let host = fastrand::usize(..all.len());
        match fastrand::u8(..100) {
            0..=1 => ended += d.sweep(&all, now),
            2 => {
                left += usize::from(all[host].ejected.get().is_some());
                d.forget(&all[host]);
                all[host] = HostHealth::new();
            }
            3..=40 => {
                d.record(&all[host], all.len(), Outcome::Success, now);
            }
            _ => {
                let outcome = [Outcome::Http5xx, Outcome::GatewayFailure, Outcome::LocalOrigin][fastrand::usize(..3)];
                begun += usize::from(d.record(&all[host], all.len(), outcome, now).is_some());
            }
        }
        assert_eq!(d.ejected(), all.iter().filter(|h| h.ejected.get().is_some()).count());
        assert!(d.ejected() <= 7, "60 % of 12");
    }
    ended += d.sweep(&all, now + secs(1_000));
    assert_eq!(d.ejected(), 0);
    assert!(begun > 100, "the run must eject to prove anything, not {begun}");
    assert_eq!(begun, ended + left, "every ejection ends in one readmission or in its endpoint leaving");
}
