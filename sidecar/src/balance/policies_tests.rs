//! The promises of the policies beside the default.

use std::collections::HashMap;

use super::{
    tests::{World, seeded},
    *,
};
use crate::balance::hash;

use LoadBalancingPolicy::{LeastRequest, Maglev, PeakEwma, Random, RingHash, RoundRobin};

const ALL: [LoadBalancingPolicy; 6] = [PeakEwma, LeastRequest, RoundRobin, Random, RingHash, Maglev];

fn key(n: u64) -> Option<u64> {
    Some(hash(&n.to_le_bytes()))
}

/// How often each is picked for requests that are all different, one at a time.
fn counts(world: &World, picks: u64) -> HashMap<usize, u64> {
    let mut counts = HashMap::new();
    for n in 0..picks {
        *counts.entry(world.balancer.pick(world.now, &[], key(n)).unwrap().id).or_insert(0) += 1;
    }
    counts
}

/// The figures that the benchmarks' README gives; run it with `--nocapture` to see them.
#[test]
fn shares_of_100_000_picks_are_near_the_weights() {
    seeded();
    const PICKS: u64 = 100_000;
    for weights in [vec![1; 10], vec![1, 2, 3, 4]] {
        let sum: u32 = weights.iter().sum();
        for policy in ALL {
            let world = World::with(policy, 0, weights.iter().map(|weight| (*weight, 0)));
            let counts = counts(&world, PICKS);
            let error = weights.iter().enumerate().map(|(id, weight)| {
                let wanted = f64::from(*weight) / f64::from(sum);
                let got = counts.get(&id).map_or(0.0, |count| *count as f64 / PICKS as f64);
                (got / wanted - 1.0).abs()
            });
            let worst = error.fold(0.0, f64::max) * 100.0;
            println!(
                "{policy:?} over {} endpoints of weights {weights:?}: at most {worst:.1} % from the share",
                weights.len()
            );
            let most = match policy {
                RoundRobin => 0.1,
                // A ring of 1,024 places is uneven by nature.
                RingHash => 35.0,
                _ => 5.0,
            };
            assert!(worst < most, "{policy:?} {weights:?}: {worst} %");
        }
    }
}

#[test]
fn no_policy_picks_what_is_not_available_unless_it_panics() {
    seeded();
    for policy in ALL {
        for n in [1, 2, 5, 64, 65, 300] {
            for panic_threshold in [0, 50] {
                let world = World::with(policy, panic_threshold, (0..n).map(|id| (1 + id as u32 % 3, (id % 2) as u16)));
                for _ in 0..200 {
                    let gone: Vec<usize> = (0..n).filter(|_| fastrand::u8(..4) == 0).collect();
                    for id in 0..n {
                        world.server(id).available.set(!gone.contains(&id));
                    }
                    let panics = (n - gone.len()) * 100 < usize::from(panic_threshold) * n;
                    let hash = if fastrand::bool() { key(fastrand::u64(..)) } else { None };
                    match world.balancer.pick(world.now, &[], hash) {
                        Some(picked) => assert!(picked.available.get() || panics, "{policy:?} {n} {gone:?}"),
                        None => assert_eq!(gone.len(), n, "{policy:?}: somebody was there"),
                    }
                }
            }
        }
    }
}

#[test]
fn the_same_hash_goes_to_the_same_one_and_to_the_same_other_while_that_is_away() {
    for policy in [RingHash, Maglev] {
        let world = World::with(policy, 0, std::iter::repeat_n((1, 0), 50));
        let of = |n: u64| world.balancer.pick(world.now, &[], key(n)).unwrap().id;
        let before: Vec<usize> = (0..1_000).map(of).collect();
        assert_eq!(before, (0..1_000).map(of).collect::<Vec<_>>());
        let gone = before[0];
        world.lose([gone]);
        let during: Vec<usize> = (0..1_000).map(of).collect();
        assert_eq!(during, (0..1_000).map(of).collect::<Vec<_>>());
        for (was, is) in before.iter().zip(&during) {
            assert!(if *was == gone { *is != gone } else { was == is }, "{policy:?}: {was} became {is}");
        }
        world.server(gone).available.set(true);
        assert_eq!(before, (0..1_000).map(of).collect::<Vec<_>>());
        // A retry goes to another one.
        let tried = [Rc::clone(world.server(gone))];
        assert_ne!(world.balancer.pick(world.now, &tried, key(0)).unwrap().id, gone);
    }
}

#[test]
fn turns_are_kept_while_some_are_away() {
    let world = World::with(RoundRobin, 0, std::iter::repeat_n((1, 0), 4));
    world.lose([2]);
    let counts = counts(&world, 3_000);
    assert_eq!(counts.len(), 3);
    // Whose turn comes where one is passed over gets two.
    assert!(counts.values().all(|count| (740..=1_510).contains(count)), "{counts:?}");
}

#[test]
fn least_request_goes_where_less_is_under_way_however_slow_it_is() {
    seeded();
    let world = World::with(LeastRequest, 0, std::iter::repeat_n((1, 0), 2));
    world.server(0).ewma.begin(world.now);
    world.server(0).ewma.end(world.now, Some(Duration::from_secs(1)));
    world.server(1).ewma.begin(world.now);
    assert!((0..100).all(|n| world.balancer.pick(world.now, &[], key(n)).unwrap().id == 0));
}
