//! Attention as a look-up: which queries make it return a chosen value, or the mean of some, and whether any does.
//!
//! n keys kᵢ of d numbers; a query q gives the scores scale·q·kᵢ, whose softmax weighs the values. A weight near 1 needs a
//! score far above all others, so what counts is the *gap*, not the scores themselves: asking for given scores (a multiple of
//! the identity, say) is out of reach as soon as there are more keys than dimensions, and is not needed.
//!
//! - Some query scores key i above all others iff 0 is outside the hull of the differences kᵢ − kⱼ, that is, iff kᵢ is a strict
//!   vertex of the keys' convex hull. The nearest point p of that hull ([`nearest()`]) gives the direction with the largest
//!   gap, ‖p‖ for each unit of the query's length: the distance of kᵢ from the hull of the others. With a gap g the
//!   weight is at least 1/(1 + (n−1)·e^(−g)).
//! - Equal scores for a subset need a query orthogonal to the differences within it; the same is then asked of
//!   the others' differences with their parts in that span removed. Each weight is at least 1/(m + (n−m)·e^(−g)), m of n chosen.
//! - All keys alike: q = 0.
//!
//! Where it is impossible, the mixture of other keys that stands in the way is given: of them, at least one always scores as high.

mod nearest;

pub use nearest::{Nearest, nearest};

use crate::error::{Error, Result};
use nearest::dot;

/// Below this part of the longest difference of two keys, a distance is 0: a key that near to the others' hull would
/// need a query so long that its scores were rounding.
const ZERO: f64 = 1e-9;

/// Keys to look up in.
#[derive(Debug, Clone, PartialEq)]
pub struct Keys {
    /// n rows of d numbers.
    rows: Vec<Vec<f64>>,
    scale: f64,
}

/// A query that does what was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// The query (d): the shortest with this gap.
    pub query: Vec<f64>,
    /// The largest gap that a query of length 1 can have between the chosen keys' score and the next; infinite if no
    /// other is left.
    pub margin: f64,
    /// The weight that each chosen key is sure to have.
    pub bound: f64,
    /// What all other keys together weigh at most: (n−m)·e^(−g) / (m + (n−m)·e^(−g)).
    pub others: f64,
}

/// Whether it can be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// By this query.
    Query(Query),
    /// By none: for this mixture of other keys (numbers and weights) some chosen keys' mixture is the same point, as far
    /// as any query that scores those alike can see.
    Impossible(Vec<(usize, f64)>),
}

/// What a key is replaced for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Goal {
    /// The query averages over it and what it scored highest before.
    Average,
    /// The query returns its value.
    Return,
}

/// A key in another's place.
#[derive(Debug, Clone, PartialEq)]
pub enum Replacement {
    /// This key (d); its score exceeds the highest of the others by `gap` (0 where it is to be averaged with them).
    Key {
        /// The new key.
        key: Vec<f64>,
        /// How far its score exceeds the others'.
        gap: f64,
    },
    /// None: why.
    Impossible(String),
}

fn length(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

fn times(x: &[f64], factor: f64) -> Vec<f64> {
    x.iter().map(|x| x * factor).collect()
}

fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

impl Keys {
    /// Keys (n,d) and the factor of their scores.
    ///
    /// # Errors
    /// If there are none, they have no numbers or different lengths, or something is not finite; or the scale is 0.
    pub fn new(rows: Vec<Vec<f64>>, scale: f64) -> Result<Keys> {
        let d = rows.first().map_or(0, Vec::len);
        let bad = |problem: String| Err(Error::argument("k", problem, "give n keys of d finite numbers each"));
        if d == 0 {
            return bad("holds no numbers".into());
        }
        if let Some(i) = rows.iter().position(|row| row.len() != d || row.iter().any(|x| !x.is_finite())) {
            return bad(format!("key {i} is not {d} finite numbers"));
        }
        if scale == 0.0 || !scale.is_finite() {
            return Err(Error::argument(format!("--scale {scale}"), "makes all scores alike", "give another number"));
        }
        Ok(Keys { rows, scale })
    }

    /// n rows of d numbers.
    pub fn rows(&self) -> &[Vec<f64>] {
        &self.rows
    }

    /// The factor of the scores.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// scale·q·kᵢ.
    pub fn scores(&self, query: &[f64]) -> Vec<f64> {
        self.rows.iter().map(|k| self.scale * dot(query, k)).collect()
    }

    fn check(&self, key: usize) -> Result<()> {
        if key < self.rows.len() {
            return Ok(());
        }
        let last = self.rows.len() - 1;
        Err(Error::argument(format!("key {key}"), "does not exist", format!("give a number from 0 to {last}")))
    }

    /// A length that counts as nothing.
    fn zero(&self) -> f64 {
        let largest = self.rows.iter().map(|k| length(&minus(k, &self.rows[0]))).fold(0.0, f64::max);
        ZERO * largest
    }

    /// The shortest query that gives these keys equal scores, and every other one a score lower by `gap` at least.
    ///
    /// # Errors
    /// If a key does not exist, is named twice, or none is; or the gap is not above 0.
    pub fn average(&self, chosen: &[usize], gap: f64) -> Result<Found> {
        if !(gap > 0.0 && gap.is_finite()) {
            return Err(Error::argument(format!("--gap {gap}"), "is no gap", "give a number above 0"));
        }
        chosen.iter().try_for_each(|&key| self.check(key))?;
        if let Some(i) = (0..chosen.len()).find(|&i| chosen[..i].contains(&chosen[i])) {
            return Err(Error::argument(format!("key {}", chosen[i]), "is named twice", "name it once"));
        }
        let Some((&first, more)) = chosen.split_first() else {
            return Err(Error::argument("the chosen keys", "are none", "name one at least"));
        };
        let n = self.rows.len();
        let others: Vec<usize> = (0..n).filter(|i| !chosen.contains(i)).collect();
        if others.is_empty() {
            let query = vec![0.0; self.rows[0].len()];
            return Ok(Found::Query(Query { query, margin: f64::INFINITY, bound: 1.0 / n as f64, others: 0.0 }));
        }
        let (origin, zero) = (&self.rows[first], self.zero());
        let mut span: Vec<Vec<f64>> = Vec::new();
        for &key in more {
            let rest = apart(&minus(&self.rows[key], origin), &span);
            let norm = length(&rest);
            if norm > zero {
                span.push(times(&rest, 1.0 / norm));
            }
        }
        let differences: Vec<Vec<f64>> =
            others.iter().map(|&key| apart(&minus(origin, &self.rows[key]), &span)).collect();
        let Nearest { point, mixture } = nearest(&differences);
        let distance = length(&point);
        if distance <= zero {
            let mut mixture: Vec<(usize, f64)> = mixture.into_iter().map(|(i, w)| (others[i], w)).collect();
            mixture.sort_by_key(|&(key, _)| key);
            return Ok(Found::Impossible(mixture));
        }
        // scale·(c·p)·x ≥ scale·c·‖p‖² for every difference x.
        let query = times(&point, gap / (self.scale * distance * distance));
        let (bound, others) = bounds(chosen.len(), n, gap);
        Ok(Found::Query(Query { query, margin: self.scale.abs() * distance, bound, others }))
    }

    /// [`Keys::average`] of one key: the query that returns its value.
    ///
    /// # Errors
    /// As [`Keys::average`].
    pub fn select(&self, key: usize, gap: f64) -> Result<Found> {
        self.average(&[key], gap)
    }

    /// A key to put in place of number `key`, for a query that stays as it is. To be averaged, it needs the
    /// highest score of the others; to be returned, one that exceeds it by `gap`, or, of length 1, by as much as can be: q/‖q‖.
    ///
    /// # Errors
    /// If the key does not exist, or the query has another length than the keys.
    pub fn replace(&self, key: usize, query: &[f64], goal: Goal, unit: bool, gap: f64) -> Result<Replacement> {
        self.check(key)?;
        let d = self.rows[0].len();
        if query.len() != d || query.iter().any(|x| !x.is_finite()) {
            let problem = format!("is not {d} finite numbers, as each key is");
            return Err(Error::argument("the query", problem, format!("give {d} numbers")));
        }
        let scores = self.scores(query);
        let others = (0..scores.len()).filter(|&i| i != key);
        let Some(best) = others.max_by(|&a, &b| scores[a].total_cmp(&scores[b])) else {
            return Err(Error::argument("k", "holds one key alone", "give two keys or more"));
        };
        let highest = scores[best];
        // Score of a key of length 1 along q, which none exceeds.
        let reach = self.scale.abs() * length(query);
        let along = times(query, self.scale);
        let impossible = |why: String| Ok(Replacement::Impossible(why));
        match (goal, unit) {
            (Goal::Average, false) => Ok(Replacement::Key { key: self.rows[best].clone(), gap: 0.0 }),
            (_, _) if reach == 0.0 && goal == Goal::Return => {
                impossible("the query is 0 and weighs all keys alike, whatever they are".into())
            }
            (Goal::Return, false) => {
                let key = times(&along, (highest + gap) / (reach * reach));
                Ok(Replacement::Key { key, gap })
            }
            (Goal::Return, true) if reach <= highest => impossible(format!(
                "a key of length 1 scores at most ‖scale·q‖ = {reach:.4}, and key {best} has {highest:.4} already"
            )),
            (Goal::Return, true) => Ok(Replacement::Key { key: times(&along, 1.0 / reach), gap: reach - highest }),
            (Goal::Average, true) => {
                if highest.abs() > reach * (1.0 + 1e-12) {
                    return impossible(format!(
                        "a key of length 1 scores from −{reach:.4} to {reach:.4}, and must score {highest:.4}, as key {best} does"
                    ));
                }
                // Part of it along q has the score; the rest is orthogonal to q and makes up the length.
                let base = if reach == 0.0 { vec![] } else { vec![times(&along, 1.0 / reach)] };
                let cosine = if reach == 0.0 { 0.0 } else { (highest / reach).clamp(-1.0, 1.0) };
                let sine = (1.0 - cosine * cosine).sqrt();
                let axes = (0..d).map(|i| (0..d).map(|j| (i == j) as u8 as f64).collect::<Vec<f64>>());
                let rests = axes.map(|axis| apart(&axis, &base));
                let aside = rests.max_by(|a, b| length(a).total_cmp(&length(b))).expect("d is above 0");
                if sine > ZERO && length(&aside) <= ZERO {
                    return impossible("in one dimension a key of length 1 is 1 or −1".into());
                }
                let mut key = times(&aside, if sine > ZERO { sine / length(&aside) } else { 0.0 });
                if let Some(base) = base.first() {
                    key.iter_mut().zip(base).for_each(|(key, base)| *key += cosine * base);
                }
                Ok(Replacement::Key { key, gap: 0.0 })
            }
        }
    }

    /// The same keys with another in place of number `key`.
    ///
    /// # Panics
    /// If there is no such key, or the new one has another length.
    pub fn with(&self, key: usize, new: Vec<f64>) -> Keys {
        assert_eq!(self.rows[key].len(), new.len(), "keys have one length");
        let mut keys = self.clone();
        keys.rows[key] = new;
        keys
    }
}

/// What each of m keys of n weighs at least, and the others together at most, with this gap between the scores of the m,
/// which are equal, and the others'.
pub fn bounds(m: usize, n: usize, gap: f64) -> (f64, f64) {
    let (chosen, others) = (m as f64, (n - m) as f64 * (-gap).exp());
    (1.0 / (chosen + others), others / (chosen + others))
}

/// x less its part in the span of orthonormal vectors; twice, so that rounding leaves nothing of it.
fn apart(x: &[f64], span: &[Vec<f64>]) -> Vec<f64> {
    let mut rest = x.to_vec();
    for axis in span.iter().chain(span) {
        let part = dot(&rest, axis);
        rest.iter_mut().zip(axis).for_each(|(x, a)| *x -= part * a);
    }
    rest
}

#[cfg(test)]
mod tests;
