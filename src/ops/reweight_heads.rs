//! Heads merged after each is multiplied by a weight from its own matrix norm: z\[b,t\] = (w₁·y\[b,1,t\], …, w_H·y\[b,H,t\]).
//!
//! n\[b,h,t\] is the Frobenius norm of head h's outputs over a scope, of which padding (t ≥ lengths\[b\]) is left out:
//! - `prefix`: rows 0 … t of the own sequence, n² = Σ_{s ≤ t} ‖y\[b,h,s\]‖²;
//! - `sequence`: all rows of the own sequence;
//! - `batch`: all rows of all sequences.
//!
//! The weight is `raw`, w = n, or `relative`, w = n / mean of the H heads' norms at the same place, so that weights
//! average 1 over the heads (where all norms are 0, w = 1).
//!
//! Two of the scopes have a defect, and are here so that it can be shown. **Batch dependence:** with `batch` a sentence's
//! output, and so its loss, depends on what else is in its batch. A model trained on batches of 32 meets, on a single
//! sentence, norms that are √32 times smaller. **A leak of later tokens:** with `sequence` and `batch` the norm at
//! position t contains the rows after t, so a prediction sees what it is to predict, through H numbers; the training loss
//! is then not a language model's. `prefix` has neither. A published experiment with such weights looks better in
//! training than its baseline (perplexity 363 against 401) and fails wildly on single sentences (2·10⁶ against 280):
//! training and development text went through in batches of 32, single sentences alone. Batch dependence is the likely
//! cause. The leak cannot be: it is the same alone and in a batch.
//!
//! Saved: n (B,H,T). Backward, with c = Σ dz·y over a row's columns: dn = c (raw), or dnₕ = H·(cₕ − Σⱼ cⱼnⱼ/Σⱼ nⱼ)/Σⱼ nⱼ (relative);
//! dy\[b,h,s\] = w·dz\[b,h,s\] + g·y\[b,h,s\] with g = Σ dn/n over the places whose scope holds (b,s), and 0 for padding.
//! Where n is 0, so is y: there dn/n counts as 0.

use super::permute_heads::{head_sizes, merged_strides, merged_view};
use crate::case::Case;
use crate::cpu::{Mut, Real, Ref};
use crate::error::Result;
use crate::gpu::{Argument, Gpu, Launch, Source, View};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::precision::Precision;
use rayon::prelude::*;

// SAFETY: warps and threads compare their row or place with the counts that the launch code takes from the places; sums
// and norms have an element a row.
const SOURCE: Source = unsafe {
    Source::new(
        "reweight_heads",
        include_str!("../../kernels/reweight_heads.cu"),
        &["reweight_heads_rows", "reweight_heads_scan", "reweight_heads_ratios", "reweight_heads_scale"],
    )
};

/// Over which rows a head's norm goes. Its number is the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormScope {
    /// Up to each position.
    #[default]
    Prefix = 0,
    /// The whole sequence; later tokens leak into earlier predictions.
    Sequence = 1,
    /// The whole batch; besides, a sentence's loss depends on its batch.
    Batch = 2,
}

/// How a head's norm becomes its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormWeight {
    /// It is the weight.
    #[default]
    Raw,
    /// Divided by the mean of the heads' norms.
    Relative,
}

/// Merges [y (B,H,T,D), strided as it likes] or [y, lengths int (B), each 0 to T] into z (B,T,H·D).
#[derive(Debug, Clone, Copy)]
pub struct ReweightHeads {
    /// Over which rows norms go.
    pub scope: NormScope,
    /// How norms become weights.
    pub weight: NormWeight,
    /// Whether lengths are given.
    pub lengths: bool,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "reweight-heads",
    summary: "each head times its norm, over the prefix, the sequence or the batch",
    cases,
    run: None,
    attention: None,
};

impl Op for ReweightHeads {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 1 + self.lengths as usize, if self.lengths { "y, lengths" } else { "y" })?;
        let [batch, heads, length, columns] = head_sizes(self.name(), inputs[0])?;
        if self.lengths {
            expect(self.name(), "lengths", inputs[1], Spec::int([batch]))?;
        }
        Ok(Contract {
            outputs: vec![Output::real([batch, length, heads * columns])],
            saved: vec![Spec::full([batch, heads, length])],
            scratch_backward: batch * heads * length,
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let n = inputs[0].numel() as f64;
        Cost { forward_flops: 3.0 * n, forward_bytes: 12.0 * n, backward_flops: 5.0 * n, backward_bytes: 20.0 * n }
    }

    fn accepts_strides(&self) -> bool {
        true
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

/// What the CPU's passes share.
struct Problem<'a> {
    op: ReweightHeads,
    mode: Mode,
    /// B, H, T, D.
    sizes: [usize; 4],
    lengths: Option<&'a [i32]>,
}

impl<'a> Problem<'a> {
    fn new<R: Real>(op: ReweightHeads, mode: Mode, inputs: &[Input<'a, R>]) -> Self {
        let sizes = *inputs[0].real().shape.first_chunk().expect("4 axes");
        Problem { op, mode, sizes, lengths: inputs.get(1).map(|l| l.ints()) }
    }

    /// Whether this row counts in norms.
    fn counts(&self, b: usize, t: usize) -> bool {
        self.lengths.is_none_or(|l| t < l[b] as usize)
    }

    /// `of` each row, as (B,H,T).
    fn rows<R: Real>(&self, of: impl Fn([usize; 3]) -> R + Sync) -> Vec<R> {
        let [batch, heads, length, columns] = self.sizes;
        let index = |i: usize| [i / length / heads, i / length % heads, i % length];
        let all = (0..batch * heads * length).into_par_iter().with_min_len(block_rows(columns));
        all.map(|i| of(index(i))).collect()
    }

    /// Sums of (B,H,T) over scopes: forward over what a place's scope holds, backward over the places whose scope holds
    /// it. The two differ for prefixes only.
    fn sums<R: Real>(&self, values: &[R], backward: bool) -> Vec<R> {
        let [batch, heads, length, _] = self.sizes;
        let at = |b: usize, h: usize, t: usize| (b * heads + h) * length + t;
        if self.mode == Mode::Definition {
            let holds = |[b, t]: [usize; 2], [ob, ot]: [usize; 2]| match self.op.scope {
                NormScope::Prefix => b == ob && if backward { ot >= t } else { ot <= t },
                NormScope::Sequence => b == ob,
                NormScope::Batch => true,
            };
            return self.rows(|[b, h, t]| {
                let others = (0..batch).flat_map(|ob| (0..length).map(move |ot| [ob, ot]));
                others.filter(|&other| holds([b, t], other)).map(|[b, t]| values[at(b, h, t)]).sum()
            });
        }
        let mut sums = values.to_vec();
        if length == 0 {
            return sums;
        }
        match self.op.scope {
            NormScope::Prefix => sums.par_chunks_mut(length).for_each(|line| {
                let mut sum = R::ZERO;
                let mut add = |x: &mut R| {
                    sum += *x;
                    *x = sum;
                };
                if backward { line.iter_mut().rev().for_each(&mut add) } else { line.iter_mut().for_each(&mut add) }
            }),
            NormScope::Sequence => sums.par_chunks_mut(length).for_each(|line| line.fill(short_sum(line))),
            NormScope::Batch => {
                let totals: Vec<R> =
                    (0..heads).map(|h| (0..batch).map(|b| short_sum(&values[at(b, h, 0)..][..length])).sum()).collect();
                sums.par_chunks_mut(length).enumerate().for_each(|(i, line)| line.fill(totals[i % heads]));
            }
        }
        sums
    }

    /// The sum over the heads at (b,t).
    fn over_heads<R: Real>(&self, b: usize, t: usize, of: impl Fn(usize) -> R) -> R {
        let [_, heads, length, _] = self.sizes;
        (0..heads).map(|h| of((b * heads + h) * length + t)).sum()
    }

    fn weight<R: Real>(&self, norms: &[R], [b, h, t]: [usize; 3]) -> R {
        let [_, heads, length, _] = self.sizes;
        let norm = norms[(b * heads + h) * length + t];
        match self.op.weight {
            NormWeight::Raw => norm,
            NormWeight::Relative => {
                let sum = self.over_heads(b, t, |i| norms[i]);
                if sum == R::ZERO { R::ONE } else { R::from_f64(heads as f64) * norm / sum }
            }
        }
    }

    /// dn/n from c.
    fn ratio<R: Real>(&self, norms: &[R], c: &[R], [b, h, t]: [usize; 3]) -> R {
        let [_, heads, length, _] = self.sizes;
        let i = (b * heads + h) * length + t;
        let dn = match self.op.weight {
            NormWeight::Raw => c[i],
            NormWeight::Relative => {
                let sum = self.over_heads(b, t, |i| norms[i]);
                let product = self.over_heads(b, t, |i| c[i] * norms[i]);
                if sum == R::ZERO { R::ZERO } else { R::from_f64(heads as f64) * (c[i] - product / sum) / sum }
            }
        };
        if norms[i] == R::ZERO { R::ZERO } else { dn / norms[i] }
    }

    /// z ← w·x, and where `through` is given + g·y for rows that count.
    fn scale<R: Real>(&self, x: Ref<R>, norms: &[R], through: Option<(&[R], Ref<R>)>, z: &Mut<R>, accumulate: bool) {
        let [batch, heads, length, columns] = self.sizes;
        (0..batch * heads * length).into_par_iter().with_min_len(block_rows(columns)).for_each(|i| {
            let at = [i / length / heads, i / length % heads, i % length];
            let weight = self.weight(norms, at);
            // SAFETY: each row is visited once, by one thread.
            let z = unsafe { z.row(&at) };
            if !accumulate {
                z.fill(R::ZERO);
            }
            z.iter_mut().zip(x.row(&at)).for_each(|(z, &x)| *z += weight * x);
            if let Some((g, y)) = through.filter(|_| self.counts(at[0], at[2])) {
                z.iter_mut().zip(y.row(&at)).for_each(|(z, &y)| *z += g[i] * y);
            }
        });
    }
}

impl<R: Real> CpuOp<R> for ReweightHeads {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let p = Problem::new(*self, mode, &io.inputs);
        let y = io.inputs[0].real();
        let square = |at: [usize; 3]| if p.counts(at[0], at[2]) { short_dot(y.row(&at), y.row(&at)) } else { R::ZERO };
        let sums = p.sums(&p.rows(square), false);
        let norms = io.saved[0].contiguous();
        norms.iter_mut().zip(&sums).for_each(|(norm, sum)| *norm = sum.sqrt());
        let strides = merged_strides(p.sizes);
        let z = Mut::new(io.outputs[0].contiguous(), &p.sizes, &strides);
        p.scale(y, norms, None, &z, false);
    }

    fn backward_cpu(&self, io: BackwardCpu<R>, mode: Mode) {
        let (Some(dz), Some(dy)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return };
        let p = Problem::new(*self, mode, &io.inputs);
        let (y, norms) = (io.inputs[0].real(), io.saved[0].all());
        let strides = merged_strides(p.sizes);
        let dz = Ref { data: dz.all(), shape: &p.sizes, strides: &strides };
        let c = p.rows(|at| short_dot(dz.row(&at), y.row(&at)));
        let ratios = p.rows(|at| p.ratio(norms, &c, at));
        let g = p.sums(&ratios, true);
        p.scale(dz, norms, Some((&g, y)), &dy.to, dy.accumulate);
    }
}

/// Launches on tensors of one shape.
struct Launcher<'a> {
    gpu: &'a Gpu,
    op: ReweightHeads,
    sizes: [usize; 4],
    /// Address, or 0.
    lengths: u64,
}

impl<'a> Launcher<'a> {
    fn new(gpu: &'a Gpu, op: ReweightHeads, inputs: &[Place]) -> Self {
        let sizes = *inputs[0].shape.first_chunk().expect("4 axes");
        Launcher { gpu, op, sizes, lengths: inputs.get(1).map_or(0, |l| l.address) }
    }

    fn merged(&self, place: &Place) -> View {
        merged_view(place, self.sizes)
    }

    /// `warps` warps, eight a block.
    fn warps(&self, entry: &str, warps: usize, arguments: &[&dyn Argument]) -> Result<()> {
        let launch = Launch { grid: [warps.div_ceil(8) as u32, 1, 1], block: [256, 1, 1], shared: 0 };
        self.gpu.launch(&self.gpu.module(&SOURCE), entry, launch, arguments)
    }

    fn ints(&self) -> (i64, [i32; 4]) {
        let [batch, heads, length, _] = self.sizes;
        ((batch * heads * length) as i64, self.sizes.map(|n| n as i32))
    }

    fn rows(&self, a: View, b: View, lengths: u64, sums: u64) -> Result<()> {
        let (rows, [_, heads, length, columns]) = self.ints();
        let arguments: &[&dyn Argument] = &[&a, &b, &lengths, &sums, &rows, &heads, &length, &columns];
        self.warps("reweight_heads_rows", rows as usize, arguments)
    }

    fn scan(&self, values: u64, backward: bool) -> Result<()> {
        let (_, [batch, heads, length, _]) = self.ints();
        let units = if self.op.scope == NormScope::Batch { self.sizes[1] } else { self.sizes[0] * self.sizes[1] };
        let (scope, from_end, root) = (self.op.scope as i32, backward as i32, !backward as i32);
        self.warps("reweight_heads_scan", units, &[&values, &batch, &heads, &length, &scope, &from_end, &root])
    }

    fn ratios(&self, norms: u64, c: u64) -> Result<()> {
        let (_, [_, heads, length, _]) = self.ints();
        let places = self.sizes[0] * self.sizes[2];
        let relative = (self.op.weight == NormWeight::Relative) as i32;
        let arguments: &[&dyn Argument] = &[&norms, &c, &(places as i64), &heads, &length, &relative];
        self.gpu.launch_flat(&self.gpu.module(&SOURCE), "reweight_heads_ratios", places, arguments)
    }

    fn scale(&self, x: View, norms: u64, (g, y): (u64, View), z: View, accumulate: bool) -> Result<()> {
        let (rows, [_, heads, length, columns]) = self.ints();
        let (relative, accumulate) = ((self.op.weight == NormWeight::Relative) as i32, accumulate as i32);
        let arguments: &[&dyn Argument] =
            &[&x, &y, &norms, &g, &self.lengths, &z, &rows, &heads, &length, &columns, &relative, &accumulate];
        self.warps("reweight_heads_scale", rows as usize, arguments)
    }
}

impl GpuOp for ReweightHeads {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let launcher = Launcher::new(gpu, *self, &io.inputs);
        let (y, norms) = (View::of(&io.inputs[0]), io.saved[0].address);
        launcher.rows(y, y, launcher.lengths, norms)?;
        launcher.scan(norms, false)?;
        launcher.scale(y, norms, (0, View::NONE), launcher.merged(&io.outputs[0]), false)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let (Some(dz), Some(dy)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return Ok(()) };
        let launcher = Launcher::new(gpu, *self, &io.inputs);
        let (y, dz, norms, g) = (View::of(&io.inputs[0]), launcher.merged(dz), io.saved[0].address, io.scratch.address);
        launcher.rows(dz, y, 0, g)?;
        launcher.ratios(norms, g)?;
        launcher.scan(g, true)?;
        launcher.scale(dz, norms, (g, y), View::of(&dy.to), dy.accumulate)
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: [usize; 4], scope: NormScope, weight: NormWeight, lengths: &'static [i32]| {
        let mut name = format!("{shape:?} {scope:?} {weight:?}");
        if !lengths.is_empty() {
            name += &format!(" lengths {lengths:?}");
        }
        Case::new(name, move |g| {
            let mut inputs = vec![g.normal("y", &shape)];
            if !lengths.is_empty() {
                inputs.push(g.ints("lengths", &[shape[0]], 0..shape[2] as i64 + 1, lengths.to_vec()));
            }
            g.record(ReweightHeads { scope, weight, lengths: !lengths.is_empty() }, &inputs)
        })
    };
    use {NormScope::*, NormWeight::*};
    // Heads as attention stores them, and two gradients of one tensor.
    let twice = Case::new("packed, prefix and sequence", |g| {
        let packed = g.normal("packed", &[2, 5, 24]);
        let y = g.heads(packed, 0..24, 3)?;
        let op = ReweightHeads { scope: Prefix, weight: Relative, lengths: false };
        Ok(vec![g.one(op, &[y])?, g.one(ReweightHeads { scope: Sequence, weight: Raw, ..op }, &[y])?])
    });
    // A head whose first two rows are zeros has norm 0 there.
    let zeros = |weight: NormWeight| {
        Case::new(format!("zeros {weight:?}"), move |g| {
            let value = |i: usize| if i < 6 || i.is_multiple_of(6) { 0.0 } else { (i as f64).sin() };
            let y = g.given("y", &[1, 2, 3, 3], (0..18).map(value).collect());
            g.record(ReweightHeads { scope: Prefix, weight, lengths: false }, &[y])
        })
    };
    vec![
        case([1, 1, 1, 1], Prefix, Raw, &[]),
        case([2, 3, 37, 16], Prefix, Raw, &[]).in_every_order(),
        case([3, 3, 5, 4], Prefix, Relative, &[5, 0, 2]),
        case([3, 3, 5, 4], Sequence, Raw, &[5, 0, 2]),
        case([3, 2, 65, 40], Sequence, Relative, &[65, 1, 33]).in_every_order(),
        case([3, 3, 5, 4], Batch, Raw, &[5, 0, 2]),
        case([2, 3, 37, 16], Batch, Relative, &[30, 37]).in_every_order(),
        case([1, 70, 3, 5], Prefix, Relative, &[]),
        case([1, 2, 1000, 3], Prefix, Raw, &[]),
        case([0, 2, 3, 4], Batch, Raw, &[]),
        twice,
        zeros(Raw).at_a_kink(),
        zeros(Relative).at_a_kink(),
    ]
}
