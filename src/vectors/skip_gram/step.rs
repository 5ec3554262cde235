//! What one place in a text changes.
//!
//! For the word w in the middle, a word c beside it and K wrong answers n₁ … n_K, with v a row of the target table and u
//! rows of the context table (Mikolov, Sutskever, Chen, Corrado, Dean, "Distributed Representations of Words and Phrases
//! and their Compositionality", NIPS 2013, equation 4):
//!
//! L = −ln σ(u_c·v_w) − Σₖ ln σ(−u_nₖ·v_w)
//!
//! so with the score s = u·v and y = 1 for c, 0 for wrong answers: ∂L/∂u = (σ(s) − y)·v and ∂L/∂v = Σ (σ(s) − y)·u, the u
//! being those before the step.

use super::rows::Rows;
use super::sampling::Alias;
use crate::cpu::lanes::{Kernel, Simd};
use crate::philox::Philox;

/// What all steps share.
pub struct Tables<'a> {
    /// A row for each word in the middle.
    pub target: &'a Rows,
    /// A row for each word beside or wrongly proposed.
    pub context: &'a Rows,
    /// Draws wrong answers.
    pub wrong: &'a Alias,
    /// How likely each word stays.
    pub keep: &'a [f32],
    /// Words on either side at most.
    pub window: usize,
    /// Wrong answers for each right one.
    pub negative: usize,
}

/// Learns from a stretch of text, sentence by sentence.
pub struct Learn<'a> {
    pub tables: &'a Tables<'a>,
    /// Words' rows.
    pub tokens: &'a [u32],
    /// Where sentences end in `tokens`.
    pub ends: &'a [usize],
    /// The place of the first token in the corpus: random numbers belong to places.
    pub place: u64,
    /// Random numbers of this epoch.
    pub random: Philox,
    /// The learning rate.
    pub rate: f32,
}

/// The loss of some pairs.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    /// The sum of their L.
    pub loss: f64,
    /// How many they are.
    pub pairs: u64,
}

/// The loss is taken at every so many places: logarithms cost.
const LOOK_EVERY: u64 = 16;

/// How many rows ahead memory is asked for.
const AHEAD: usize = 4;

/// Random words of a place, one after another.
struct Draws {
    random: Philox,
    block: u64,
    words: [u32; 4],
    used: usize,
}

impl Draws {
    #[inline(always)]
    fn next(&mut self) -> u32 {
        if self.used == 4 {
            self.block += 1;
            self.words = self.random.block(self.block);
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }
}

#[inline(always)]
fn dot<S: Simd<f32>>(s: S, x: &[f32], y: &[f32]) -> f32 {
    // Two sums hide the latency of an addition; rows are short.
    let mut sums = [s.splat(0.0); 2];
    for (i, (x, y)) in x.chunks_exact(S::LANES).zip(y.chunks_exact(S::LANES)).enumerate() {
        sums[i % 2] = s.mul_add(s.load(x), s.load(y), sums[i % 2]);
    }
    let mut lanes = [0.0; 16];
    s.store(sums[0] + sums[1], &mut lanes);
    let mut half = S::LANES / 2;
    while half > 0 {
        (0..half).for_each(|i| lanes[i] += lanes[i + half]);
        half /= 2;
    }
    lanes[0]
}

/// v and moved ← themselves + change, which becomes 0.
#[inline(always)]
fn add_and_clear<S: Simd<f32>>(s: S, change: &mut [f32], v: &mut [f32], moved: &mut [f32]) {
    add(s, change, v);
    add(s, change, moved);
    change.fill(0.0);
}

/// y ← y + x
#[inline(always)]
fn add<S: Simd<f32>>(s: S, x: &[f32], y: &mut [f32]) {
    for (x, y) in x.chunks_exact(S::LANES).zip(y.chunks_exact_mut(S::LANES)) {
        s.store(s.load(x) + s.load(y), y);
    }
}

/// Moves one row u against its gradient, adds to `change` what v gets from it, and gives the score.
#[inline(always)]
fn answer<S: Simd<f32>>(s: S, u: &mut [f32], v: &[f32], change: &mut [f32], label: f32, rate: f32) -> f32 {
    let score = dot(s, u, v);
    // σ(x) = 1/(1 + 2^(−x·log₂e)), in all lanes.
    let one = s.splat(1.0);
    let sigmoid = one / (one + s.exp2(s.splat(-score * std::f32::consts::LOG2_E)));
    let step = (s.splat(label) - sigmoid) * s.splat(rate);
    let vectors = u.chunks_exact_mut(S::LANES).zip(v.chunks_exact(S::LANES)).zip(change.chunks_exact_mut(S::LANES));
    for ((u, v), change) in vectors {
        let before = s.load(u);
        s.store(s.mul_add(step, before, s.load(change)), change);
        s.store(s.mul_add(step, s.load(v), before), u);
    }
    score
}

/// −ln σ(x), for any x.
fn loss(x: f32) -> f64 {
    let x = x as f64;
    (-x.abs()).exp().ln_1p() + (-x).max(0.0)
}

impl Kernel<f32> for Learn<'_> {
    type Output = Seen;
    #[inline(always)]
    fn run<S: Simd<f32>>(self, s: S) -> Seen {
        let Tables { target, context, wrong, keep, window, negative } = *self.tables;
        let width = target.width();
        let (mut v, mut moved, mut change) = (vec![0.0; width], vec![0.0; width], vec![0.0; width]);
        let (mut seen, mut kept): (_, Vec<(u32, u64)>) = (Seen::default(), Vec::new());
        let mut answers: Vec<(u32, f32)> = Vec::new();
        // Two words of a place choose what stays and how far is looked; each pair needs `negative`.
        let blocks = (2 + 2 * window * negative).div_ceil(4) as u64;
        let mut from = 0;
        for &end in self.ends {
            kept.clear();
            for (i, &word) in self.tokens[from..end].iter().enumerate() {
                let place = self.place + (from + i) as u64;
                let keep = keep[word as usize];
                if keep >= 1.0 || Philox::to_uniform(self.random.block(place * blocks)[0]) < keep {
                    kept.push((word, place));
                }
            }
            from = end;
            for (i, &(word, place)) in kept.iter().enumerate() {
                let block = place * blocks;
                let mut draws = Draws { random: self.random, block, words: self.random.block(block), used: 1 };
                let reach = 1 + ((draws.next() as u64 * window as u64) >> 32) as usize;
                let (first, last) = (i.saturating_sub(reach), (i + reach).min(kept.len() - 1));
                if first == last {
                    continue;
                }
                let look = place % LOOK_EVERY == 0;
                // All that will be scored: each right answer, and the wrong ones beside it.
                answers.clear();
                for &(right, _) in kept[first..i].iter().chain(&kept[i + 1..=last]) {
                    answers.push((right, 1.0));
                    let others = (0..negative).map(|_| wrong.draw(draws.next()));
                    answers.extend(others.filter(|&other| other != right).map(|other| (other, 0.0)));
                }
                answers.iter().take(AHEAD).for_each(|&(row, _)| context.expect(row));
                target.with(word, |row| v.copy_from_slice(row));
                moved.fill(0.0);
                for (at, &(row, label)) in answers.iter().enumerate() {
                    if let Some(&(later, _)) = answers.get(at + AHEAD) {
                        context.expect(later);
                    }
                    if label == 1.0 {
                        add_and_clear(s, &mut change, &mut v, &mut moved);
                    }
                    let score = context.with(row, |u| answer(s, u, &v, &mut change, label, self.rate));
                    if look {
                        seen.loss += loss(if label == 1.0 { score } else { -score });
                        seen.pairs += label as u64;
                    }
                }
                add_and_clear(s, &mut change, &mut v, &mut moved);
                // Others may have moved the row meanwhile: it gets what was found here on top.
                target.with(word, |row| add(s, &moved, row));
            }
        }
        seen
    }
}
