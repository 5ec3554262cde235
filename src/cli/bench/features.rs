//! What `attn bench` can add to attention, as options: each with random tensors of its own where it needs some.
//!
//! Only softmax attention takes them (but every variant takes `--kv-heads`). The figures count the pairs that shapes show:
//! causality and the window, not what a mask or lengths hide.

use super::Setting;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::dropout::Dropout;
use crate::ops::softmax_attention::{Extra, SoftmaxAttention};
use crate::philox::Philox;
use crate::plan::Plan;
use serde::Serialize;

/// The options.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "What softmax attention has besides")]
pub struct Args {
    /// Let each query see only the N keys before its own position, and unless --causal the N behind it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..1 << 30))]
    window: Option<u32>,
    /// Bound the scores: X·tanh(score/X)
    #[arg(long, value_name = "X")]
    softcap: Option<f64>,
    /// Let scores fall with distance, by slopes 2^(−8(h+1)/H)
    #[arg(long)]
    alibi: bool,
    /// Drop weights with this probability
    #[arg(long, value_name = "P")]
    dropout: Option<f64>,
    /// Heads of keys and values, of all variants [default: as --heads]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    kv_heads: Option<u32>,
    /// Add a random constant (1,1,T,T) to the scores
    #[arg(long)]
    bias: bool,
    /// Hide a random quarter of all pairs, by a mask (1,1,T,T)
    #[arg(long)]
    mask: bool,
    /// Give each sequence a length of its own, between half and all of T
    #[arg(long)]
    ragged: bool,
    /// On a GPU: gradients in one pass, whose sums may change in their last bits from run to run
    #[arg(long)]
    unordered: bool,
}

/// What is added, checked; fields of a row in the JSON file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Features {
    /// Hk.
    pub kv_heads: usize,
    /// Keys to the left that a query sees, and unless causal to the right.
    pub window: Option<usize>,
    /// A bound of the scores.
    pub softcap: Option<f64>,
    /// Whether scores fall with distance.
    pub alibi: bool,
    /// Probability.
    pub dropout: Option<f64>,
    /// Whether scores have an addend.
    pub bias: bool,
    /// Whether pairs are hidden.
    pub mask: bool,
    /// Whether sequences have lengths.
    pub ragged: bool,
    /// Whether backward sums in any order.
    pub unordered: bool,
}

impl Features {
    /// Checks the options.
    ///
    /// # Errors
    /// Naming the one that does not fit.
    pub fn new(args: &Args, heads: usize) -> Result<Features> {
        let kv_heads = args.kv_heads.map_or(heads, |n| n as usize);
        if !heads.is_multiple_of(kv_heads) {
            let problem = format!("does not divide the {heads} query heads");
            return Err(Error::argument(format!("--kv-heads {kv_heads}"), problem, "give a number that does"));
        }
        if let Some(cap) = args.softcap.filter(|&cap| !(cap > 0.0 && cap.is_finite())) {
            return Err(Error::argument(format!("--softcap {cap}"), "is no bound of scores", "give a positive number"));
        }
        if let Some(p) = args.dropout.filter(|p| !(0.0..=1.0).contains(p)) {
            return Err(Error::argument(format!("--dropout {p}"), "is no probability", "give 0 to 1"));
        }
        Ok(Features {
            kv_heads,
            window: args.window.map(|n| n as usize),
            softcap: args.softcap,
            alibi: args.alibi,
            dropout: args.dropout,
            bias: args.bias,
            mask: args.mask,
            ragged: args.ragged,
            unordered: args.unordered,
        })
    }

    /// The flags of those that only softmax attention takes.
    fn flags(&self) -> Vec<String> {
        let valued = [
            self.window.map(|n| format!("--window {n}")),
            self.softcap.map(|x| format!("--softcap {x}")),
            self.dropout.map(|p| format!("--dropout {p}")),
        ];
        let switches = [
            (self.alibi, "--alibi"),
            (self.bias, "--bias"),
            (self.mask, "--mask"),
            (self.ragged, "--ragged"),
            (self.unordered, "--unordered"),
        ];
        let switches = switches.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag.to_string());
        valued.into_iter().flatten().chain(switches).collect()
    }

    /// Whether every variant takes what there is.
    ///
    /// # Errors
    /// Naming the flags and the variant that takes none.
    pub fn check(&self, variant: &str) -> Result<()> {
        let flags = self.flags();
        if variant == super::SOFTMAX || flags.is_empty() {
            return Ok(());
        }
        let remedy = format!("leave them out, or use --variants {}", super::SOFTMAX);
        Err(Error::argument(flags.join(" "), format!("are not for {variant}"), remedy))
    }

    /// All that is not as without options, for people: `window 128 · softcap 30`.
    pub fn summary(&self, heads: usize) -> String {
        let grouped = (self.kv_heads != heads).then(|| format!("--kv-heads {}", self.kv_heads));
        let all: Vec<String> = grouped.into_iter().chain(self.flags()).collect();
        all.join(" · ").replace("--", "").replace("kv-heads", "key heads")
    }

    /// Records softmax attention with them, and the inputs that they take.
    ///
    /// # Errors
    /// If the op does not take these shapes.
    pub fn record(
        &self,
        graph: &mut Graph,
        [q, k, v]: [Tensor; 3],
        causal: bool,
        length: usize,
    ) -> Result<(Tensor, Vec<(Extra, Tensor)>)> {
        let [batch, heads] = [0, 1].map(|axis| graph.shape(q)[axis]);
        let mut extras = Vec::new();
        if self.ragged {
            extras.push((Extra::KeyLengths, graph.indices("key_lengths", &[batch], 0..length as i64 + 1)));
        }
        if self.mask {
            extras.push((Extra::Mask, graph.indices("mask", &[1, 1, length, length], 0..2)));
        }
        if self.bias {
            extras.push((Extra::Bias, graph.input("bias", &[1, 1, length, length])));
        }
        if self.alibi {
            extras.push((Extra::AlibiSlopes, graph.full_input("alibi_slopes", &[heads])));
        }
        if self.dropout.is_some() {
            extras.push((Extra::Rng, graph.indices("rng", &[3], 0..1)));
        }
        let op = SoftmaxAttention {
            causal,
            window: self.window.map(|n| (n, if causal { 0 } else { n })),
            softcap: self.softcap,
            dropout: self.dropout.map(|p| Dropout { p, stream: 0 }),
            extras: extras.iter().map(|(extra, _)| *extra).collect(),
            unordered: self.unordered,
            ..Default::default()
        };
        let inputs: Vec<Tensor> = [q, k, v].into_iter().chain(extras.iter().map(|(_, t)| *t)).collect();
        Ok((graph.record(op, &inputs)?[0], extras))
    }

    /// Writes what an extra input holds.
    ///
    /// # Errors
    /// If the device does not take it.
    pub fn fill(&self, plan: &Plan, (extra, t): (Extra, Tensor), s: &Setting, length: usize) -> Result<()> {
        match extra {
            Extra::KeyLengths => plan.write_indices(t, &lengths(s.batch, length)),
            Extra::Mask => {
                let generator = Philox::new(0, 5, 0);
                // Its own key stays, so that every query sees one.
                let seen = |i: usize| i / length == i % length || generator.uniform(i as u64) >= 0.25;
                plan.write_indices(t, &(0..length * length).map(|i| seen(i) as i32).collect::<Vec<i32>>())
            }
            Extra::Bias => plan.write(t, &super::measure::normal(4, length * length, s.dtype)),
            Extra::AlibiSlopes => {
                let slope = |h: usize| 2f64.powf(-8.0 * h as f64 / s.heads as f64);
                plan.write(t, &(1..=s.heads).map(slope).collect::<Vec<f64>>())
            }
            Extra::Rng => plan.write_indices(t, &[0; 3]),
            Extra::CuSeqlensQ | Extra::CuSeqlensK => unreachable!("no option records packed sequences"),
        }
    }
}

/// Evenly between half and all of the keys; benches/peers/attention_torch.py has the same.
fn lengths(batch: usize, length: usize) -> Vec<i32> {
    (0..batch).map(|b| (length - length * (2 * b + 1) / (4 * batch)) as i32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_lie_between_half_and_all() {
        assert_eq!(lengths(1, 100), [75]);
        assert_eq!(lengths(4, 64), [60, 52, 44, 36]);
        assert_eq!(lengths(2, 1), [1, 1]);
    }
}
