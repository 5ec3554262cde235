//! W_hh as the products of a step read it, and which sequences are stepped together.
//!
//! A step is a product of few rows with all of W_hh, so what it costs is to read W_hh. Packed once, panel after panel, it
//! streams from the cache: a panel is a few vectors wide and holds its rows one after another, where the matrix itself has a
//! row's next vector thousands of bytes further.

use crate::cpu::Real;
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::scratch::Aligned;
use std::ops::Range;

/// Sequences stepped together, at most: as many rows as the product of a panel takes at once.
const GROUP: usize = 8;
/// Fewer would leave the additions waiting for each other.
const LEAST: usize = 4;
/// The most lanes of a vector.
const PAD: usize = 16;

/// A matrix in panels, with zeros where a panel reaches past its columns.
pub(super) struct Panels<R> {
    /// Rows of the matrix.
    depth: usize,
    /// Columns of each panel: whole vectors.
    pub width: usize,
    data: Aligned<R>,
}

/// Vectors of this element type have so many lanes.
pub(super) fn lanes<R: Real>() -> usize {
    struct Lanes;
    impl<R> Kernel<R> for Lanes {
        type Output = usize;
        #[inline(always)]
        fn run<S: Simd<R>>(self, _: S) -> usize {
            S::LANES
        }
    }
    vectorise::<R, _>(Lanes)
}

impl<R: Real> Panels<R> {
    /// W_hhᵀ (H,G·H) for forward: a panel is all gates of a vector of units, so that a step's cell follows from one panel.
    pub fn of_gates(weight: &[R], gates: usize, hidden: usize) -> Self {
        let lanes = lanes::<R>();
        let (width, depth) = (gates * lanes, hidden);
        let mut data = Aligned::zeros(hidden.div_ceil(lanes) * depth * width);
        for (panel, units) in data.chunks_exact_mut(depth * width).zip((0..hidden).step_by(lanes)) {
            for (gate, unit) in (0..gates).flat_map(|g| (units..hidden.min(units + lanes)).map(move |u| (g, u))) {
                let column = gate * lanes + unit - units;
                let row = &weight[(gate * hidden + unit) * hidden..][..hidden];
                panel[column..].iter_mut().step_by(width).zip(row).for_each(|(to, &w)| *to = w);
            }
        }
        Panels { depth, width, data }
    }

    /// W_hh (G·H,H) for backward, three vectors of units a panel.
    pub fn of_units(weight: &[R], hidden: usize) -> Self {
        let (width, depth) = (hidden.next_multiple_of(lanes::<R>()).min(3 * lanes::<R>()), weight.len() / hidden);
        let mut data = Aligned::zeros(hidden.div_ceil(width) * depth * width);
        for (panel, units) in data.chunks_exact_mut(depth * width).zip((0..hidden).step_by(width)) {
            let units = units..hidden.min(units + width);
            for (to, row) in panel.chunks_exact_mut(width).zip(weight.chunks_exact(hidden)) {
                to[..units.len()].copy_from_slice(&row[units.clone()]);
            }
        }
        Panels { depth, width, data }
    }

    /// The panels in order.
    pub fn iter(&self) -> impl Iterator<Item = &[R]> {
        self.data.chunks_exact(self.depth * self.width)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.data.len() / (self.depth * self.width)
    }
}

/// Sequences in the order of their lengths, longest first, in groups: those still running at a step are the first.
pub(super) struct Groups {
    order: Vec<usize>,
    size: usize,
}

impl Groups {
    /// Smaller groups where threads would be idle. A row is summed in one order whoever stands beside it, so that this
    /// changes no bit.
    pub fn of(lengths: &[usize], directions: usize) -> Self {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&b| std::cmp::Reverse(lengths[b]));
        let size = (directions * lengths.len()).div_ceil(rayon::current_num_threads()).clamp(LEAST, GROUP);
        Groups { order, size }
    }
    pub fn count(&self) -> usize {
        self.order.len().div_ceil(self.size)
    }
    pub fn rows(&self, group: usize) -> &[usize] {
        &self.order[group * self.size..self.order.len().min((group + 1) * self.size)]
    }
}

/// The lanes of a vector of units from the first on, as far as there are units.
#[inline(always)]
pub(super) fn units<R, S: Simd<R>>(_: S, hidden: usize) -> impl Iterator<Item = Range<usize>> {
    (0..hidden).step_by(S::LANES).map(move |first| first..hidden.min(first + S::LANES))
}

/// The first lanes of a slice, with zeros where it is shorter.
#[inline(always)]
pub(super) fn load<R: Real, S: Simd<R>>(s: S, from: &[R]) -> S::V {
    if from.len() >= S::LANES {
        return s.load(from);
    }
    let mut padded = [R::ZERO; PAD];
    padded[..from.len()].copy_from_slice(from);
    s.load(&padded)
}

/// The first lanes to a slice, as many as it holds.
#[inline(always)]
pub(super) fn store<R: Real, S: Simd<R>>(s: S, v: S::V, to: &mut [R]) {
    if to.len() >= S::LANES {
        return s.store(v, to);
    }
    let mut padded = [R::ZERO; PAD];
    s.store(v, &mut padded);
    to.copy_from_slice(&padded[..to.len()]);
}
