//! The picker: priorities, weights, availability and panic around the two choices.
//!
//! # Weights
//! Candidates are *drawn* by weight and *compared* by cost, where the requests under way count in proportion to the
//! weight: `latency x (in_flight / relative weight + 1)`. So weights are not counted twice: idle endpoints are equally
//! cheap and share by the draw alone, and under load an endpoint of weight 3 is as full with 3 requests as one of weight
//! 1 with 1. With equal weights the cost is [`PeakEwma::load`]. Two candidates of unequal weight are drawn
//! independently and may be the same one twice; that keeps the share of an endpoint that is drawn with probability p
//! between p² and 2p - p² however fast or slow it is, so a canary of weight 1 in 100 never gets more than 2 % for
//! being a little faster. Ties go to the first drawn.
//!
//! # Priorities
//! The lowest number that has an available endpoint which the request has not tried; then the lowest that has an
//! available one at all (RFC 2782: the lowest-numbered that can be reached).
//!
//! # Panic
//! When fewer than `panic_threshold` of all endpoints are available, unavailability is ignored: the few that are left would
//! be the next to fall (Envoy's `healthy_panic_threshold`). The group that is used then is the lowest-numbered one with
//! an available endpoint, or the lowest-numbered of all, so a panic never turns from a live group to a dead one.
//!
//! # Policies
//! `least_request` compares the same two by the requests under way alone; `random` draws one. `round_robin` and the hashing
//! ones have an order of their own ([`Stride`], [`Table`]), and go on in it past an endpoint that cannot be used.
//!
//! # Aperture
//! Of very many equal endpoints a worker uses only as many as its load needs, as Finagle's aperture does: each one used
//! costs a connection, its handshake and its memory, and requests that share a connection share its writes. Where most
//! picks find their better candidate busy one more is opened; a sweep without that closes a quarter again. Which ones are
//! used is by [`Candidate::seat`], another order in each worker of each sidecar. An endpoint in use that becomes
//! unavailable is replaced by the next. Endpoints of unequal weight are all used, or the shares would not be kept.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::time::Instant;

use super::{PeakEwma, alias, hashing::Table, stride::Stride};
use crate::config::{LoadBalancing, LoadBalancingPolicy, Percent};

/// How often an endpoint that cannot be used is drawn again before all are looked at.
const REDRAWS: usize = 8;

/// Up to this many endpoints, looking at all of them costs no more than a few draws, and is exact.
const FEW: usize = 64;

/// How long a count of the available among many endpoints is believed.
const CENSUS_AGE: Duration = Duration::from_millis(50);

/// Among more than [`FEW`] equal endpoints, at least this many are used.
const LEAST_OPEN: usize = 4;

/// Seconds of work ahead of a request at the cheaper of two endpoints from which another one is used as well: what has
/// 1 ms of work in each request shares connections, and what has 40 ms gets an endpoint a request.
const MUCH: f64 = 0.040;

/// So many more such picks than others bring one more endpoint into use: a moment's hiccup does not.
const PERSISTENT: u32 = 16;

/// What a [`Balancer`] chooses among.
pub trait Candidate {
    /// Its load signal.
    fn load(&self) -> &PeakEwma;
    /// Its weight among those of its priority; all 0 means all the same.
    fn weight(&self) -> u32;
    /// The group that it belongs to; lower numbers first.
    fn priority(&self) -> u16;
    /// What it is known by to hashing policies: the same in every process.
    fn identity(&self) -> u64;
    /// Its place in the order in which endpoints come into use where there are very many: random, and always the same.
    fn seat(&self) -> u64;
    /// Whether it may be used: not ejected, and not waiting to be dialled again.
    fn is_available(&self, now: Instant) -> bool;
}

/// Endpoints of one priority.
struct Group {
    /// Where they begin in `Balancer::endpoints`.
    start: usize,
    weights: alias::Weights,
    /// The weight of each as a multiple of the group's mean; empty where all are 1.
    relative: Box<[f64]>,
    /// The available ones, when last counted.
    available: Cell<usize>,
    len: usize,
    /// How many of them are in use: the first ones.
    open: Cell<usize>,
    /// Picks that found much work ahead, less those that did not.
    pressure: Cell<u32>,
    /// Whether another one came into use since the last sweep.
    widened: Cell<bool>,
    order: Order,
}

/// How one endpoint of a group follows another.
enum Order {
    /// It does not: they are drawn.
    Chance,
    Turns(Stride),
    Hash(Table),
}

/// Seconds added to every latency before two are compared: below this a difference is the scheduler's, and one late
/// wake-up of half a millisecond would take an endpoint out of use until its peak has decayed.
const NOISE: f64 = 0.002;
/// Within this factor two costs are no reason to give one endpoint everything: each is chosen in proportion to how cheap
/// it is. Beyond it the cheaper one always is, so that a slow endpoint gets only what all others cannot take.
const CLOSE: f64 = 4.0;

/// Picks an endpoint for each request.
pub struct Balancer<E> {
    panic_threshold: usize,
    policy: LoadBalancing,
    endpoints: Vec<Rc<E>>,
    groups: Vec<Group>,
    counted_at: Cell<Option<Instant>>,
}

impl<E: Candidate> Balancer<E> {
    /// A balancer without endpoints. See [`crate::config::OutlierDetection::panic_threshold`]; 0 switches panic off.
    pub fn new(panic_threshold: Percent, policy: &LoadBalancing) -> Self {
        Self {
            panic_threshold: usize::from(panic_threshold.get()),
            policy: policy.clone(),
            endpoints: Vec::new(),
            groups: Vec::new(),
            counted_at: Cell::new(None),
        }
    }

    /// Takes these endpoints in place of the former ones. Keep the `Rc` of an endpoint that stays, or its load signal
    /// and health are lost.
    pub fn replace(&mut self, mut endpoints: Vec<Rc<E>>) {
        endpoints.sort_by_key(|e| e.priority());
        for members in endpoints.chunk_by_mut(|a, b| a.priority() == b.priority()).filter(|m| m.len() > FEW) {
            members.sort_by_cached_key(|e| e.seat());
        }
        let before = std::mem::take(&mut self.groups);
        let opened = |priority| {
            before.iter().find(|g| self.endpoints[g.start].priority() == priority).map_or(0, |g| g.open.get())
        };
        let mut start = 0;
        self.groups = endpoints
            .chunk_by(|a, b| a.priority() == b.priority())
            .map(|members| {
                let effective = alias::effective(members.iter().map(|e| e.weight()));
                let weights = alias::Weights::new(&effective);
                let mean = effective.iter().sum::<f64>() / effective.len() as f64;
                let relative = match weights {
                    alias::Weights::Equal(_) => Box::default(),
                    alias::Weights::Table(_) => effective.iter().map(|w| w / mean).collect(),
                };
                let len = members.len();
                let compares = matches!(self.policy.policy, LoadBalancingPolicy::PeakEwma);
                let all = len <= FEW || !compares || matches!(weights, alias::Weights::Table(_));
                let open = if all { len } else { opened(members[0].priority()).clamp(LEAST_OPEN, len) };
                let group = Group {
                    start,
                    weights,
                    relative,
                    available: Cell::new(0),
                    len,
                    open: Cell::new(open),
                    pressure: Cell::new(0),
                    widened: Cell::new(false),
                    order: self.order(members, &effective),
                };
                start += len;
                group
            })
            .collect();
        self.endpoints = endpoints;
        self.counted_at.set(None);
    }

    fn order(&self, members: &[Rc<E>], weights: &[f64]) -> Order {
        let known = || members.iter().map(|e| e.identity()).zip(weights.iter().copied()).collect::<Vec<_>>();
        match self.policy.policy {
            LoadBalancingPolicy::PeakEwma | LoadBalancingPolicy::LeastRequest | LoadBalancingPolicy::Random => {
                Order::Chance
            }
            LoadBalancingPolicy::RoundRobin => Order::Turns(Stride::new(weights)),
            LoadBalancingPolicy::RingHash => Order::Hash(Table::ring(&known(), self.policy.ring_hash)),
            LoadBalancingPolicy::Maglev => Order::Hash(Table::maglev(&known(), self.policy.maglev)),
        }
    }

    /// The endpoints, in order of priority.
    pub fn endpoints(&self) -> &[Rc<E>] {
        &self.endpoints
    }

    /// How many endpoints are available at `now`. Looks at every one of them.
    pub fn available(&self, now: Instant) -> usize {
        self.endpoints.iter().filter(|e| e.is_available(now)).count()
    }

    /// Picks an endpoint for a request that has been sent to `tried` already. `None` where there is no endpoint, or
    /// where none is available and panic is switched off. `hash` is the request's, for the policies that go by it.
    pub fn pick(&self, now: Instant, tried: &[Rc<E>], hash: Option<u64>) -> Option<Rc<E>> {
        let index = self.quick(now, tried, hash).or_else(|| self.thorough(now, tried, hash))?;
        self.endpoints.get(index).cloned()
    }

    /// The common case: the first two that are drawn from the first group, or whose turn it is in it, can be used.
    fn quick(&self, now: Instant, tried: &[Rc<E>], hash: Option<u64>) -> Option<usize> {
        let group = self.groups.first()?;
        if let Some(mut ordered) = group.ordered(hash) {
            // A turn that is not used is not lost: `thorough` goes on behind it.
            return ordered.next().filter(|i| self.is_untried(*i, tried) && self.endpoints[*i].is_available(now));
        }
        let first = group.draw();
        if self.policy.policy == LoadBalancingPolicy::Random {
            return (self.is_untried(first, tried) && self.endpoints[first].is_available(now)).then_some(first);
        }
        let second = group.draw_other(first);
        let usable = |i: usize| self.is_untried(i, tried) && self.endpoints[i].is_available(now);
        if first == second {
            return usable(first).then_some(first);
        }
        (usable(first) && usable(second)).then(|| {
            let cheaper = self.cheaper(group, first, second, now);
            if group.open.get() < group.len {
                group.feel(self.endpoints[cheaper].load().work_ahead(now));
            }
            cheaper
        })
    }

    /// Closes some of what the load no longer needs. To be called every few seconds.
    pub fn relax(&self) {
        for group in self.groups.iter().filter(|g| g.len > FEW && matches!(g.weights, alias::Weights::Equal(_))) {
            if !group.widened.replace(false) {
                group.open.set((group.open.get() * 3 / 4).max(LEAST_OPEN));
            }
        }
    }

    /// Some endpoint cannot be used: perhaps a panic, perhaps another group.
    fn thorough(&self, now: Instant, tried: &[Rc<E>], hash: Option<u64>) -> Option<usize> {
        if self.endpoints.is_empty() {
            return None;
        }
        self.count(now, self.endpoints.len() <= FEW);
        if let Some(found) = self.by_count(now, tried, hash) {
            return Some(found);
        }
        // The count was of a moment ago. Before anybody is told that there is no endpoint, count again.
        self.count(now, true);
        self.by_count(now, tried, hash)
    }

    fn by_count(&self, now: Instant, tried: &[Rc<E>], hash: Option<u64>) -> Option<usize> {
        let available: usize = self.groups.iter().map(|g| g.available.get()).sum();
        let live = || self.groups.iter().filter(|g| g.available.get() > 0);
        if available * 100 < self.panic_threshold * self.endpoints.len() {
            let group = live().next().or(self.groups.first())?;
            return self
                .choose(group, now, hash, |i| self.is_untried(i, tried))
                .or_else(|| self.choose(group, now, hash, |_| true));
        }
        let is_available = |i: usize| self.endpoints[i].is_available(now);
        if !tried.is_empty() {
            let untried = |i: usize| self.is_untried(i, tried) && is_available(i);
            if let Some(found) = live().find_map(|group| self.choose(group, now, hash, untried)) {
                return Some(found);
            }
        }
        live().find_map(|group| self.choose(group, now, hash, is_available))
    }

    /// A usable endpoint of a group: the next in its order, or the cheaper of two.
    fn choose(&self, group: &Group, now: Instant, hash: Option<u64>, usable: impl Fn(usize) -> bool) -> Option<usize> {
        if let Some(mut ordered) = group.ordered(hash) {
            let found = ordered.find(|i| usable(*i));
            // The same order for the same hash to its end.
            return found.or_else(|| group.from(hash).find(|i| usable(*i)));
        }
        let drawn = || std::iter::repeat_with(|| group.draw()).take(REDRAWS).find(|i| usable(*i));
        let Some(first) = drawn() else {
            group.widen();
            return self.scan(group, now, usable);
        };
        if self.policy.policy == LoadBalancingPolicy::Random {
            return Some(first);
        }
        let second = if group.relative.is_empty() {
            std::iter::repeat_with(|| group.draw_other(first)).take(REDRAWS / 2).find(|i| *i != first && usable(*i))
        } else {
            drawn()
        };
        Some(second.map_or(first, |second| self.cheaper(group, first, second, now)))
    }

    /// Hardly any endpoint of the group can be used: looks at them in turn, from a random one on. Few endpoints are all
    /// looked at and chosen from by weight (a reservoir of one, twice); among many the first that can be used is taken.
    fn scan(&self, group: &Group, now: Instant, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let mut found = group.from(None).filter(|i| usable(*i));
        if group.len > FEW {
            return found.next();
        }
        let (mut sum, mut first, mut second) = (0.0, None, None);
        for i in found {
            let weight = group.relative(i);
            sum += weight;
            for choice in [&mut first, &mut second] {
                if fastrand::f64() * sum < weight {
                    *choice = Some(i);
                }
            }
        }
        Some(self.cheaper(group, first?, second?, now))
    }

    fn cheaper(&self, group: &Group, first: usize, second: usize, now: Instant) -> usize {
        if first == second {
            return first;
        }
        if self.policy.policy == LoadBalancingPolicy::LeastRequest {
            let under_way = |i: usize| f64::from(self.endpoints[i].load().in_flight()) / group.relative(i);
            return if under_way(second) < under_way(first) { second } else { first };
        }
        let cost = |i: usize| {
            let load = self.endpoints[i].load();
            (load.latency(now) + NOISE) * (f64::from(load.in_flight()) / group.relative(i) + 1.0)
        };
        let (a, b) = (cost(first), cost(second));
        let second_wins = if a < b * CLOSE && b < a * CLOSE { fastrand::f64() * (a + b) < a } else { b < a };
        if second_wins { second } else { first }
    }

    fn is_untried(&self, index: usize, tried: &[Rc<E>]) -> bool {
        !tried.iter().any(|t| Rc::ptr_eq(t, &self.endpoints[index]))
    }

    /// Counts the available endpoints of each group, unless the last count is recent enough and `afresh` is not asked.
    fn count(&self, now: Instant, afresh: bool) {
        if !afresh && self.counted_at.get().is_some_and(|at| now.saturating_duration_since(at) < CENSUS_AGE) {
            return;
        }
        for group in &self.groups {
            let members = &self.endpoints[group.start..group.start + group.len];
            group.available.set(members.iter().filter(|e| e.is_available(now)).count());
        }
        self.counted_at.set(Some(now));
    }
}

impl Group {
    /// The endpoints in the order of the policy, where it has one for this request.
    fn ordered(&self, hash: Option<u64>) -> Option<impl Iterator<Item = usize> + '_> {
        let (turns, hashed) = match (&self.order, hash) {
            (Order::Turns(stride), _) => (Some(stride), None),
            (Order::Hash(table), Some(hash)) => (None, Some(table.candidates(hash))),
            (Order::Chance, _) | (Order::Hash(_), None) => return None,
        };
        // Twice around: a turn of the lightest may take long to come.
        let turns = turns.into_iter().flat_map(|stride| std::iter::repeat_with(|| stride.next()).take(2 * self.len));
        Some(turns.chain(hashed.into_iter().flatten()).map(|k| self.start + k))
    }

    /// All of them, from one on that follows from the hash, or from a random one.
    fn from(&self, hash: Option<u64>) -> impl Iterator<Item = usize> + '_ {
        let from = hash.map_or_else(|| fastrand::usize(..self.len), |hash| (hash % self.len as u64) as usize);
        (from..self.len).chain(0..from).map(|k| self.start + k)
    }

    fn draw(&self) -> usize {
        self.start
            + match self.weights {
                alias::Weights::Equal(_) => fastrand::usize(..self.open.get()),
                alias::Weights::Table(_) => self.weights.draw(),
            }
    }

    /// Learns how much work is ahead of a request, in seconds.
    fn feel(&self, work_ahead: f64) {
        let pressure = self.pressure.get();
        if work_ahead < MUCH {
            self.pressure.set(pressure.saturating_sub(1));
        } else if pressure < PERSISTENT {
            self.pressure.set(pressure + 1);
        } else {
            self.widen();
        }
    }

    /// Takes one more endpoint into use.
    fn widen(&self) {
        self.pressure.set(0);
        self.widened.set(true);
        self.open.set((self.open.get() + 1).min(self.len));
    }

    /// A second candidate. Among equals it is another one, where there is one; see the module for unequal weights.
    fn draw_other(&self, first: usize) -> usize {
        match self.weights {
            alias::Weights::Equal(_) if self.open.get() > 1 => {
                let n = self.open.get();
                self.start + (first - self.start + 1 + fastrand::usize(..n - 1)) % n
            }
            alias::Weights::Equal(_) => first,
            alias::Weights::Table(_) => self.draw(),
        }
    }

    fn relative(&self, index: usize) -> f64 {
        self.relative.get(index - self.start).copied().unwrap_or(1.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "picker_tests.rs"]
mod tests;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "policies_tests.rs"]
mod policies;
