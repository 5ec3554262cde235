//! Word vectors of one's own: skip-gram with negative sampling.
//!
//! Every word of a text, in turn, is the one in the middle; its vector learns to score the words beside it above words
//! drawn at random (`step.rs` has the formula). Frequent words are left out now and then, before words beside each
//! other are looked for; wrong answers are drawn with the ¾ power of their counts; how far is looked to both sides is
//! drawn evenly from 1 to the window; the learning rate falls in a straight line. That is `word2vec.c` (Mikolov and others,
//! 2013), with one difference: what is random depends on the seed and the place in the text alone (Philox), so that one
//! thread gives the same bits each time, and several draw the same numbers, in whatever order they come.

mod corpus;
mod rows;
mod sampling;
mod step;

pub use corpus::{Corpus, Source};

use super::WordVectors;
use crate::cpu::lanes::vectorise;
use crate::error::{Error, Result};
use crate::philox::Philox;
use rows::Rows;
use sampling::{Alias, keep};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use step::{Learn, Seen, Tables};

/// How vectors are learned. The defaults are word2vec's.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Settings {
    /// Numbers in a vector.
    pub dim: usize,
    /// Words on either side at most.
    pub window: usize,
    /// Wrong answers for each right one.
    pub negative: usize,
    /// Times that the text is gone through.
    pub epochs: u32,
    /// Words that are rarer are left out.
    pub min_count: u64,
    /// Words with a larger share of the text are left out now and then; 0: never.
    pub subsample: f64,
    /// Learning rate at the beginning; it falls to a ten-thousandth.
    pub lr: f64,
    /// Seed of first vectors and draws.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { dim: 100, window: 5, negative: 5, epochs: 5, min_count: 5, subsample: 1e-3, lr: 0.025, seed: 1 }
    }
}

/// The most that a setting may be: beyond, tables would not fit anywhere.
const MOST: usize = 1 << 16;

impl Settings {
    /// # Errors
    /// If one is out of range; its flag is named.
    pub fn check(&self) -> Result<()> {
        let counts = [("--dim", self.dim), ("--window", self.window), ("--negative", self.negative)];
        for (flag, n) in counts.into_iter().chain([("--epochs", self.epochs as usize)]) {
            if !(1..=MOST).contains(&n) {
                return Err(Error::argument(format!("{flag} {n}"), "is out of range", format!("give 1 to {MOST}")));
            }
        }
        let reals = [("--lr", self.lr, self.lr > 0.0), ("--subsample", self.subsample, self.subsample >= 0.0)];
        for (flag, x, right) in reals {
            if !(x.is_finite() && right) {
                let remedy = "give a small number such as 0.025 for --lr, 0.001 for --subsample";
                return Err(Error::argument(format!("{flag} {x}"), "is out of range", remedy));
            }
        }
        Ok(())
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reached {
    /// Words gone through, each as often as there were epochs.
    pub words: u64,
    /// Words in all.
    pub total: u64,
    /// The mean loss of a pair in the epoch that was reached, so far; NaN where no pair was looked at.
    pub loss: f64,
    /// Time since the beginning.
    pub elapsed: Duration,
}

impl Reached {
    /// Words of the text a second.
    pub fn words_per_s(&self) -> f64 {
        self.words as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// What was learned.
#[derive(Debug, Clone, PartialEq)]
pub struct Learned {
    /// The vectors of words in the middle: those that are used.
    pub target: WordVectors,
    /// The vectors of words beside, row for row: `target.table`'s shape.
    pub context: Vec<f32>,
}

/// Words that a thread takes at a time.
const UNIT: usize = 10_000;
/// How often progress is reported.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// Streams of random numbers: of first vectors, and of draws.
const FIRST: u32 = 0x656d_6231;
const DRAWS: u32 = 0x656d_6232;
/// What part of the rate is left at the end.
const LAST_RATE: f64 = 1e-4;

/// Learns vectors on so many threads. `progress` hears every tenth of a second how far it is, and stops it by `false`.
/// One thread gives the same bits each time.
///
/// # Errors
/// If a setting is out of range, or the corpus has fewer than two words.
pub fn train(
    corpus: &Corpus,
    settings: &Settings,
    threads: usize,
    mut progress: impl FnMut(Reached) -> bool,
) -> Result<(Learned, Reached)> {
    settings.check()?;
    let Settings { dim, window, negative, epochs, subsample, lr, seed, .. } = *settings;
    let words = corpus.index.len();
    if words < 2 {
        let problem = format!("has {words} words that are frequent enough");
        return Err(Error::argument("the text", problem, "give more text, or a smaller --min-count"));
    }
    // As word2vec has it: small vectors for words in the middle, zeros for those beside.
    let first = Philox::new(seed, FIRST, 0);
    let small = |row: usize, place: usize| (first.uniform((row * dim + place) as u64) - 0.5) / dim as f32;
    let (mut target, mut context) = (Rows::new(words, dim, small), Rows::new(words, dim, |_, _| 0.0));
    let all = corpus.tokens.len() as f64;
    let kept: Vec<f32> = corpus.counts.iter().map(|&n| keep(n as f64 / all, subsample) as f32).collect();
    let wrong = Alias::new(corpus.counts.iter().map(|&n| (n as f64).powf(0.75)));
    let tables = Tables { target: &target, context: &context, wrong: &wrong, keep: &kept, window, negative };
    let units = units(&corpus.ends);
    let total = corpus.tokens.len() as u64 * epochs as u64;
    let begun = Instant::now();
    // Units of all epochs in one row; every thread takes the next. Words they have gone through, and what each epoch showed.
    let (next, count) = (AtomicUsize::new(0), units.len() * epochs as usize);
    let seen = Mutex::new((0, vec![Seen::default(); epochs as usize]));
    let work = || {
        loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            if unit >= count {
                return;
            }
            let (epoch, sentences) = (unit / units.len(), units[unit % units.len()].clone());
            let from = sentences.start.checked_sub(1).map_or(0, |before| corpus.ends[before]);
            let ends: Vec<usize> = corpus.ends[sentences].iter().map(|end| end - from).collect();
            let tokens = &corpus.tokens[from..][..*ends.last().expect("a unit has a sentence")];
            let done = (epoch * corpus.tokens.len() + from) as f64 / total as f64;
            let learn = Learn {
                tables: &tables,
                tokens,
                ends: &ends,
                place: from as u64,
                random: Philox::new(seed, DRAWS, epoch as u32),
                rate: (lr * (1.0 - done).max(LAST_RATE)) as f32,
            };
            let new = vectorise(learn);
            let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            seen.0 += tokens.len() as u64;
            seen.1[epoch] = Seen { loss: seen.1[epoch].loss + new.loss, pairs: seen.1[epoch].pairs + new.pairs };
        }
    };
    let mut reached = Reached { total, ..Default::default() };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let mut finished = false;
        while !finished {
            finished = wait(&threads);
            let seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (words, last) = (seen.0, seen.1.iter().rfind(|epoch| epoch.pairs > 0).copied().unwrap_or_default());
            drop(seen);
            reached = Reached { words, total, loss: last.loss / last.pairs as f64, elapsed: begun.elapsed() };
            if !progress(reached) {
                next.store(count, Ordering::Relaxed);
            }
        }
    });
    let target = WordVectors { dim, words: corpus.index.words().to_vec(), table: target.values() };
    Ok((Learned { target, context: context.values() }, reached))
}

/// Waits for the next report, or until all threads have finished, which it answers.
fn wait(threads: &[std::thread::ScopedJoinHandle<()>]) -> bool {
    let until = Instant::now() + REPORT_EVERY;
    while Instant::now() < until {
        if threads.iter().all(|thread| thread.is_finished()) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

/// Stretches of sentences, each of [`UNIT`] words or as few more as whole sentences need.
fn units(ends: &[usize]) -> Vec<std::ops::Range<usize>> {
    let (mut units, mut from, mut begin) = (Vec::new(), 0, 0);
    for (i, &end) in ends.iter().enumerate() {
        if end - begin >= UNIT || i + 1 == ends.len() {
            units.push(from..i + 1);
            (from, begin) = (i + 1, end);
        }
    }
    units
}

#[cfg(test)]
mod tests;
