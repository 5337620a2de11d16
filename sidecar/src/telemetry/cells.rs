//! Cells that one worker writes and a scrape reads.
//!
//! A worker's counters are its own allocation, on cache lines of their own, and written by a plain load and store:
//! no locked instruction, no line that travels between cores. The scrape sums the cells of all workers. This is right
//! only because the handles that write ([`super::RequestMetrics`] and its kin) are `!Send` and made per worker.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// A 64-bit number with a single writer. Wraps at 2^64, as a gauge that goes down then sums correctly.
#[derive(Debug, Default)]
pub(super) struct Cell64(AtomicU64);

impl Cell64 {
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(super) fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    pub(super) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the latency buckets in seconds, inclusive; one more bucket takes what is beyond.
pub(super) const BOUNDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The same bounds in nanoseconds, so that an observation needs no floating point.
const BOUNDS_NANOS: [u64; BOUNDS.len()] = [
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

/// A latency histogram with fixed buckets. The count is the sum of the buckets, so the two can never disagree.
#[derive(Debug, Default)]
pub(super) struct HistogramCells {
    buckets: [Cell64; BOUNDS.len() + 1],
    nanos: Cell64,
}

/// What a scrape read of a histogram, over all workers.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct HistogramSum {
    pub(super) buckets: [u64; BOUNDS.len() + 1],
    nanos: u64,
}

impl HistogramCells {
    pub(super) fn observe(&self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NANOS.partition_point(|bound| *bound < nanos);
        if let Some(cell) = self.buckets.get(bucket) {
            cell.add(1);
        }
        self.nanos.add(nanos);
    }

    pub(super) fn add_to(&self, sum: &mut HistogramSum) {
        for (total, cell) in sum.buckets.iter_mut().zip(&self.buckets) {
            *total = total.wrapping_add(cell.get());
        }
        sum.nanos = sum.nanos.wrapping_add(self.nanos.get());
    }
}

impl HistogramSum {
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub(super) fn seconds(&self) -> f64 {
        // Below 2^53 ns (104 days of summed latency) this is exact, beyond it good to 16 digits.
        self.nanos as f64 / 1e9
    }

    pub(super) fn buckets(&self) -> [(f64, u64); BOUNDS.len() + 1] {
        std::array::from_fn(|i| (BOUNDS.get(i).copied().unwrap_or(f64::INFINITY), self.buckets[i]))
    }
}

/// Label sets and, for each, one block of cells a worker. The lock is taken when a handle is made and by a scrape,
/// never by a request. Blocks are never removed: the counts of a worker that is gone still count.
#[derive(Debug)]
pub(super) struct Family<K, B> {
    series: Mutex<BTreeMap<K, Vec<Arc<B>>>>,
    limit: usize,
}

impl<K: Ord + Clone, B: Default> Family<K, B> {
    /// A family of at most `limit` label sets, not counting the one that stands for all others.
    pub(super) fn new(limit: usize) -> Self {
        Self { series: Mutex::new(BTreeMap::new()), limit }
    }

    /// A new block for `key`, or `None` where `key` would be one label set too many.
    pub(super) fn block(&self, key: K) -> Option<Arc<B>> {
        let mut series = self.lock();
        if series.len() >= self.limit && !series.contains_key(&key) {
            return None;
        }
        let block = Arc::new(B::default());
        series.entry(key).or_default().push(block.clone());
        Some(block)
    }

    /// A new block for `key`, limit or not: for label sets of which only a few can exist.
    pub(super) fn block_always(&self, key: K) -> Arc<B> {
        let block = Arc::new(B::default());
        self.lock().entry(key).or_default().push(block.clone());
        block
    }

    /// Calls `visit` with every label set, in order, and its workers' blocks.
    pub(super) fn each<E>(&self, mut visit: impl FnMut(&K, &[Arc<B>]) -> Result<(), E>) -> Result<(), E> {
        // Copied out first: making handles must not wait until a slow scrape has written its text.
        let series: Vec<(K, Vec<Arc<B>>)> = self.lock().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        series.iter().try_for_each(|(key, blocks)| visit(key, blocks))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, Vec<Arc<B>>>> {
        // Nothing that can panic runs under the lock, and a map of counters is right at every step anyway.
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lone counter, on its own cache lines (two: the neighbour is prefetched with it).
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Count(pub(super) Cell64);

/// The sum of a cell over all workers' blocks.
pub(super) fn sum<B>(blocks: &[Arc<B>], cell: impl Fn(&B) -> &Cell64) -> u64 {
    blocks.iter().fold(0, |total, block| total.wrapping_add(cell(block).get()))
}

/// The greatest value of a cell among all workers' blocks.
pub(super) fn max<B>(blocks: &[Arc<B>], cell: impl Fn(&B) -> &Cell64) -> u64 {
    blocks.iter().map(|block| cell(block).get()).max().unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_two_bound_tables_are_one_table() {
        for (seconds, nanos) in BOUNDS.iter().zip(BOUNDS_NANOS) {
            assert_eq!((seconds * 1e9).round() as u64, nanos);
        }
    }

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let cells = HistogramCells::default();
        cells.observe(Duration::from_millis(1));
        cells.observe(Duration::from_nanos(1_000_001));
        cells.observe(Duration::from_secs(60));
        cells.observe(Duration::from_secs(3600));
        let mut sum = HistogramSum::default();
        cells.add_to(&mut sum);
        assert_eq!((sum.buckets[0], sum.buckets[1], sum.buckets[14], sum.buckets[15]), (1, 1, 1, 1));
        assert_eq!(sum.count(), 4);
        assert!((sum.seconds() - 3_660.002_000_001).abs() < 1e-9);
    }

    #[test]
    fn a_gauge_that_one_worker_raised_and_another_lowered_sums_to_zero() {
        let family: Family<u8, Count> = Family::new(1);
        let a = family.block(1).unwrap();
        let b = family.block(1).unwrap();
        a.0.add(1);
        b.0.sub(1);
        family.each(|_, blocks| (sum(blocks, |c| &c.0) == 0).then_some(()).ok_or(())).unwrap();
    }
}
