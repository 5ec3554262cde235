//! Which words take part: frequent ones are left out now and then, and wrong answers are drawn.

/// How likely a word with this share of all words stays, at the threshold t: (√(f/t) + 1)·t/f, at most 1; always where t is
/// 0. This is what `word2vec.c` does; the paper's √(t/f) (equation 5) leaves out a little more.
pub fn keep(frequency: f64, threshold: f64) -> f64 {
    if threshold == 0.0 {
        return 1.0;
    }
    let ratio = frequency / threshold;
    ((ratio.sqrt() + 1.0) / ratio).min(1.0)
}

/// Draws numbers with given weights, in constant time: the alias method (Walker 1977; built as by Vose 1991). A number
/// is drawn evenly; it stays with a probability of its own, or another takes its place.
pub struct Alias {
    /// For each number: below what 32-bit word it stays, and what takes its place otherwise.
    cells: Vec<[u32; 2]>,
}

impl Alias {
    /// Weights are finite and not negative, and not all 0.
    pub fn new(weights: impl Iterator<Item = f64>) -> Alias {
        let mut shares: Vec<f64> = weights.collect();
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        shares.iter_mut().for_each(|share| *share /= mean);
        let mut cells: Vec<[u32; 2]> = (0..shares.len() as u32).map(|i| [u32::MAX, i]).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..shares.len()).partition(|&i| shares[i] < 1.0);
        // A small share leaves room in its cell, which a large one fills with some of what it has too much.
        while let (Some(i), Some(&j)) = (small.pop(), large.last()) {
            cells[i] = [(shares[i] * 4_294_967_296.0) as u32, j as u32];
            shares[j] -= 1.0 - shares[i];
            if shares[j] < 1.0 {
                large.pop();
                small.push(j);
            }
        }
        Alias { cells }
    }

    /// The number that a random word stands for.
    #[inline(always)]
    pub fn draw(&self, word: u32) -> u32 {
        // The whole part of word·n/2³² chooses the cell, the fraction decides within it.
        let product = word as u64 * self.cells.len() as u64;
        let cell = (product >> 32) as usize;
        let [stays, other] = self.cells[cell];
        if (product as u32) < stays { cell as u32 } else { other }
    }

    /// How likely each number is.
    #[cfg(test)]
    fn probabilities(&self) -> Vec<f64> {
        let mut found = vec![0.0; self.cells.len()];
        for (i, [stays, other]) in self.cells.iter().enumerate() {
            let stays = if *stays == u32::MAX { 1.0 } else { *stays as f64 / 4_294_967_296.0 };
            found[i] += stays / self.cells.len() as f64;
            found[*other as usize] += (1.0 - stays) / self.cells.len() as f64;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::Philox;

    #[test]
    fn frequent_words_are_kept_less_often() {
        assert_eq!(keep(0.001, 0.001), 1.0);
        // (√100 + 1)/100
        assert!((keep(0.1, 0.001) - 0.11).abs() < 1e-12);
        assert_eq!(keep(0.9, 0.0), 1.0);
    }

    #[test]
    fn the_table_has_the_weights() {
        for n in [1, 2, 7, 1000] {
            let weights: Vec<f64> = (0..n).map(|i| (1.0 + (i * i % 37) as f64).powf(0.75)).collect();
            let sum: f64 = weights.iter().sum();
            for (found, weight) in Alias::new(weights.iter().copied()).probabilities().iter().zip(&weights) {
                assert!((found - weight / sum).abs() < 1e-9, "{n}");
            }
        }
        let none = Alias::new([0.0, 3.0, 1.0].into_iter());
        let random = Philox::new(1, 2, 3);
        let draws = 1 << 18;
        let mut counts = [0; 3];
        (0..draws).for_each(|i| counts[none.draw(random.word(i)) as usize] += 1);
        // Four standard deviations of the count: 4·√(n·¾·¼) = 887.
        assert!(counts[0] == 0 && (counts[1] - draws as i64 * 3 / 4).abs() < 887, "{counts:?}");
    }
}
