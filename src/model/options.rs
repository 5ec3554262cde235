//! What a model may have otherwise than GPT-2: how it knows positions, and how it merges heads.

use crate::error::{Error, Result};
use crate::ops::reweight_heads::{NormScope, NormWeight};

/// How a model knows where a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// A trained vector for each position is added to the token's (GPT-2).
    #[default]
    Learned,
    /// Added sines and cosines, each dimension with an argument of its own: sin(k/10000^(i/d)) for even i, cos for odd i.
    Sinusoidal,
    /// Added sines and cosines in pairs of one argument (Vaswani et al., "Attention is all you need", 2017, section 3.5).
    SinusoidalPaired,
    /// Queries and keys are turned by angles that grow with the position (RoPE).
    Rotary,
    /// Scores fall with the distance, in each head at another rate (ALiBi). Softmax attention only.
    Alibi,
    /// Not at all, but for what the causal mask tells.
    None,
}

/// How the outputs of a layer's heads become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadMerge {
    /// Side by side, in their order.
    #[default]
    Concat,
    /// Side by side in a random order, one for each layer.
    Shuffle,
    /// Side by side, rotated left by one head.
    Shift,
    /// Side by side, each times a weight from its own matrix norm.
    Reweight,
}

/// How heads are merged, with all that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct HeadMerging {
    /// Which way.
    #[serde(rename = "head_merge")]
    pub merge: HeadMerge,
    /// [`HeadMerge::Shuffle`]: whether each training step draws a new order. What is evaluated then has the order of
    /// `shuffle_seed`, so that its figures can be repeated.
    pub shuffle_each_forward: bool,
    /// [`HeadMerge::Shuffle`]: what decides the order.
    pub shuffle_seed: u64,
    /// [`HeadMerge::Reweight`]: over which rows norms go.
    pub norm_scope: NormScope,
    /// [`HeadMerge::Reweight`]: how norms become weights.
    pub norm_weight: NormWeight,
}

impl Default for HeadMerging {
    fn default() -> Self {
        HeadMerging {
            merge: HeadMerge::Concat,
            shuffle_each_forward: false,
            shuffle_seed: 1,
            norm_scope: NormScope::Prefix,
            norm_weight: NormWeight::Raw,
        }
    }
}

impl HeadMerging {
    /// An error where an option is set that this way of merging does not read.
    ///
    /// # Errors
    /// Naming the option.
    pub fn check(&self) -> Result<()> {
        let plain = HeadMerging::default();
        let shuffled = self.merge == HeadMerge::Shuffle;
        let weighted = self.merge == HeadMerge::Reweight;
        for (set, what, needs) in [
            (!shuffled && self.shuffle_each_forward, "--shuffle-each-forward", "shuffle"),
            (!shuffled && self.shuffle_seed != plain.shuffle_seed, "--shuffle-seed", "shuffle"),
            (!weighted && self.norm_scope != plain.norm_scope, "--norm-scope", "reweight"),
            (!weighted && self.norm_weight != plain.norm_weight, "--norm-weight", "reweight"),
        ] {
            if set {
                let remedy = format!("leave it out, or add --head-merge {needs}");
                return Err(Error::argument(what, "means nothing to this way of merging heads", remedy));
            }
        }
        Ok(())
    }

    /// Whether a new order is drawn in each training step.
    pub fn redraws(&self) -> bool {
        self.merge == HeadMerge::Shuffle && self.shuffle_each_forward
    }

    /// Whether the model's function depends on where padding begins.
    pub fn reads_lengths(&self) -> bool {
        self.merge == HeadMerge::Reweight && self.norm_scope != NormScope::Prefix
    }
}

/// Probabilities of dropping an element in training, each 0 or more and below 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DropoutRates {
    /// Of the embedded tokens.
    pub embedding: f64,
    /// At the end of each branch of a block.
    pub residual: f64,
    /// Of softmax attention's weights. Linear and mean-similarity attention form no weights, and drop none.
    pub attention: f64,
}

impl From<f64> for DropoutRates {
    /// One probability for all.
    fn from(p: f64) -> Self {
        DropoutRates { embedding: p, residual: p, attention: p }
    }
}

impl DropoutRates {
    /// Whether anything is drawn.
    pub fn any(&self) -> bool {
        [self.embedding, self.residual, self.attention].iter().any(|&p| p > 0.0)
    }

    /// An error where one is no probability.
    ///
    /// # Errors
    /// Naming its flag.
    pub fn check(&self) -> Result<()> {
        let all =
            [("--dropout", self.embedding), ("--dropout", self.residual), ("--attention-dropout", self.attention)];
        match all.into_iter().find(|(_, p)| !(0.0..1.0).contains(p)) {
            Some((flag, p)) => {
                Err(Error::argument(format!("{flag} {p}"), "is no probability", "give 0 or more, below 1"))
            }
            None => Ok(()),
        }
    }
}

/// The table (positions, width) of sinusoidal positions. Unpaired, as the course has them: element i of position k is
/// sin(k/10000^(i/width)) for even i and cos(k/10000^(i/width)) for odd i, each with its own i. `paired`, as Vaswani et al.
/// have them: odd i has the argument of i − 1. Only the latter lets a shift of k be a rotation.
pub fn sinusoids(paired: bool, positions: usize, width: usize) -> Vec<f64> {
    let element = |k: usize, i: usize| {
        let exponent = if paired { i - i % 2 } else { i };
        let argument = k as f64 / 10_000f64.powf(exponent as f64 / width as f64);
        if i.is_multiple_of(2) { argument.sin() } else { argument.cos() }
    };
    (0..positions).flat_map(|k| (0..width).map(move |i| element(k, i))).collect()
}

/// ALiBi's slope of each head: 2^(−8h/H), h = 1 … H, for H a power of 2 (Press et al., "Train short, test long", 2022,
/// section 3). For other H, as the authors' code has it: those of the largest power of 2 below, then every other one of twice as many.
pub fn alibi_slopes(heads: usize) -> Vec<f64> {
    let geometric = |n: usize| (1..=n).map(move |h| 2f64.powf(-8.0 * h as f64 / n as f64));
    let below = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    geometric(below).chain(geometric(2 * below).step_by(2).take(heads - below)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_kinds_of_sinusoids_differ() {
        let (own, paired) = (sinusoids(false, 3, 4), sinusoids(true, 3, 4));
        // Width 4: 10000^(i/4) is 1, 10, 100, 1000.
        let row = |k: f64, arguments: [f64; 4]| {
            [(k / arguments[0]).sin(), (k / arguments[1]).cos(), (k / arguments[2]).sin(), (k / arguments[3]).cos()]
        };
        for k in 0..3 {
            let close = |a: &[f64], b: [f64; 4]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-15);
            assert!(close(&own[4 * k..][..4], row(k as f64, [1.0, 10.0, 100.0, 1000.0])));
            assert!(close(&paired[4 * k..][..4], row(k as f64, [1.0, 1.0, 100.0, 100.0])));
        }
        assert!((own[5] - paired[5]).abs() > 0.4, "cos 0.1 is not cos 1");
    }

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(alibi_slopes(8), (1..=8).map(|h| 2f64.powi(-h)).collect::<Vec<_>>());
        // get_slopes(3) and get_slopes(6) of the authors' code.
        let close =
            |a: Vec<f64>, b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a / b - 1.0).abs() < 1e-12);
        assert!(close(alibi_slopes(3), &[0.0625, 0.00390625, 0.25]));
        assert!(close(alibi_slopes(6), &[0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]));
    }

    #[test]
    fn an_option_without_effect_is_refused() {
        let merging = HeadMerging { norm_scope: NormScope::Batch, ..Default::default() };
        assert!(merging.check().unwrap_err().to_string().starts_with("--norm-scope: means nothing"));
        assert!(HeadMerging { merge: HeadMerge::Reweight, ..merging }.check().is_ok());
        assert!(!HeadMerging { shuffle_each_forward: true, ..Default::default() }.redraws());
    }
}
