//! s = scale·q·kᵀ, p = softmax over visible keys, out = p·v, lse = log Σ exp(s).
//!
//! Keeps out and lse for backward; T×S is never in memory. With delta = Σ dout∘out − dlse and ds = p∘(dout·vᵀ − delta):
//! dv = pᵀ·dout, dq = scale·ds·k, dk = scale·dsᵀ·q. (Dao, "FlashAttention-2", 2023, section 3.)
//! A row with no visible key gives zeros, lse = −inf and zero gradients.
//!
//! What changes a score, in this order, with i = t + S − T the key that query t stands at and j the key:
//! - soft-capping, s ← cap·tanh(s/cap): going back, ds ← ds·(1 − (s/cap)²) with the capped s;
//! - ALiBi, s ← s − slope\[h\]·|i − j|: a constant, so ds stays (Press et al., "Train short, test long", 2022);
//! - a bias, s ← s + bias: dbias = ds, before soft-capping's factor and without scale, summed over the axes that it is
//!   broadcast along.
//!
//! What hides a key: causality, a window around i, key lengths, the bounds of packed sequences (each aligned by its own
//! lengths), a mask's 0 and a bias of −inf. Keys beyond a length or the bounds are as if they were not there, whatever they
//! hold. So are all other hidden keys on the CPU; on a GPU they, and their values, must be finite: a product of tiles meets
//! them with weight 0, and 0·NaN is NaN, as in PyTorch.
//!
//! Dropout multiplies p with z = kept/(1 − p_drop) where it meets v: out = (p∘z)·v. Backward draws z again: dv = (p∘z)ᵀ·dout and
//! ds = p∘(z∘(dout·vᵀ) − delta), where Σ dout∘out still is what the softmax's derivative asks for: Σₛ p·z·(dout·v).
//! lse and the weights, if asked for, are those before dropout.

mod cases;
pub mod cpu;
mod gpu;
mod run;
mod tiles;

use crate::cpu::Real;
use crate::error::{Error, Result};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::attention::Sizes;
use crate::ops::dropout::Dropout;
use crate::precision::Precision;
pub use cases::representative as representative_cases;
pub(crate) use gpu::Launcher;

/// An input after q, k and v.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Extra {
    /// int (B): batch b sees its first `key_lengths[b]` keys.
    KeyLengths,
    /// int (N+1), from 0 to T, not decreasing (`attn run` checks it; other callers see to it): B is 1, and query t belongs to sequence n iff `[n] ≤ t < [n+1]`.
    CuSeqlensQ,
    /// int (N+1), from 0 to S, not decreasing: the same for keys. Queries see their own sequence's keys.
    CuSeqlensK,
    /// int (B or 1, H or 1, T or 1, S): 0 hides a key.
    Mask,
    /// (B or 1, H or 1, T or 1, S), added to the scores; −inf hides a key. Differentiable.
    Bias,
    /// full (H), constant: the score falls by slope·|t + S − T − s|.
    AlibiSlopes,
    /// int (3): seed low, seed high, step of the dropout.
    Rng,
}

impl Extra {
    /// Its name in errors and in `attn run`.
    pub fn name(self) -> &'static str {
        match self {
            Extra::KeyLengths => "key_lengths",
            Extra::CuSeqlensQ => "cu_seqlens_q",
            Extra::CuSeqlensK => "cu_seqlens_k",
            Extra::Mask => "mask",
            Extra::Bias => "bias",
            Extra::AlibiSlopes => "alibi_slopes",
            Extra::Rng => "rng",
        }
    }
}

/// Softmax attention on [q (B,H,T,Dk), k (B,Hk,S,Dk), v (B,Hk,S,Dv)] and the extras in their order, all strided as they
/// like: gives out (B,H,T,Dv), stored as (B,T,H,Dv), and lse (B,H,T), the natural logarithm; perhaps weights (B,H,T,S).
#[derive(Debug, Clone, Default)]
pub struct SoftmaxAttention {
    /// Whether the mask is causal, aligned bottom-right.
    pub causal: bool,
    /// Factor of the scores; 1/√Dk unless given.
    pub scale: Option<f64>,
    /// Keys left and right of the diagonal that a query sees (FlashAttention's window_size): s is visible iff t+S−T−left ≤ s ≤ t+S−T+right. With
    /// `causal`, right is 0.
    pub window: Option<(usize, usize)>,
    /// A bound of the scores: score ← cap·tanh(score/cap), before ALiBi, bias and mask.
    pub softcap: Option<f64>,
    /// Dropout of the weights, drawn for element ((b·H+h)·T+t)·S+s; [`Extra::Rng`] is then among the extras.
    pub dropout: Option<Dropout>,
    /// Which inputs follow q, k and v, in their order. [`Extra::AlibiSlopes`] turns ALiBi on.
    pub extras: Vec<Extra>,
    /// Whether to give the softmax weights (B,H,T,S), before dropout, as a third output. No gradient flows through it.
    pub weights: bool,
    /// On a GPU: backward in one pass with 5 products instead of two with 7, in which blocks add to dq in whatever order
    /// they come: sums may then differ in their last bits from run to run. The CPU always sums in order.
    pub unordered: bool,
    /// On a GPU: among how many blocks the keys are split; `None`: chosen by shape. The CPU splits nothing.
    pub splits: Option<usize>,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "softmax-attention",
    summary: "softmax(scale·q·kᵀ)·v, tiled, T×S never in memory",
    cases: cases::cases,
    run: Some(&run::RUN),
    attention: Some(|g, q, k, v, causal| Ok(g.record(SoftmaxAttention::causal(causal), &[q, k, v])?[0])),
};

impl SoftmaxAttention {
    /// Without features, causal or not.
    pub fn causal(causal: bool) -> Self {
        SoftmaxAttention { causal, ..Default::default() }
    }

    /// The same with one more input, the last.
    pub fn with(mut self, extra: Extra) -> Self {
        self.extras.push(extra);
        self
    }

    /// Whether this input is there.
    pub fn has(&self, extra: Extra) -> bool {
        self.extras.contains(&extra)
    }

    /// At which place among the inputs an extra stands.
    pub(crate) fn place_of(&self, extra: Extra) -> Option<usize> {
        self.extras.iter().position(|&e| e == extra).map(|i| 3 + i)
    }

    /// Visible pairs of a query and a key, as far as shapes tell.
    fn pairs(&self, s: &Sizes) -> f64 {
        let Some((left, right)) = self.window else { return s.pairs() };
        let of = |t: usize| {
            // The diagonal's key, moved up by T so as not to be negative.
            let diagonal = t + s.keys;
            let end = diagonal.saturating_add(right).saturating_add(1).min(s.queries + s.keys);
            end.saturating_sub(diagonal.saturating_sub(left).max(s.queries)) as f64
        };
        (0..s.queries).map(of).sum::<f64>() * (s.batch * s.heads) as f64
    }

    fn scale(&self, key_dim: usize) -> f64 {
        self.scale.unwrap_or(1.0 / (key_dim as f64).sqrt())
    }

    /// Checks the inputs and the options that belong together, and reads the sizes.
    fn sizes(&self, inputs: &[&Spec]) -> Result<Sizes> {
        let name = ENTRY.name;
        if inputs.len() != 3 + self.extras.len() {
            let names: Vec<&str> = ["q", "k", "v"].into_iter().chain(self.extras.iter().map(|e| e.name())).collect();
            return Err(Error::shape(name, "inputs", names.join(", "), format!("{} tensors", inputs.len())));
        }
        let s = Sizes::of(name, &inputs[..3], self.causal)?;
        for (i, &extra) in self.extras.iter().enumerate() {
            self.check_extra(extra, inputs[3 + i], &s)?;
            if self.extras[..i].contains(&extra) {
                return Err(Error::argument(extra.name(), "is given twice", "give it once"));
            }
        }
        match (self.place_of(Extra::CuSeqlensQ), self.place_of(Extra::CuSeqlensK)) {
            (None, None) => {}
            (Some(q), Some(k)) if inputs[q].shape == inputs[k].shape => {
                if s.batch != 1 {
                    return Err(Error::shape(
                        name,
                        "q",
                        "a batch of 1, as cu_seqlens_q are given",
                        inputs[0].to_string(),
                    ));
                }
                if self.has(Extra::KeyLengths) {
                    let remedy = "leave key_lengths out: cu_seqlens_k gives each sequence's length";
                    return Err(Error::argument("key_lengths", "cannot go with cu_seqlens_k", remedy));
                }
            }
            (Some(q), Some(k)) => {
                let expected = format!("{}, as cu_seqlens_q has", inputs[q]);
                return Err(Error::shape(name, "cu_seqlens_k", expected, inputs[k].to_string()));
            }
            _ => {
                let problem = "come only together";
                return Err(Error::argument("cu_seqlens_q and cu_seqlens_k", problem, "give both or neither"));
            }
        }
        self.check_options()?;
        Ok(s)
    }

    fn check_extra(&self, extra: Extra, spec: &Spec, s: &Sizes) -> Result<()> {
        let fits = |kind: Kind, fits: bool, expected: String| {
            if spec.kind == kind && fits {
                return Ok(());
            }
            Err(Error::shape(ENTRY.name, extra.name(), expected, spec.to_string()))
        };
        let broadcast = || {
            let full = [s.batch, s.heads, s.queries];
            spec.shape.len() == 4
                && spec.shape[3] == s.keys
                && spec.shape.iter().zip(full).all(|(&n, full)| n == full || n == 1)
        };
        let broadcast_shape =
            |kind: &str| format!("{kind} ({} or 1, {} or 1, {} or 1, {})", s.batch, s.heads, s.queries, s.keys);
        match extra {
            Extra::KeyLengths => fits(Kind::Int, spec.shape == [s.batch], format!("int ({})", s.batch)),
            Extra::CuSeqlensQ | Extra::CuSeqlensK => {
                fits(Kind::Int, spec.shape.len() == 1 && spec.shape[0] >= 2, "int (N+1) for N sequences".into())
            }
            Extra::Mask => fits(Kind::Int, broadcast(), broadcast_shape("int")),
            Extra::Bias => fits(Kind::Real, broadcast(), broadcast_shape("real")),
            Extra::AlibiSlopes => fits(Kind::Full, spec.shape == [s.heads], format!("full ({})", s.heads)),
            Extra::Rng => fits(Kind::Int, spec.shape == [3], "int (3)".into()),
        }
    }

    fn check_options(&self) -> Result<()> {
        if let Some((left, right)) = self.window
            && self.causal
            && right > 0
        {
            let what = format!("window {left},{right}");
            return Err(Error::argument(what, "looks ahead, which a causal mask forbids", format!("give {left},0")));
        }
        if let Some(cap) = self.softcap
            && !(cap > 0.0 && cap.is_finite())
        {
            return Err(Error::argument(format!("softcap {cap}"), "is no bound of scores", "give a positive number"));
        }
        if let Some(Dropout { p, .. }) = self.dropout
            && !(0.0..=1.0).contains(&p)
        {
            return Err(Error::argument(format!("dropout {p}"), "is no probability", "give 0 to 1"));
        }
        if self.dropout.is_some() != self.has(Extra::Rng) {
            return Err(Error::argument("dropout and rng", "come only together", "give both or neither"));
        }
        if self.splits == Some(0) {
            return Err(Error::argument("splits 0", "leaves no block for the keys", "give at least 1"));
        }
        Ok(())
    }
}

impl Op for SoftmaxAttention {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        let s = self.sizes(inputs)?;
        let mut outputs = vec![s.output(), Output::full([s.batch, s.heads, s.queries])];
        if self.weights {
            outputs.push(Output::real([s.batch, s.heads, s.queries, s.keys]));
        }
        let (scratch_forward, scratch_backward) = gpu::scratch(self, &s);
        Ok(Contract {
            outputs,
            scratch_forward,
            scratch_backward,
            backward_reads_outputs: vec![true, true, false][..2 + self.weights as usize].into(),
            constant_inputs: self.place_of(Extra::AlibiSlopes).into_iter().collect(),
            constant_outputs: if self.weights { vec![2] } else { vec![] },
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let Ok(s) = self.sizes(inputs) else { return Cost::default() };
        let pairs = self.pairs(&s);
        let (dk, dv) = (s.key_dim as f64, s.value_dim as f64);
        Cost {
            forward_flops: 2.0 * pairs * (dk + dv),
            forward_bytes: s.bytes(),
            // Five products: the scores again, dout·vᵀ, and one for each gradient.
            backward_flops: 2.0 * pairs * (3.0 * dk + 2.0 * dv),
            backward_bytes: 2.0 * s.bytes() + 4.0 * (s.batch * s.heads * s.queries * s.value_dim) as f64,
        }
    }

    fn accepts_strides(&self) -> bool {
        true
    }

    fn precisions(&self) -> &'static [Precision] {
        &Precision::GPU
    }
}

impl<R: Real> CpuOp<R> for SoftmaxAttention {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let [q, k, v] = [0, 1, 2].map(|i| io.inputs[i].real());
        let problem = self.problem(&io.inputs);
        let lse = io.outputs[1].contiguous();
        cpu::forward(&problem, q, k, v, &io.outputs[0], lse, mode);
        if let Some(weights) = io.outputs.get_mut(2) {
            cpu::weights(&problem, q, k, lse, weights.contiguous(), mode);
        }
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, mode: Mode) {
        let [q, k, v] = [0, 1, 2].map(|i| io.inputs[i].real());
        let mut gradient = |i: usize| io.d_inputs[i].take();
        let (dq, dk, dv) = (gradient(0), gradient(1), gradient(2));
        let to = cpu::Gradients { dq, dk, dv, d_bias: self.place_of(Extra::Bias).and_then(gradient) };
        let from = cpu::Saved {
            q,
            k,
            v,
            out: io.outputs[0].real(),
            lse: io.outputs[1].all(),
            d_out: io.d_outputs[0].map(|d| d.real()),
            d_lse: io.d_outputs[1].map(|d| d.all()),
        };
        cpu::backward(&self.problem(&io.inputs), &from, &to, mode);
    }
}

impl SoftmaxAttention {
    fn problem<'a, R: Real>(&self, inputs: &[Input<'a, R>]) -> cpu::Problem<'a, R> {
        let specs = [0, 1, 2].map(|i| Spec::real(inputs[i].real().shape));
        let sizes = Sizes::of(ENTRY.name, &specs.each_ref(), self.causal).expect("checked when recorded");
        let input = |extra: Extra| self.place_of(extra).map(|i| inputs[i]);
        let ints = |extra: Extra| input(extra).map(|x| x.ints());
        let plain = self.window.is_none()
            && self.softcap.is_none()
            && !self.weights
            && self.extras.iter().all(|&e| e == Extra::KeyLengths);
        let features = cpu::features::Features {
            window: self.window,
            softcap: self.softcap,
            slopes: input(Extra::AlibiSlopes).map(|x| x.all()),
            sequences: ints(Extra::CuSeqlensQ).zip(ints(Extra::CuSeqlensK)),
            mask: input(Extra::Mask).map(|x| x.int_tensor()),
            bias: input(Extra::Bias).map(|x| x.real()),
            dropout: self.dropout.zip(ints(Extra::Rng)),
        };
        let features = if plain { None } else { Some(features) };
        cpu::Problem { sizes, scale: self.scale(sizes.key_dim), lengths: ints(Extra::KeyLengths), features }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_costs_what_it_shows() {
        for (queries, keys) in [(5, 9), (9, 5), (7, 7), (0, 3), (3, 0)] {
            let s = Sizes { batch: 2, heads: 3, kv_heads: 3, queries, keys, key_dim: 1, value_dim: 1, causal: false };
            for window in [(0, 0), (2, 1), (3, 0), (100, 100)] {
                let op = SoftmaxAttention { window: Some(window), ..Default::default() };
                let (t, s_, n) = (queries as i64, keys as i64, 6.0);
                let near = |at: i64, key: i64| at - window.0 as i64 <= key && key <= at + window.1 as i64;
                let seen = (0..t).flat_map(|t_| (0..s_).filter(move |&key| near(t_ + s_ - t, key))).count();
                assert_eq!(op.pairs(&s), seen as f64 * n, "{queries}×{keys}, {window:?}");
            }
        }
    }
}
