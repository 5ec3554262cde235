//! Words by their vectors' directions.

use super::WordVectors;
use crate::cpu::simd::dot;
use rayon::prelude::*;

/// Words and the directions of their vectors.
#[derive(Debug, Clone)]
pub struct Directions {
    words: Vec<String>,
    dim: usize,
    /// Vectors of length 1, or 0 where there was no direction.
    table: Vec<f32>,
}

/// A word, and its cosine with what was asked.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Neighbour {
    /// The word.
    pub word: String,
    /// From −1 to 1.
    pub cosine: f32,
}

fn to_unit(vector: &mut [f32]) {
    let length = vector.iter().map(|&x| x as f64 * x as f64).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (*x as f64 / length) as f32);
    }
}

impl Directions {
    /// Of these vectors.
    pub fn new(vectors: WordVectors) -> Directions {
        let WordVectors { dim, words, mut table } = vectors;
        table.par_chunks_mut(dim.max(1)).for_each(to_unit);
        Directions { words, dim, table }
    }

    /// A word's place.
    pub fn place(&self, word: &str) -> Option<usize> {
        self.words.iter().position(|w| w == word)
    }

    fn direction(&self, place: usize) -> &[f32] {
        &self.table[place * self.dim..][..self.dim]
    }

    /// The `count` words nearest to one, without it.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn nearest(&self, place: usize, count: usize) -> Vec<Neighbour> {
        self.nearest_to(self.direction(place), &[place], count)
    }

    /// The `count` words that are to c as b is to a: nearest to b − a + c, all of length 1, without these three (3CosAdd;
    /// Levy and Goldberg, "Linguistic Regularities in Sparse and Explicit Word Representations", CoNLL 2014, equation 1).
    ///
    /// # Panics
    /// If there is no such place.
    pub fn analogy(&self, [a, b, c]: [usize; 3], count: usize) -> Vec<Neighbour> {
        let [x, y, z] = [a, b, c].map(|place| self.direction(place));
        let mut sought: Vec<f32> = x.iter().zip(y).zip(z).map(|((x, y), z)| y - x + z).collect();
        to_unit(&mut sought);
        self.nearest_to(&sought, &[a, b, c], count)
    }

    fn nearest_to(&self, sought: &[f32], but: &[usize], count: usize) -> Vec<Neighbour> {
        let mut found: Vec<(f32, usize)> =
            self.table.par_chunks(self.dim).enumerate().map(|(place, row)| (dot(row, sought), place)).collect();
        // Equal ones in the order of the table.
        found.sort_by(|(x, i), (y, j)| y.total_cmp(x).then(i.cmp(j)));
        let others = found.into_iter().filter(|(_, place)| !but.contains(place)).take(count);
        others.map(|(cosine, place)| Neighbour { word: self.words[place].clone(), cosine }).collect()
    }

    /// Up to `count` words that are spelled nearly alike: at most two edits away (one in words of up to four letters), in
    /// any case; the nearest first, and among these the first of the table.
    pub fn spelled_like(&self, word: &str, count: usize) -> Vec<&str> {
        let lower = word.to_lowercase();
        let most = if lower.chars().count() <= 4 { 1 } else { 2 };
        let distance = |i: usize| {
            let other = self.words[i].to_lowercase();
            let near = other.len().abs_diff(lower.len()) <= 4 * most;
            near.then(|| strsim::osa_distance(&lower, &other)).filter(|&d| d <= most)
        };
        let mut found: Vec<(usize, usize)> =
            (0..self.words.len()).into_par_iter().filter_map(|i| Some((distance(i)?, i))).collect();
        found.sort_unstable();
        found.into_iter().take(count).map(|(_, i)| self.words[i].as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directions() -> Directions {
        let rows: [(&str, [f32; 2]); 6] = [
            ("east", [1.0, 0.0]),
            ("north", [0.0, 5.0]),
            ("Easter", [3.0, 3.0]),
            ("west", [-2.0, 0.0]),
            ("nowhere", [0.0, 0.0]),
            ("south", [0.0, -1.0]),
        ];
        let words = rows.iter().map(|(word, _)| word.to_string()).collect();
        Directions::new(WordVectors { dim: 2, words, table: rows.iter().flat_map(|(_, row)| *row).collect() })
    }

    fn words(found: &[Neighbour]) -> Vec<&str> {
        found.iter().map(|n| n.word.as_str()).collect()
    }

    #[test]
    fn lengths_do_not_matter() {
        let found = directions().nearest(0, 9);
        assert_eq!(words(&found), ["Easter", "north", "nowhere", "south", "west"]);
        assert!((found[0].cosine - 0.5f32.sqrt()).abs() < 1e-6 && found[4].cosine == -1.0);
        assert_eq!(directions().nearest(1, 1).len(), 1);
    }

    #[test]
    fn analogies_leave_out_what_was_asked() {
        let all = directions();
        let place = |word| all.place(word).unwrap();
        // west − east + north = (−2, 1): nearest are west and north themselves.
        let found = all.analogy([place("east"), place("west"), place("north")], 2);
        assert_eq!(words(&found), ["nowhere", "Easter"]);
        assert!((found[1].cosine + 1.0 / 10f32.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn near_spellings_are_found() {
        assert_eq!(directions().spelled_like("EASTE", 9), ["east", "Easter"]);
        assert_eq!(directions().spelled_like("eats", 9), ["east"]);
        assert!(directions().spelled_like("xyz", 9).is_empty());
    }
}
