//! Turns by weight in constant time: the static stride scheduler of gRPC's `weighted_round_robin` (gRFC A58). In each round
//! everybody is asked once, and who has collected less than a whole turn is passed over.

use std::cell::Cell;

/// A weight of this is served in every round.
const WHOLE: u64 = u16::MAX as u64;

/// Whose turn it is.
pub(super) struct Stride {
    /// By the greatest of them, which is [`WHOLE`].
    weights: Box<[u16]>,
    sequence: Cell<u64>,
}

impl Stride {
    /// Turns for these weights, of which there is at least one. It begins anywhere, or all workers would ask the same one
    /// first.
    pub(super) fn new(weights: &[f64]) -> Self {
        let greatest = weights.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let scaled = |w: &f64| ((w / greatest * WHOLE as f64).round() as u16).max(1);
        let weights: Box<[u16]> = weights.iter().map(scaled).collect();
        let sequence = Cell::new(fastrand::u64(..1 << 32));
        Self { weights, sequence }
    }

    /// The next one.
    pub(super) fn next(&self) -> usize {
        let n = self.weights.len() as u64;
        loop {
            let sequence = self.sequence.get();
            self.sequence.set(sequence.wrapping_add(1));
            let (round, index) = (sequence / n, (sequence % n) as usize);
            let weight = u64::from(self.weights[index]);
            // Apart by half a turn, so that equals below the greatest are not all served in the same rounds.
            let offset = if index % 2 == 0 { 0 } else { WHOLE / 2 };
            if (weight.wrapping_mul(round).wrapping_add(offset)) % WHOLE >= WHOLE - weight {
                return index;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_the_weights_in_every_stretch() {
        for weights in
            [vec![1.0, 1.0, 1.0], vec![3.0, 1.0], vec![1.0, 2.0, 3.0, 4.0], vec![70.0, 20.0, 10.0], vec![1.0]]
        {
            let stride = Stride::new(&weights);
            let sum: f64 = weights.iter().sum();
            for _ in 0..20 {
                let mut seen = vec![0_u32; weights.len()];
                (0..1_000).for_each(|_| seen[stride.next()] += 1);
                for (count, weight) in seen.iter().zip(&weights) {
                    let wanted = weight / sum * 1_000.0;
                    assert!((f64::from(*count) - wanted).abs() <= 2.0, "{weights:?}: {seen:?}");
                }
            }
        }
    }
}
