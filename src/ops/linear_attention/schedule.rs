//! Who sums what: tasks of linear attention on the CPU.
//!
//! What is summed where depends on the shapes only, never on the number of threads, which merely decides the schedule.

use super::cpu::{Problem, add};
use super::fast::{Buffers, Kept};
use super::rows;
use crate::cpu::Real;
use crate::cpu::lanes::vectorise;
use crate::cpu::scratch::Aligned;
use crate::cpu::tasks::{for_chunks, for_tasks};
use crate::ops::attention::Sizes;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a tile: of a chunk, where there is a mask.
pub(super) const ROWS: usize = 64;
/// Tiles that one task sums up.
const TILES: usize = 16;

/// A range in tiles of at most [`ROWS`].
pub(super) fn tiles(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    rows.clone().step_by(ROWS).map(move |i| i..(i + ROWS).min(rows.end))
}

/// How a unit's rows are split into tasks: [`TILES`] tiles each.
fn splits(rows: usize) -> usize {
    rows.div_ceil(ROWS * TILES).max(1)
}

fn split(rows: usize, i: usize) -> Range<usize> {
    i * ROWS * TILES..((i + 1) * ROWS * TILES).min(rows)
}

/// Calls `work` on every split of every unit's rows.
pub(super) fn for_splits<R: Real>(
    p: &Problem<R>,
    rows: usize,
    work: impl Fn(usize, Range<usize>, &mut Buffers<R>) + Sync,
) {
    let n = splits(rows);
    for_tasks(p.units() * n, || Kept::new(p), |kept, task| work(task / n, split(rows, task % n), kept.get()));
}

/// The state of each unit: sums over its splits, tile by tile, and then over the splits in order.
pub(super) fn sum_splits<R: Real>(
    p: &Problem<R>,
    rows: usize,
    totals: &mut [R],
    work: impl Fn(usize, Range<usize>, &mut [R], &mut Buffers<R>) + Sync,
) {
    let (n, len) = (splits(rows), p.state_len());
    let sum_up = |task: usize, sum: &mut [R], buffers: &mut Buffers<R>| {
        sum.fill(R::ZERO);
        tiles(split(rows, task % n)).for_each(|rows| work(task / n, rows, sum, buffers));
    };
    if n == 1 {
        return for_chunks(totals, len, || Kept::new(p), |kept, task, sum| sum_up(task, sum, kept.get()));
    }
    let mut parts = Aligned::zeros(p.units() * n * len);
    for_chunks(&mut parts, len, || Kept::new(p), |kept, task, sum| sum_up(task, sum, kept.get()));
    totals.par_chunks_exact_mut(len).zip(parts.par_chunks_exact(n * len)).for_each(|(total, parts)| {
        total.copy_from_slice(&parts[..len]);
        parts.chunks_exact(len).skip(1).for_each(|part| add(total, part));
    });
}

/// Chunks of queries and of the keys that the mask pairs with them: query t's last key, t + S − T, lies in the
/// chunk of the same number as t.
pub(super) struct Chunks {
    queries: usize,
    keys: usize,
    /// Chunk 0 of the keys starts this far before the first key.
    pad: i64,
    /// The first query's chunk; negative where there are more queries than keys.
    first: i64,
    range: Range<i64>,
}

impl Chunks {
    pub fn of(s: &Sizes) -> Self {
        let rows = ROWS as i64;
        let offset = s.keys as i64 - s.queries as i64;
        let pad = (-offset).rem_euclid(rows);
        let first = (offset + pad) / rows;
        let end = (s.keys as i64 + pad + rows - 1) / rows;
        Chunks { queries: s.queries, keys: s.keys, pad, first, range: first.min(0)..end }
    }
    /// Whether no chunk follows, so that nobody needs the state after this one.
    pub fn is_last(&self, chunk: i64) -> bool {
        chunk + 1 == self.range.end
    }
    fn clamp(from: i64, size: usize) -> Range<usize> {
        from.clamp(0, size as i64) as usize..(from + ROWS as i64).clamp(0, size as i64) as usize
    }
    /// A chunk's queries.
    pub fn queries(&self, chunk: i64) -> Range<usize> {
        Self::clamp((chunk - self.first) * ROWS as i64, self.queries)
    }
    /// A chunk's keys, of those that the batch has.
    pub fn keys(&self, chunk: i64, length: usize) -> Range<usize> {
        Self::clamp(chunk * ROWS as i64 - self.pad, length.min(self.keys))
    }
}

/// Visits every chunk of every unit with the state before it (in `reverse`: after it): the sum of whole segments,
/// plus the running sum within the segment, to which the visit adds its own chunk. `sum_up` adds a chunk and nothing else: where there are more
/// threads than units, it runs first over all segments, so that they can be visited at the same time.
pub(super) fn scan<R: Real>(
    p: &Problem<R>,
    chunks: &Chunks,
    reverse: bool,
    sum_up: impl Fn(usize, i64, &mut [R], &mut Buffers<R>) + Sync,
    visit: impl Fn(usize, i64, Option<&[R]>, &mut [R], &mut Buffers<R>) + Sync,
) {
    let (len, units) = (p.state_len(), p.units());
    let count = (chunks.range.end - chunks.range.start) as usize;
    let segments = count.div_ceil(TILES);
    // The i-th chunk to be visited.
    let chunk = |i: usize| {
        if reverse { chunks.range.end - 1 - i as i64 } else { chunks.range.start + i as i64 }
    };
    let of_segment = |segment: usize| segment * TILES..((segment + 1) * TILES).min(count);
    let visit_segment = |unit: usize, segment: usize, base: &[R], sum: &mut [R], buffers: &mut Buffers<R>| {
        sum.fill(R::ZERO);
        for i in of_segment(segment) {
            let mut state = std::mem::take(&mut buffers.state);
            vectorise(rows::Add { to: &mut state, a: base, b: sum });
            visit(unit, chunk(i), (i > 0).then_some(&state[..]), sum, buffers);
            buffers.state = state;
        }
    };
    if segments > 1 && rayon::current_num_threads() > units {
        let mut parts = Aligned::zeros(units * segments * len);
        for_chunks(
            &mut parts,
            len,
            || Kept::new(p),
            |kept, task, sum| {
                of_segment(task % segments).for_each(|i| sum_up(task / segments, chunk(i), sum, kept.get()));
            },
        );
        // From each segment's sum to the sum of those before it.
        parts.par_chunks_exact_mut(segments * len).for_each(|parts| {
            let mut base = Aligned::zeros(len);
            for part in parts.chunks_exact_mut(len) {
                part.iter_mut().zip(base.iter_mut()).for_each(|(part, base)| {
                    let sum = *part;
                    *part = *base;
                    *base += sum;
                });
            }
        });
        for_tasks(
            units * segments,
            || (Kept::new(p), Aligned::zeros(len)),
            |(kept, sum), task| {
                let base = &parts[task * len..][..len];
                visit_segment(task / segments, task % segments, base, sum, kept.get());
            },
        );
    } else {
        for_tasks(
            units,
            || (Kept::new(p), Aligned::zeros(len), Aligned::zeros(len)),
            |(kept, base, sum), unit| {
                base.fill(R::ZERO);
                for segment in 0..segments {
                    visit_segment(unit, segment, base, sum, kept.get());
                    add(base, sum);
                }
            },
        );
    }
}
