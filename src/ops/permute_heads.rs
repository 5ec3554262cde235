//! Heads concatenated in another order: z\[b,t\] = (y\[b,π⁻¹(0),t\], y\[b,π⁻¹(1),t\], …), where head h goes to place π(h).
//!
//! Two orders: `Shift` is a rotation left by one, \[O² … Oᴴ O¹\]; `Drawn` a random one, in which head h's place is its
//! rank among the heads' Philox words (key = seed; counter = (h/4, 0, stream, step)). Seed and step lie in device memory, so
//! that a captured step can draw a new order at each replay; where they stay, so does the order.
//!
//! A fixed order is no experiment: it equals plain concatenation with the rows of the output projection permuted
//! (`tests/head_merging.rs` shows it), and those rows are drawn at random anyway. Only a redraw at each forward is one.
//! Nothing is saved. dy\[b,h,t\] = dz\[b,t\] at place π(h).

use crate::case::Case;
use crate::cpu::{Mut, Real, Ref};
use crate::error::{Error, Result};
use crate::gpu::{Argument, Gpu, Launch, Source, View};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::philox::Philox;
use crate::precision::Precision;
use rayon::prelude::*;

// SAFETY: a warp touches one row of each view; rows, heads and columns are compared with the sizes that the launch code
// takes from the places, and a rank is below the number of heads. rng holds three words by contract.
const SOURCE: Source =
    unsafe { Source::new("permute_heads", include_str!("../../kernels/permute_heads.cu"), &["permute_heads"]) };

/// Where heads go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadOrder {
    /// One place to the left; the first becomes the last.
    Shift,
    /// At random.
    Drawn {
        /// Of random numbers; each layer has its own.
        stream: u32,
    },
}

/// Merges [y (B,H,T,D), strided as it likes] or, where the order is drawn, [y, rng int (3): seed low, seed high, step] into z
/// (B,T,H·D).
#[derive(Debug, Clone, Copy)]
pub struct PermuteHeads {
    /// In which order.
    pub order: HeadOrder,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "permute-heads",
    summary: "heads concatenated rotated by one, or in a random order",
    cases,
    run: None,
    attention: None,
};

impl HeadOrder {
    /// The place of each head, for a generator's seed and step.
    pub fn places(self, heads: usize, seed: u64, step: u32) -> Vec<usize> {
        match self {
            HeadOrder::Shift => (0..heads).map(|h| (h + heads - 1) % heads).collect(),
            HeadOrder::Drawn { stream } => {
                let random = Philox::new(seed, stream, step);
                let words: Vec<(u32, usize)> = (0..heads).map(|h| (random.word(h as u64), h)).collect();
                words.iter().map(|own| words.iter().filter(|other| *other < own).count()).collect()
            }
        }
    }

    fn is_drawn(self) -> bool {
        matches!(self, HeadOrder::Drawn { .. })
    }
}

/// Checks a (B,H,T,D) tensor of heads and reads its sizes.
pub(crate) fn head_sizes(op: &str, y: &Spec) -> Result<[usize; 4]> {
    match y.shape[..] {
        [b, h, t, d] if y.kind == Kind::Real && h > 0 && d > 0 => Ok([b, h, t, d]),
        _ => Err(Error::shape(op, "y", "real (B, H, T, D) with at least one head and column", y.to_string())),
    }
}

/// The strides of merged heads (B,T,H·D), seen as (B,H,T,D).
pub(crate) fn merged_strides([_, heads, length, columns]: [usize; 4]) -> [usize; 4] {
    [length * heads * columns, columns, heads * columns, 1]
}

/// Merged heads on a GPU, seen as (B,H,T,D).
pub(crate) fn merged_view(place: &Place, sizes: [usize; 4]) -> View {
    let [batch, head, row, _] = merged_strides(sizes).map(|s| s as i64);
    View { data: place.address, batch, head, row }
}

impl Op for PermuteHeads {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        let drawn = self.order.is_drawn();
        expect_inputs(self.name(), inputs, 1 + drawn as usize, if drawn { "y, rng" } else { "y" })?;
        let [batch, heads, length, columns] = head_sizes(self.name(), inputs[0])?;
        if drawn {
            expect(self.name(), "rng", inputs[1], Spec::int([3]))?;
        }
        Ok(Contract {
            outputs: vec![Output::real([batch, length, heads * columns])],
            backward_reads_inputs: [false, true][..inputs.len()].to_vec(),
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let bytes = 8.0 * inputs[0].numel() as f64;
        Cost { forward_bytes: bytes, backward_bytes: bytes, ..Default::default() }
    }

    fn accepts_strides(&self) -> bool {
        true
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

impl PermuteHeads {
    fn places_of<R: Real>(&self, inputs: &[Input<R>], heads: usize) -> Vec<usize> {
        let (seed, step) = inputs.get(1).map_or((0, 0), |rng| {
            let words = rng.ints();
            (words[0] as u32 as u64 | (words[1] as u32 as u64) << 32, words[2] as u32)
        });
        self.order.places(heads, seed, step)
    }

    fn launch(&self, gpu: &Gpu, inputs: &[Place], [from, to]: [View; 2], back: bool, accumulate: bool) -> Result<()> {
        let [batch, heads, length, columns] = inputs[0].shape[..] else { unreachable!("four axes by contract") };
        let rows = batch * heads * length;
        let (stream, rng) = match self.order {
            HeadOrder::Shift => (0, 0),
            HeadOrder::Drawn { stream } => (stream, inputs[1].address),
        };
        let module = gpu.module(&SOURCE).define("DRAWN", self.order.is_drawn() as i32);
        let grid = [rows.div_ceil(8) as u32, 1, 1];
        let [heads, length, columns] = [heads, length, columns].map(|n| n as i32);
        let (rows, back, accumulate) = (rows as i64, back as i32, accumulate as i32);
        let arguments: &[&dyn Argument] =
            &[&from, &to, &rng, &stream, &rows, &heads, &length, &columns, &back, &accumulate];
        gpu.launch(&module, "permute_heads", Launch { grid, block: [256, 1, 1], shared: 0 }, arguments)
    }
}

impl<R: Real> CpuOp<R> for PermuteHeads {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, _: Mode) {
        let y = io.inputs[0].real();
        let [_, heads, length, columns] = *y.shape.first_chunk().expect("4 axes");
        let places = self.places_of(&io.inputs, heads);
        let width = heads * columns;
        let z = io.outputs[0].contiguous();
        z.par_chunks_mut(width).with_min_len(block_rows(width)).enumerate().for_each(|(row, z)| {
            for (h, &place) in places.iter().enumerate() {
                z[place * columns..][..columns].copy_from_slice(y.row(&[row / length, h, row % length]));
            }
        });
    }

    fn backward_cpu(&self, io: BackwardCpu<R>, _: Mode) {
        let (Some(dz), Some(dy)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return };
        let sizes: [usize; 4] = *dy.to.shape.first_chunk().expect("4 axes");
        let [batch, heads, length, _] = sizes;
        let places = self.places_of(&io.inputs, heads);
        let dz = Ref { data: dz.all(), shape: &sizes, strides: &merged_strides(sizes) };
        let to: &Mut<R> = &dy.to;
        (0..batch * length).into_par_iter().with_min_len(64).for_each(|row| {
            for (h, &place) in places.iter().enumerate() {
                let (b, t) = (row / length, row % length);
                // SAFETY: each row is visited once, by one thread.
                add_to(unsafe { to.row(&[b, h, t]) }, dz.row(&[b, place, t]), dy.accumulate);
            }
        });
    }
}

impl GpuOp for PermuteHeads {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let sizes = *io.inputs[0].shape.first_chunk().expect("4 axes");
        let views = [View::of(&io.inputs[0]), merged_view(&io.outputs[0], sizes)];
        self.launch(gpu, &io.inputs, views, false, false)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let (Some(dz), Some(dy)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return Ok(()) };
        let sizes = *io.inputs[0].shape.first_chunk().expect("4 axes");
        self.launch(gpu, &io.inputs, [merged_view(dz, sizes), View::of(&dy.to)], true, dy.accumulate)
    }
}

fn record(g: &mut crate::case::CaseGraph, order: HeadOrder, y: crate::Tensor, rng: [i32; 3]) -> Result<crate::Tensor> {
    let mut inputs = vec![y];
    if order.is_drawn() {
        inputs.push(g.ints("rng", &[3], i32::MIN as i64..i32::MAX as i64 + 1, rng.to_vec()));
    }
    g.one(PermuteHeads { order }, &inputs)
}

fn cases() -> Vec<Case> {
    let case = |shape: [usize; 4], order: HeadOrder, rng: [i32; 3]| {
        Case::new(format!("{shape:?} {order:?}"), move |g| {
            let y = g.normal("y", &shape);
            Ok(vec![record(g, order, y, rng)?])
        })
    };
    let drawn = |stream: u32| HeadOrder::Drawn { stream };
    // Heads as attention stores them, (B,T,H,D); and y contributes twice, so one gradient is added to the other.
    let twice = Case::new("packed, both orders", |g| {
        let packed = g.normal("packed", &[2, 5, 24]);
        let y = g.heads(packed, 0..24, 3)?;
        Ok(vec![record(g, HeadOrder::Shift, y, [0; 3])?, record(g, HeadOrder::Drawn { stream: 9 }, y, [-7, 3, 2])?])
    });
    vec![
        case([1, 1, 1, 1], HeadOrder::Shift, [0; 3]),
        case([2, 3, 37, 16], HeadOrder::Shift, [0; 3]),
        case([2, 5, 37, 40], drawn(0), [-5, 3, 100]).in_every_order(),
        case([1, 70, 3, 5], drawn(u32::MAX), [1, -1, -1]),
        case([0, 2, 3, 4], drawn(1), [1, 2, 3]),
        twice,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shift_rotates_left() {
        // [O¹ O² O³ O⁴] becomes [O² O³ O⁴ O¹].
        assert_eq!(HeadOrder::Shift.places(4, 0, 0), [3, 0, 1, 2]);
    }

    #[test]
    fn every_order_is_drawn_about_equally_often() {
        let mut counts = std::collections::BTreeMap::new();
        for step in 0..6000 {
            *counts.entry(HeadOrder::Drawn { stream: 3 }.places(3, 1, step)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        // Five standard deviations of a binomial count around 1000.
        assert!(counts.values().all(|&n: &i32| (n - 1000).abs() < 145), "{counts:?}");
    }
}
