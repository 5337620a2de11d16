//! Drawing an index by weight in constant time: Vose's alias method ("A Linear Algorithm For Generating Random Numbers
//! With a Given Distribution", 1991).

/// A distribution over `0..len`.
pub(super) enum Weights {
    /// All the same: no table needed.
    Equal(u32),
    /// `(threshold, alias)` of each column: below the threshold of 2^32 the column itself, else its alias.
    Table(Box<[(u32, u32)]>),
}

impl Weights {
    /// A distribution in proportion to `weights`. A weight of 0 among others means "a very small chance" (RFC 2782,
    /// Weight): a hundredth of the smallest that is not 0. Weights that are all the same are [`Weights::Equal`].
    pub(super) fn new(weights: &[f64]) -> Self {
        let n = weights.len();
        if weights.windows(2).all(|w| w[0] == w[1]) {
            return Self::Equal(n as u32);
        }
        let sum: f64 = weights.iter().sum();
        let mut scaled: Vec<f64> = weights.iter().map(|w| w * n as f64 / sum).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..n).partition(|i| scaled[*i] < 1.0);
        let mut table: Vec<(u32, u32)> = (0..n as u32).map(|i| (u32::MAX, i)).collect();
        while let (Some(poor), Some(rich)) = (small.pop(), large.last().copied()) {
            table[poor] = ((scaled[poor] * f64::from(u32::MAX)) as u32, rich as u32);
            scaled[rich] -= 1.0 - scaled[poor];
            if scaled[rich] < 1.0 {
                large.pop();
                small.push(rich);
            }
        }
        // What is left on either pile is 1 but for rounding, and its column is its own already.
        Self::Table(table.into())
    }

    /// An index by weight. There must be one.
    pub(super) fn draw(&self) -> usize {
        let random = fastrand::u64(..);
        let (high, low) = ((random >> 32) as u32, random as u32);
        let column = |n: u32| ((u64::from(high) * u64::from(n)) >> 32) as usize;
        match self {
            Self::Equal(n) => column(*n),
            Self::Table(table) => {
                let i = column(table.len() as u32);
                let (threshold, alias) = table[i];
                if low < threshold { i } else { alias as usize }
            }
        }
    }
}

/// The weights as they are drawn by: see [`Weights::new`] for what 0 means.
pub(super) fn effective(weights: impl Iterator<Item = u32> + Clone) -> Vec<f64> {
    let least = weights.clone().filter(|w| *w > 0).min().unwrap_or(1);
    weights.map(|w| if w == 0 { f64::from(least) / 100.0 } else { f64::from(w) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_weights() {
        fastrand::seed(11);
        for weights in [vec![1, 1, 1], vec![3, 1], vec![1, 2, 3, 4], vec![70, 20, 10, 0], vec![0, 0], vec![65_535, 1]] {
            let wanted = effective(weights.iter().copied());
            let drawn = Weights::new(&wanted);
            let mut seen = vec![0u32; weights.len()];
            (0..200_000).for_each(|_| seen[drawn.draw()] += 1);
            let sum: f64 = wanted.iter().sum();
            for (count, weight) in seen.iter().zip(&wanted) {
                let (got, want) = (f64::from(*count) / 200_000.0, weight / sum);
                assert!((got - want).abs() < 0.005, "{weights:?}: {got} for {want}");
            }
        }
    }

    #[test]
    fn a_weight_of_zero_is_rare_but_not_never() {
        fastrand::seed(12);
        let drawn = Weights::new(&effective([10, 0].into_iter()));
        let zero = (0..100_000).filter(|_| drawn.draw() == 1).count();
        assert!((800..1_200).contains(&zero), "{zero} of 100,000");
    }
}
