//! How sure a classifier's figures are.
//!
//! Confidence intervals are percentiles of the bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
//! chapter 13): the test set is drawn anew from itself, many times. Two models are compared on the same draws (Koehn,
//! "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004), as most of what makes a test set easy
//! or hard is so for both.

use super::metrics::Confusion;
use crate::error::{Error, Result};
use crate::philox::Philox;
use rayon::prelude::*;

/// A single figure for a set of predictions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The share of right predictions.
    Accuracy,
    /// The mean over classes of F1.
    MacroF1,
    /// F1 of class 1.
    BinaryF1,
}

impl Metric {
    /// The figure of these counts. F1 of class 1 is 0 where there is but one class.
    pub fn of(self, counts: &Confusion) -> f64 {
        match self {
            Metric::Accuracy => counts.accuracy(),
            Metric::MacroF1 => counts.macro_mean(Confusion::f1),
            Metric::BinaryF1 if counts.classes() < 2 => 0.0,
            Metric::BinaryF1 => counts.f1(1),
        }
    }
}

/// How a bootstrap is done.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Bootstrap {
    /// How often the test set is drawn anew.
    pub resamples: usize,
    /// What part of the draws an interval holds.
    pub level: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Bootstrap {
        Bootstrap { resamples: 2000, level: 0.95, seed: 1 }
    }
}

/// Where a figure lies.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Interval {
    /// Its value on the test set.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// How two sets of predictions of one test set differ.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Difference {
    /// The second's figure less the first's.
    pub interval: Interval,
    /// Twice the smaller of the shares of draws in which the difference is not above 0, and not below; at most 1. Small: it
    /// is hardly chance.
    pub p: f64,
}

/// The stream of random numbers that draws test sets.
const DRAWS: u32 = 0x626f_6f74;

impl Bootstrap {
    /// The value of `figure` on every draw; it is given how often each of `n` examples was drawn.
    fn draws(&self, n: usize, figure: impl Fn(&[u32]) -> f64 + Sync) -> Result<Vec<f64>> {
        if n == 0 {
            return Err(Error::argument("the test set", "is empty", "give one with labels"));
        }
        if !(self.level > 0.0 && self.level < 1.0) || self.resamples == 0 {
            let what = format!("a bootstrap of {} draws at level {}", self.resamples, self.level);
            return Err(Error::argument(what, "says nothing", "give draws, and a level between 0 and 1"));
        }
        let draw = |resample: usize| {
            let random = Philox::new(self.seed, DRAWS, resample as u32);
            let mut times = vec![0; n];
            for i in 0..n as u64 {
                times[((random.word(i) as u64 * n as u64) >> 32) as usize] += 1;
            }
            figure(&times)
        };
        Ok((0..self.resamples).into_par_iter().map(draw).collect())
    }

    /// The ends between which the middle part of `draws` lies, each interpolated between neighbours.
    fn interval(&self, value: f64, mut draws: Vec<f64>) -> Interval {
        draws.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (draws.len() - 1) as f64;
            let (below, above) = (draws[place.floor() as usize], draws[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        let outside = (1.0 - self.level) / 2.0;
        Interval { value, low: at(outside), high: at(1.0 - outside) }
    }

    /// A figure of predictions, with its interval. `truth` and `predicted` are classes below `classes`.
    ///
    /// # Errors
    /// If there are none, or not as many of one as of the other.
    pub fn of(&self, metric: Metric, classes: usize, truth: &[u32], predicted: &[u32]) -> Result<Interval> {
        same_length(truth, predicted)?;
        let figure = |times: &[u32]| metric.of(&weighted(classes, truth, predicted, times));
        let value = figure(&vec![1; truth.len()]);
        Ok(self.interval(value, self.draws(truth.len(), figure)?))
    }

    /// How much better the second predictions are than the first, on the same draws of the test set.
    ///
    /// # Errors
    /// As [`Bootstrap::of`].
    pub fn compare(
        &self,
        metric: Metric,
        classes: usize,
        truth: &[u32],
        [first, second]: [&[u32]; 2],
    ) -> Result<Difference> {
        same_length(truth, first)?;
        same_length(truth, second)?;
        let figure = |times: &[u32]| {
            let of = |predicted| metric.of(&weighted(classes, truth, predicted, times));
            of(second) - of(first)
        };
        let value = figure(&vec![1; truth.len()]);
        let draws = self.draws(truth.len(), figure)?;
        let share = |is: fn(&f64) -> bool| draws.iter().filter(|d| is(d)).count() as f64 / draws.len() as f64;
        let p = (2.0 * share(|&d| d <= 0.0).min(share(|&d| d >= 0.0))).min(1.0);
        Ok(Difference { interval: self.interval(value, draws), p })
    }
}

fn same_length(truth: &[u32], predicted: &[u32]) -> Result<()> {
    if truth.len() == predicted.len() {
        return Ok(());
    }
    let problem = format!("are {} for {} labels", predicted.len(), truth.len());
    Err(Error::argument("the predictions", problem, "predict the same test set"))
}

/// With every example counted as often as it was drawn.
fn weighted(classes: usize, truth: &[u32], predicted: &[u32], times: &[u32]) -> Confusion {
    let mut counts = Confusion::new(classes);
    for ((&truth, &predicted), &times) in truth.iter().zip(predicted).zip(times) {
        counts.add_times(truth as usize, predicted as usize, times as u64);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 1e-12
    }

    #[test]
    fn intervals_are_those_of_the_binomial() {
        // 80 of 100 right: the draws' counts are binomial, with deviation √(0.8·0.2/100) = 0.04.
        let truth = vec![1; 100];
        let predicted: Vec<u32> = (0..100).map(|i| (i % 5 != 0) as u32).collect();
        let options = Bootstrap { resamples: 4000, ..Default::default() };
        let Interval { value, low, high } = options.of(Metric::Accuracy, 2, &truth, &predicted).unwrap();
        assert!(near(value, 0.8));
        // The binomial's 2.5 % and 97.5 % points are 0.72 and 0.88; a neighbouring count may come instead.
        assert!((low - 0.72).abs() < 0.011 && (high - 0.88).abs() < 0.011, "{low} {high}");
        assert_eq!(options.of(Metric::Accuracy, 2, &truth, &predicted).unwrap().low, low, "the seed decides");
        let all = options.of(Metric::Accuracy, 2, &truth, &truth).unwrap();
        assert_eq!((all.low, all.high), (1.0, 1.0));
        assert!(options.of(Metric::Accuracy, 2, &truth, &predicted[1..]).is_err());
        assert!(options.of(Metric::Accuracy, 2, &[], &[]).is_err());
    }

    #[test]
    fn models_are_compared_on_the_same_draws() {
        let truth = vec![1; 200];
        let right_but =
            |wrong: std::ops::Range<usize>| -> Vec<u32> { (0..200).map(|i| !wrong.contains(&i) as u32).collect() };
        let options = Bootstrap::default();
        let compare = |a: &[u32], b: &[u32]| options.compare(Metric::Accuracy, 2, &truth, [a, b]).unwrap();
        // The same 40 mistakes and 12 more: better in every draw that has any of the twelve.
        let more = compare(&right_but(0..52), &right_but(0..40));
        assert!(near(more.interval.value, 0.06) && more.interval.low > 0.0 && more.p < 0.01, "{more:?}");
        // As many, but others: nothing is known.
        let others = compare(&right_but(0..40), &right_but(40..80));
        assert!(near(others.interval.value, 0.0) && others.interval.low < 0.0 && others.p > 0.5, "{others:?}");
        let same = compare(&truth, &truth);
        assert_eq!((same.interval.high, same.p), (0.0, 1.0));
    }
}
