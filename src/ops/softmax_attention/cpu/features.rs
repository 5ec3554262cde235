//! What a score may go through between scale·q·k and the softmax, and what hides a key: for one score, which is how
//! the definition reads, and for a tile.

use super::Problem;
use super::tiles::{QUERIES, transpose};
use crate::cpu::lanes::{Kernel, Simd};
use crate::cpu::{Real, Ref};
use crate::ops::dropout::Dropout;
use crate::philox::Philox;
use std::ops::Range;

/// What is asked for beyond causality, scale and key lengths.
#[derive(Debug, Clone, Copy)]
pub struct Features<'a, R> {
    /// Keys left and right of the diagonal that a query sees.
    pub window: Option<(usize, usize)>,
    /// The bound of the scores.
    pub softcap: Option<f64>,
    /// ALiBi's slopes (H).
    pub slopes: Option<&'a [R]>,
    /// The bounds of packed sequences (N+1) among the queries and among the keys.
    pub sequences: Option<(&'a [i32], &'a [i32])>,
    /// The mask (B or 1, H or 1, T or 1, S).
    pub mask: Option<Ref<'a, i32>>,
    /// The bias, shaped likewise.
    pub bias: Option<Ref<'a, R>>,
    /// Dropout of the weights, and the seed and step to draw with.
    pub dropout: Option<(Dropout, &'a [i32])>,
}

impl<R: Real> Features<'_, R> {
    /// The row of the mask for a query.
    fn mask_row(&self, at: [usize; 3]) -> Option<&[i32]> {
        self.mask.map(|mask| &mask.data[start(mask, at)..][..mask.shape[3]])
    }

    /// The generator of the dropout.
    fn philox(&self) -> Option<(Dropout, Philox)> {
        let (dropout, rng) = self.dropout?;
        let seed = rng[0] as u32 as u64 | (rng[1] as u32 as u64) << 32;
        Some((dropout, Philox::new(seed, dropout.stream, rng[2] as u32)))
    }
}

/// The index of a broadcast tensor (B or 1, H or 1, T or 1, …) that stands for [b, h, t].
pub fn broadcast(shape: &[usize], [b, h, t]: [usize; 3]) -> [usize; 3] {
    [b.min(shape[0] - 1), h.min(shape[1] - 1), t.min(shape[2] - 1)]
}

/// Where the row that stands for [b, h, t] begins.
fn start<R>(x: Ref<R>, at: [usize; 3]) -> usize {
    broadcast(x.shape, at).iter().zip(x.strides).map(|(i, stride)| i * stride).sum()
}

/// What dropout multiplies a weight with.
fn kept<R: Real>(dropout: Dropout, word: u32) -> R {
    // Compared as f32, as the kernels do: every device drops the same elements.
    if Philox::to_uniform(word) >= dropout.p as f32 { R::from_f64(dropout.scale()) } else { R::ZERO }
}

impl<'a, R: Real> Problem<'a, R> {
    /// The keys that query t may see as far as its place decides. Neither bound falls from one query to the next.
    pub fn range(&self, b: usize, t: usize) -> Range<usize> {
        let s = self.sizes;
        let length = s.length(self.lengths, b);
        let Some(f) = &self.features else { return 0..s.visible(t, length) };
        let keys = self.sequence(t).1;
        let (first, end) = (keys.start as i64, keys.end as i64);
        let diagonal = self.diagonal(t);
        // Wider than any tensor is as good as unbounded.
        let reach = |n: usize| n.min(1 << 40) as i64;
        let left = f.window.map_or(first, |(left, _)| diagonal - reach(left));
        let right = match (s.causal, f.window) {
            (true, _) => diagonal + 1,
            (false, Some((_, right))) => diagonal + reach(right) + 1,
            (false, None) => end,
        };
        left.clamp(first, end) as usize..(right.clamp(first, end) as usize).min(length)
    }

    /// The queries and keys of the sequence that query t belongs to. (Bounds that fall give a wrong one, not a panic.)
    fn sequence(&self, t: usize) -> (Range<usize>, Range<usize>) {
        let (queries, keys) = (self.sizes.queries, self.sizes.keys);
        let Some((of_q, of_k)) = self.features.as_ref().and_then(|f| f.sequences) else { return (0..queries, 0..keys) };
        let n = of_q.partition_point(|&first| first <= t as i32).clamp(1, of_q.len() - 1);
        let range = |bounds: &[i32], all: usize| {
            let [first, end] = [bounds[n - 1], bounds[n]].map(|x| (x.max(0) as usize).min(all));
            first..end.max(first)
        };
        (range(of_q, queries), range(of_k, keys))
    }

    /// The key that query t stands at: where its sequence's last query stands at the last key.
    pub fn diagonal(&self, t: usize) -> i64 {
        let (queries, keys) = self.sequence(t);
        t as i64 + keys.end as i64 - queries.end as i64
    }

    /// The score of a key in the query's [`Problem::range`] from scale·q·k, and ∂score/∂(scale·q·k); `None` if it is hidden.
    pub fn score(&self, x: R, [b, h, t, s]: [usize; 4]) -> Option<(R, R)> {
        let (mut x, mut slope) = (x, R::ONE);
        let Some(f) = &self.features else { return Some((x, slope)) };
        if let Some(cap) = f.softcap {
            let tanh = (x / R::from_f64(cap)).tanh();
            (x, slope) = (R::from_f64(cap) * tanh, R::ONE - tanh * tanh);
        }
        if let Some(slopes) = f.slopes {
            x -= slopes[h] * R::from_f64((self.diagonal(t) - s as i64).abs() as f64);
        }
        if let Some(bias) = f.bias {
            let bias = bias.row(&broadcast(bias.shape, [b, h, t]))[s];
            if bias == R::NEG_INFINITY {
                return None;
            }
            x += bias;
        }
        f.mask_row([b, h, t]).is_none_or(|row| row[s] != 0).then_some((x, slope))
    }

    /// What dropout multiplies a weight with.
    pub fn kept(&self, [b, h, t, s]: [usize; 4]) -> R {
        let Some((dropout, philox)) = self.features.as_ref().and_then(Features::philox) else { return R::ONE };
        kept(dropout, philox.word(self.element(b, h, t) + s as u64))
    }

    fn element(&self, b: usize, h: usize, t: usize) -> u64 {
        let s = self.sizes;
        ((b * s.heads + h) * s.queries + t) as u64 * s.keys as u64
    }
}

/// A tile of scores: its batch and head, first query and how many, first key and how many, lanes of a row.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    /// Batch and query head.
    pub head: (usize, usize),
    /// First query, and how many.
    pub queries: (usize, usize),
    /// First key, and how many.
    pub keys: (usize, usize),
    /// Lanes of a row: queries, rounded up to whole vectors.
    pub width: usize,
}

/// How much of a tile is visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// No query sees any key.
    Nothing,
    /// Some sees one, and one is hidden from some.
    Something,
    /// Every query sees every key.
    Everything,
}

/// Tile-sized room for what the features need, each (keys, width).
#[derive(Debug)]
pub struct Room<'a, R> {
    /// 1 where a key is visible and 0 where it is hidden, if the tile is [`Sight::Something`].
    pub seen: &'a mut [R],
    /// The transposed bias; and later what dropout multiplies with.
    pub spare: &'a mut [R],
    /// ∂score/∂(scale·q·k), if there is soft-capping; may be empty where no one asks. 0 where hidden.
    pub slope: &'a mut [R],
}

/// Makes scores of scale·q·k; −∞ where hidden.
pub struct Adjust<'a, 'r, R> {
    /// The problem, with features.
    pub p: &'a Problem<'a, R>,
    /// Where the tile lies.
    pub area: Area,
    /// (keys, width).
    pub scores: &'a mut [R],
    /// See there.
    pub room: &'a mut Room<'r, R>,
}

impl<R: Real> Kernel<R> for Adjust<'_, '_, R> {
    type Output = Sight;

    #[inline(always)]
    fn run<S: Simd<R>>(self, _: S) -> Sight {
        let Adjust { p, area, scores, room } = self;
        let Area { head: (b, h), queries: (t, queries), keys: (first, keys), width } = area;
        let Some(f) = &p.features else { return Sight::Everything };
        let scores = &mut scores[..keys * width];
        if let Some(cap) = f.softcap {
            let (cap, inverse) = (R::from_f64(cap), R::from_f64(1.0 / cap));
            scores.iter_mut().for_each(|x| *x = *x * inverse);
            R::tanh_in_place(scores);
            room.slope.iter_mut().zip(&*scores).for_each(|(slope, &tanh)| *slope = R::ONE - tanh * tanh);
            scores.iter_mut().for_each(|x| *x = *x * cap);
        }
        if let Some(slopes) = f.slopes {
            let mut place = [R::ZERO; QUERIES];
            for (i, place) in place[..queries].iter_mut().enumerate() {
                *place = R::from_f64((p.diagonal(t + i) - first as i64) as f64);
            }
            for (key, row) in scores.chunks_exact_mut(width).enumerate() {
                let key = R::from_usize(key);
                row.iter_mut().zip(&place).for_each(|(x, &place)| *x = *x - slopes[h] * (place - key).abs());
            }
        }
        let bias = f.bias.map(|bias| {
            let rows = &bias.data[start(bias, [b, h, t]) + first..];
            let row = if bias.shape[2] == 1 { 0 } else { bias.strides[2] };
            transpose((rows, row), queries, keys, R::ONE, room.spare, width);
            let bias = &room.spare[..keys * width];
            scores.iter_mut().zip(bias).for_each(|(x, &bias)| *x += bias);
            bias
        });
        let cut = p.range(b, t + queries - 1).start > first || p.range(b, t).end < first + keys;
        if !cut && bias.is_none() && f.mask.is_none() {
            return Sight::Everything;
        }
        let seen = &mut room.seen[..keys * width];
        let mut bounds = [[R::ZERO; QUERIES]; 2];
        for i in 0..queries {
            let range = p.range(b, t + i);
            // Counted from the tile's first key, small enough to be exact.
            bounds[0][i] = R::from_usize(range.start.saturating_sub(first).min(keys));
            bounds[1][i] = R::from_usize(range.end.saturating_sub(first).min(keys));
        }
        for (key, row) in seen.chunks_exact_mut(width).enumerate() {
            let key = R::from_usize(key);
            for (seen, (&from, &to)) in row.iter_mut().zip(bounds[0].iter().zip(&bounds[1])) {
                *seen = if (from <= key) & (key < to) { R::ONE } else { R::ZERO };
            }
        }
        if let Some(bias) = bias {
            let hide = |(seen, &bias): (&mut R, &R)| *seen = if bias == R::NEG_INFINITY { R::ZERO } else { *seen };
            seen.iter_mut().zip(bias).for_each(hide);
        }
        for i in 0..queries {
            let Some(row) = f.mask_row([b, h, t + i]) else { break };
            for (key, _) in row[first..first + keys].iter().enumerate().filter(|(_, shown)| **shown == 0) {
                seen[key * width + i] = R::ZERO;
            }
        }
        // Lanes past the queries stand at no key, so they are counted as hidden.
        let count: R = seen.chunks_exact(width).map(|row| row.iter().copied().sum::<R>()).sum();
        if count == R::ZERO {
            return Sight::Nothing;
        }
        if count == R::from_usize(keys * queries) {
            return Sight::Everything;
        }
        for (x, &seen) in scores.iter_mut().zip(&*seen) {
            *x = if seen == R::ZERO { R::NEG_INFINITY } else { *x };
        }
        // A hidden key's may be NaN, and gradients of 0 are multiplied with it.
        for (slope, &seen) in room.slope.iter_mut().zip(&*seen) {
            *slope = if seen == R::ZERO { R::ZERO } else { *slope };
        }
        Sight::Something
    }
}

impl<R: Real> Problem<'_, R> {
    /// What dropout multiplies a tile's weights with (keys, width), if there is dropout.
    pub fn kept_in<'k>(&self, area: Area, to: &'k mut [R]) -> Option<&'k [R]> {
        let Area { head: (b, h), queries: (t, queries), keys: (first, keys), width } = area;
        let (dropout, philox) = self.features.as_ref()?.philox()?;
        for i in 0..queries {
            let start = self.element(b, h, t + i) + first as u64;
            let (mut block, mut words) = (start / 4, philox.block(start / 4));
            for key in 0..keys {
                let element = start + key as u64;
                if element / 4 != block {
                    block = element / 4;
                    words = philox.block(block);
                }
                to[key * width + i] = kept(dropout, words[(element % 4) as usize]);
            }
        }
        Some(&to[..keys * width])
    }
}
