//! The promises of the picker. Its randomness is `fastrand`'s, seeded here.

use std::collections::HashMap;

use super::*;

pub(super) struct Server {
    pub(super) id: usize,
    pub(super) ewma: PeakEwma,
    weight: u32,
    priority: u16,
    pub(super) available: Cell<bool>,
    /// How often anybody looked at it: its load or its availability.
    looked: Rc<Cell<usize>>,
}

impl Candidate for Server {
    fn load(&self) -> &PeakEwma {
        self.looked.set(self.looked.get() + 1);
        &self.ewma
    }
    fn weight(&self) -> u32 {
        self.weight
    }
    fn priority(&self) -> u16 {
        self.priority
    }
    fn seat(&self) -> u64 {
        self.id as u64
    }
    fn identity(&self) -> u64 {
        crate::balance::hash(&self.id.to_le_bytes())
    }
    fn is_available(&self, _: Instant) -> bool {
        self.looked.set(self.looked.get() + 1);
        self.available.get()
    }
}

pub(super) struct World {
    pub(super) balancer: Balancer<Server>,
    looked: Rc<Cell<usize>>,
    pub(super) now: Instant,
}

impl World {
    /// Servers by `(weight, priority)`, all measured at 5 ms.
    fn new(panic_threshold: u8, servers: impl IntoIterator<Item = (u32, u16)>) -> Self {
        Self::with(LoadBalancingPolicy::PeakEwma, panic_threshold, servers)
    }

    pub(super) fn with(
        policy: LoadBalancingPolicy,
        panic_threshold: u8,
        servers: impl IntoIterator<Item = (u32, u16)>,
    ) -> Self {
        let (looked, now) = (Rc::new(Cell::new(0)), Instant::now());
        let mut balancer =
            Balancer::new(Percent::new_const(panic_threshold), &LoadBalancing { policy, ..LoadBalancing::default() });
        let server = |(id, (weight, priority))| {
            let (available, looked) = (Cell::new(true), Rc::clone(&looked));
            let server = Server { id, ewma: PeakEwma::new(now), weight, priority, available, looked };
            server.ewma.begin(Instant::now());
            server.ewma.end(now, Some(Duration::from_millis(5)));
            Rc::new(server)
        };
        balancer.replace(servers.into_iter().enumerate().map(server).collect());
        Self { balancer, looked, now }
    }

    fn equal(panic_threshold: u8, n: usize) -> Self {
        Self::new(panic_threshold, std::iter::repeat_n((1, 0), n))
    }

    pub(super) fn server(&self, id: usize) -> &Rc<Server> {
        self.balancer.endpoints().iter().find(|s| s.id == id).unwrap()
    }

    pub(super) fn lose(&self, ids: impl IntoIterator<Item = usize>) {
        ids.into_iter().for_each(|id| self.server(id).available.set(false));
    }

    fn pick(&self) -> usize {
        self.balancer.pick(self.now, &[], None).unwrap().id
    }

    fn shares(&self, picks: usize) -> HashMap<usize, f64> {
        let mut counts = HashMap::new();
        (0..picks).for_each(|_| *counts.entry(self.pick()).or_insert(0.0) += 1.0 / picks as f64);
        counts
    }
}

pub(super) fn seeded() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    fastrand::seed(seed);
}

#[test]
fn idle_endpoints_share_by_weight() {
    seeded();
    for weights in [vec![1, 1, 1, 1], vec![3, 1], vec![90, 9, 1], vec![10, 20, 30, 40]] {
        let world = World::new(50, weights.iter().map(|w| (*w, 0)));
        let (shares, sum) = (world.shares(100_000), f64::from(weights.iter().sum::<u32>()));
        for (id, weight) in weights.iter().enumerate() {
            let (got, want) = (shares.get(&id).copied().unwrap_or(0.0), f64::from(*weight) / sum);
            assert!((got - want).abs() < 0.02, "{weights:?}: endpoint {id} got {got}, not {want}");
        }
    }
}

#[test]
fn busy_endpoints_of_the_same_speed_share_by_weight_too() {
    seeded();
    for weights in [vec![1, 1, 1], vec![3, 1], vec![90, 9, 1], vec![10, 20, 30, 40]] {
        let world = World::new(50, weights.iter().map(|w| (*w, 0)));
        let sum = f64::from(weights.iter().sum::<u32>());
        // Two hundred requests under way at any time; each ends after as many others have begun.
        let mut under_way = std::collections::VecDeque::new();
        let mut counts = vec![0.0; weights.len()];
        for _ in 0..100_000 {
            let id = world.pick();
            world.server(id).ewma.begin(Instant::now());
            counts[id] += 1.0 / 100_000.0;
            under_way.push_back(id);
            if under_way.len() > 200 {
                let done = under_way.swap_remove_back(fastrand::usize(..200)).unwrap();
                world.server(done).ewma.end(world.now, Some(Duration::from_millis(5)));
            }
        }
        for (id, weight) in weights.iter().enumerate() {
            let want = f64::from(*weight) / sum;
            assert!((counts[id] - want).abs() < 0.02, "{weights:?}: endpoint {id} got {}, not {want}", counts[id]);
        }
    }
}

#[test]
fn a_faster_canary_never_gets_more_than_twice_its_weight() {
    seeded();
    let world = World::new(50, [(99, 0), (1, 0)]);
    let canary = &world.server(1).ewma;
    canary.begin(Instant::now());
    canary.end(world.now + Duration::from_secs(60), Some(Duration::from_millis(1)));
    let share = world.shares(100_000)[&1];
    assert!(share > 0.0115 && share < 0.02, "{share}");
}

#[test]
fn the_slower_of_two_is_avoided_and_the_busier_too() {
    seeded();
    let world = World::equal(50, 2);
    world.server(0).ewma.begin(Instant::now());
    world.server(0).ewma.end(world.now, Some(Duration::from_millis(50)));
    assert!((0..100).all(|_| world.pick() == 1), "ten times slower");
    (0..40).for_each(|_| world.server(1).ewma.begin(Instant::now()));
    assert!((0..100).all(|_| world.pick() == 0), "forty times busier");
}

#[test]
fn a_late_wake_up_takes_no_endpoint_out_of_use() {
    seeded();
    let world = World::equal(50, 3);
    world.server(0).ewma.begin(Instant::now());
    world.server(0).ewma.end(world.now, Some(Duration::from_millis(9)));
    let share = world.shares(10_000)[&0];
    assert!(share > 0.2, "5 ms against 9 ms left it {share}");
}

#[test]
fn one_slow_endpoint_of_ten_gets_next_to_nothing() {
    seeded();
    let world = World::equal(50, 10);
    world.server(3).ewma.begin(Instant::now());
    world.server(3).ewma.end(world.now, Some(Duration::from_secs(1)));
    assert_eq!(world.shares(10_000).get(&3), None, "of two candidates the other one is always cheaper");
}

#[test]
fn an_unavailable_endpoint_is_never_picked_outside_panic() {
    seeded();
    for _ in 0..3_000 {
        let n = fastrand::usize(1..40);
        let threshold = [0, 20, 50][fastrand::usize(..3)];
        let world = World::new(threshold, (0..n).map(|_| (fastrand::u32(0..4), fastrand::u16(0..3))));
        world.lose((0..n).filter(|_| fastrand::u8(..3) == 0));
        let tried: Vec<_> = (0..n).filter(|_| fastrand::u8(..4) == 0).map(|id| Rc::clone(world.server(id))).collect();
        let all = world.balancer.endpoints();
        let (up, panic) = (world.balancer.available(world.now), |up: usize| up * 100 < usize::from(threshold) * n);
        for _ in 0..20 {
            let Some(picked) = world.balancer.pick(world.now, &tried, None) else {
                assert!(threshold == 0 && up == 0, "nothing picked of {n}, {up} available, threshold {threshold}");
                continue;
            };
            if panic(up) {
                continue;
            }
            assert!(picked.available.get(), "picked an unavailable one of {n}, {up} available");
            let untried = |s: &&Rc<Server>| s.available.get() && !tried.iter().any(|t| Rc::ptr_eq(t, s));
            let best = all.iter().filter(untried).map(|s| s.priority).min();
            let best = best.or(all.iter().filter(|s| s.available.get()).map(|s| s.priority).min());
            assert_eq!(Some(picked.priority), best, "the lowest priority number that can be used");
            if all.iter().any(|s| untried(&s)) {
                assert!(untried(&&picked), "one that was tried, although another was available");
            }
        }
    }
}

#[test]
fn a_pick_among_ten_thousand_looks_at_a_handful() {
    seeded();
    for weights in [[1, 1], [1, 7]] {
        let world = World::new(50, (0..10_000).map(|i| (weights[i % 2], 0)));
        world.looked.set(0);
        (0..1_000).for_each(|_| assert!(world.pick() < 10_000));
        assert!(world.looked.get() <= 5_000, "all up: {} looks for 1,000 picks", world.looked.get());

        // A third is down, and what the request tried is avoided: still a handful, and one count of all every 50 ms.
        world.lose((0..10_000).filter(|i| i % 3 == 0));
        let tried = [Rc::clone(world.server(1)), Rc::clone(world.server(2))];
        world.balancer.pick(world.now, &tried, None);
        world.looked.set(0);
        for _ in 0..1_000 {
            assert!(world.balancer.pick(world.now, &tried, None).unwrap().available.get());
        }
        assert!(world.looked.get() <= 20_000, "a third down: {} looks for 1,000 picks", world.looked.get());
    }
}

#[test]
fn the_next_priority_takes_over_only_when_the_first_is_gone_and_gives_back() {
    seeded();
    let world = World::new(20, [(1, 10), (1, 10), (1, 20), (1, 20), (1, 30)]);
    assert!((0..200).all(|_| world.pick() < 2));
    world.lose([0]);
    assert!((0..200).all(|_| world.pick() == 1), "one is left of the first group");
    world.lose([1]);
    assert!((0..200).all(|_| [2, 3].contains(&world.pick())));
    world.lose([2, 3]);
    assert!((0..200).all(|_| world.pick() == 4));
    world.server(0).available.set(true);
    assert!((0..200).all(|_| world.pick() == 0), "back at once");
}

#[test]
fn a_retry_goes_elsewhere_and_to_the_next_priority_rather_than_back() {
    seeded();
    let world = World::new(50, [(1, 0), (1, 0), (1, 5)]);
    let [a, b, c] = [0, 1, 2].map(|id| Rc::clone(world.server(id)));
    let pick = |tried: &[Rc<Server>]| world.balancer.pick(world.now, tried, None).unwrap().id;
    assert!((0..100).all(|_| pick(std::slice::from_ref(&a)) == 1));
    assert!((0..100).all(|_| pick(&[Rc::clone(&a), Rc::clone(&b)]) == 2));
    assert!((0..100).all(|_| pick(&[Rc::clone(&a), Rc::clone(&b), Rc::clone(&c)]) < 2), "all tried: back to the first");
}

#[test]
fn below_the_panic_threshold_all_are_used_and_at_it_only_the_available() {
    seeded();
    let world = World::equal(50, 4);
    world.lose([0, 1]);
    assert!((0..200).all(|_| world.pick() >= 2), "half is at the threshold, not below it");
    world.lose([2]);
    let shares = world.shares(10_000);
    assert!((0..4).all(|id| (shares[&id] - 0.25).abs() < 0.03), "panic spreads over all: {shares:?}");
}

#[test]
fn a_panic_stays_with_the_group_that_is_alive() {
    seeded();
    let world = World::new(50, [(1, 0), (1, 0), (1, 0), (1, 9), (1, 9)]);
    world.lose([0, 1, 2]);
    assert!((0..200).all(|_| world.pick() >= 3), "40 % are available, and they are the second group");
    world.lose([3, 4]);
    assert!((0..200).all(|_| world.pick() < 3), "none is: the first group");
}

#[test]
fn with_panic_off_nothing_available_is_nothing_picked() {
    let world = World::equal(0, 3);
    world.lose([0, 1]);
    assert!((0..100).all(|_| world.pick() == 2));
    world.lose([2]);
    assert!(world.balancer.pick(world.now, &[], None).is_none());
    assert!(World::equal(50, 0).balancer.pick(world.now, &[], None).is_none(), "and of none there is nothing to pick");
}

#[test]
fn a_count_of_a_moment_ago_never_hides_the_last_endpoint_of_many() {
    seeded();
    let world = World::equal(0, 1_000);
    world.lose(0..1_000);
    assert!(world.balancer.pick(world.now, &[], None).is_none());
    world.server(77).available.set(true);
    assert_eq!(world.pick(), 77, "although no time has passed since all were counted");
}

#[test]
fn the_only_endpoint_is_used_even_when_it_is_ejected() {
    let world = World::equal(50, 1);
    world.lose([0]);
    assert_eq!(world.pick(), 0);
}

#[test]
fn the_last_few_of_a_weighted_group_share_by_weight() {
    seeded();
    let world = World::new(0, [(60_000, 0), (3, 0), (1, 0)]);
    world.lose([0]);
    let shares = world.shares(100_000);
    assert!((shares[&1] - 0.75).abs() < 0.02, "{shares:?}");
}

#[test]
fn of_very_many_only_as_many_are_used_as_the_load_needs() {
    seeded();
    let world = World::equal(50, 10_000);
    let used = |picks| world.shares(picks).len();
    assert_eq!(used(2_000), LEAST_OPEN, "one request at a time");
    // Requests that stay under way: each endpoint in use has a few of them, and no more.
    let held: Vec<_> = (0..2_000).map(|_| world.balancer.pick(world.now, &[], None).unwrap()).collect();
    for server in &held {
        server.ewma.begin(world.now);
    }
    let mut most = HashMap::<usize, u32>::new();
    for _ in 0..2_000 {
        let server = world.balancer.pick(world.now, &[], None).unwrap();
        server.ewma.begin(world.now);
        *most.entry(server.id).or_default() += 1;
    }
    assert!(most.len() > 50, "{} endpoints for 2,000 requests", most.len());
    // Without load they are given up again.
    for server in world.balancer.endpoints() {
        while server.ewma.in_flight() > 0 {
            server.ewma.end(world.now, None);
        }
    }
    (0..60).for_each(|_| world.balancer.relax());
    assert_eq!(used(2_000), LEAST_OPEN);
}

#[test]
fn an_endpoint_in_use_that_fails_is_replaced_where_there_are_very_many() {
    seeded();
    let world = World::equal(0, 1_000);
    world.lose(0..LEAST_OPEN);
    let shares = world.shares(4_000);
    assert!(shares.keys().all(|id| *id >= LEAST_OPEN), "{shares:?}");
    world.lose(LEAST_OPEN..999);
    assert_eq!(world.pick(), 999, "the last one is found");
}
