//! The same endpoint for the same hash, and few that change theirs when an endpoint comes or goes.
//!
//! Where an endpoint is on the ring or in the table follows from its address alone, so that every worker of every sidecar
//! sends a hash to the same one.

use xxhash_rust::xxh64::xxh64;

use crate::config::{Maglev, RingHash};

/// Where hashes lead. Endpoints are numbered from 0.
pub(super) enum Table {
    /// Places on a ring in order: a hash belongs to the next one.
    Ring(Box<[(u64, u32)]>),
    /// Whose each slot is.
    Maglev(Box<[u32]>),
}

/// So many further endpoints are asked for where the first cannot be used, before all are looked at.
const FURTHER: usize = 64;

impl Table {
    /// A ring on which each of these endpoints (the hash of its address, its weight) has places by its weight. The lightest
    /// gets so many whole ones that all together are `minimum_ring_size` at least (Envoy's ring_hash_lb).
    pub(super) fn ring(endpoints: &[(u64, f64)], size: RingHash) -> Self {
        let sum: f64 = endpoints.iter().map(|(_, weight)| weight).sum();
        let least = endpoints.iter().map(|(_, weight)| weight / sum).fold(1.0, f64::min);
        let wished = (least * f64::from(size.minimum_ring_size)).ceil() / least;
        let places = wished.min(f64::from(size.maximum_ring_size));
        let mut ring = Vec::with_capacity(places as usize + endpoints.len());
        let (mut wanted, mut made) = (0.0, 0.0);
        for (index, (identity, weight)) in (0_u32..).zip(endpoints) {
            wanted += places * weight / sum;
            let mut nth = 0_u64;
            // At least one, or it would get nothing.
            while made < wanted || nth == 0 {
                ring.push((of_two(*identity, nth), index));
                nth += 1;
                made += 1.0;
            }
        }
        ring.sort_unstable();
        Self::Ring(ring.into())
    }

    /// A table in which each of these endpoints has slots by its weight (the algorithm of the paper, section 3.4, with
    /// Envoy's weights: who has had more than his share waits).
    pub(super) fn maglev(endpoints: &[(u64, f64)], size: Maglev) -> Self {
        const FREE: u32 = u32::MAX;
        struct Filler {
            at: u64,
            skip: u64,
            weight: f64,
            served: f64,
        }
        let slots = u64::from(size.table_size);
        let greatest = endpoints.iter().map(|(_, weight)| *weight).fold(f64::MIN_POSITIVE, f64::max);
        let filler = |(identity, weight): &(u64, f64)| Filler {
            at: of_two(*identity, 0) % slots,
            skip: of_two(*identity, 1) % (slots - 1).max(1) + 1,
            weight: weight / greatest,
            served: 0.0,
        };
        let mut fillers: Vec<Filler> = endpoints.iter().map(filler).collect();
        let mut table = vec![FREE; slots as usize];
        let mut left = table.len();
        let mut round = 0.0;
        while left > 0 && !fillers.is_empty() {
            round += 1.0;
            for (index, filler) in (0_u32..).zip(&mut fillers) {
                if left == 0 {
                    break;
                }
                if round * filler.weight < filler.served + 1.0 {
                    continue;
                }
                filler.served += 1.0;
                while table[filler.at as usize] != FREE {
                    filler.at = (filler.at + filler.skip) % slots;
                }
                table[filler.at as usize] = index;
                left -= 1;
            }
        }
        Self::Maglev(table.into())
    }

    /// To whom a hash belongs, then who takes its place where that one cannot be used, and so on: the same order for the
    /// same hash. Some may come twice.
    pub(super) fn candidates(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        (0..FURTHER).map(move |nth| match self {
            Self::Ring(ring) => {
                let first = ring.partition_point(|(place, _)| *place < hash);
                ring[(first + nth) % ring.len()].1 as usize
            }
            Self::Maglev(table) => {
                let hash = if nth == 0 { hash } else { of_two(hash, nth as u64) };
                table[(hash % table.len() as u64) as usize] as usize
            }
        })
    }
}

/// A hash of a text, the same in every build.
pub fn hash(text: &[u8]) -> u64 {
    xxh64(text, 0)
}

fn of_two(a: u64, b: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&a.to_le_bytes());
    bytes[8..].copy_from_slice(&b.to_le_bytes());
    hash(&bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn endpoints(n: usize) -> Vec<(u64, f64)> {
        (0..n).map(|i| (hash(format!("10.0.{}.{}:8080", i / 256, i % 256).as_bytes()), 1.0)).collect()
    }

    fn tables(endpoints: &[(u64, f64)]) -> [(&'static str, Table); 2] {
        let size = RingHash { minimum_ring_size: 16_384, ..RingHash::default() };
        [("ring", Table::ring(endpoints, size)), ("maglev", Table::maglev(endpoints, Maglev::default()))]
    }

    fn first(table: &Table, key: u64) -> usize {
        table.candidates(hash(&key.to_le_bytes())).next().unwrap()
    }

    /// The figures that the README of the benchmarks gives; run it with `--nocapture` to see them.
    #[test]
    fn when_one_of_a_hundred_leaves_few_of_the_others_hashes_move() {
        const KEYS: u64 = 100_000;
        let all = endpoints(100);
        let fewer: Vec<_> = all.iter().copied().filter(|e| *e != all[37]).collect();
        for ((name, before), (_, after)) in tables(&all).into_iter().zip(tables(&fewer)) {
            let moved = (0..KEYS).filter(|key| all[first(&before, *key)] != fewer[first(&after, *key)]).count();
            let share = moved as f64 / KEYS as f64 * 100.0;
            println!("{name}: {share:.2} % of the hashes move when one of 100 endpoints leaves");
            let most = if name == "ring" { 2.5 } else { 3.5 };
            assert!((0.5..most).contains(&share), "{name}: {share} %");
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let mut some = endpoints(10);
        some[3].1 = 5.0;
        some[7].1 = 0.5;
        let sum: f64 = some.iter().map(|(_, weight)| weight).sum();
        for (name, table) in tables(&some) {
            let mut counts = vec![0_u32; some.len()];
            (0..100_000).for_each(|key| counts[first(&table, key)] += 1);
            for (count, (_, weight)) in counts.iter().zip(&some) {
                let (got, wanted) = (f64::from(*count) / 100_000.0, weight / sum);
                let slack = if name == "ring" { 0.10 } else { 0.03 };
                assert!((got / wanted - 1.0).abs() < slack, "{name}: {got} for {wanted}");
            }
        }
    }

    #[test]
    fn who_takes_a_place_is_always_the_same_and_somebody_else() {
        let all = endpoints(20);
        for (name, table) in tables(&all) {
            for key in 0..100 {
                let once: Vec<_> = table.candidates(hash(&[key])).collect();
                assert_eq!(once, table.candidates(hash(&[key])).collect::<Vec<_>>());
                assert!(once.iter().any(|i| *i != once[0]), "{name}");
            }
        }
    }

    #[test]
    fn small_sets_and_extreme_weights_have_a_place_for_everybody() {
        for weights in [vec![1.0], vec![1.0, 0.01], vec![65_535.0, 1.0, 0.01]] {
            let some: Vec<_> = endpoints(weights.len()).iter().zip(&weights).map(|((id, _), w)| (*id, *w)).collect();
            let ring = Table::ring(&some, RingHash { minimum_ring_size: 16, maximum_ring_size: 1_000 });
            let Table::Ring(places) = &ring else { unreachable!() };
            assert!(places.len() <= 1_000 + some.len());
            for index in 0..some.len() as u32 {
                assert!(places.iter().any(|(_, i)| *i == index), "{weights:?}");
            }
            let Table::Maglev(slots) = Table::maglev(&some, Maglev { table_size: 65_537 }) else { unreachable!() };
            assert!(slots.iter().all(|i| (*i as usize) < some.len()));
        }
    }
}
