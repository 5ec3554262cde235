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

/// Sums up the state of each unit, over its splits, tile by tile, and then over the splits in order; then visits
/// every split of the unit's other rows with that state.
///
/// Where there are units enough to keep the threads busy, one task does both: its state stays in cache, and no thread
/// waits for the others between.
pub(super) fn sum_then_visit<R: Real>(
    p: &Problem<R>,
    (summed, visited): (usize, usize),
    totals: &mut [R],
    sum_up: impl Fn(usize, Range<usize>, &mut [R], &mut Buffers<R>) + Sync,
    visit: impl Fn(usize, Range<usize>, &[R], &mut Buffers<R>) + Sync,
) {
    let (units, len, threads) = (p.units(), p.state_len(), rayon::current_num_threads());
    let (parts, visits) = (splits(summed), splits(visited));
    let sum_split = |unit: usize, i: usize, sum: &mut [R], buffers: &mut Buffers<R>| {
        sum.fill(R::ZERO);
        tiles(split(summed, i)).for_each(|rows| sum_up(unit, rows, sum, buffers));
    };
    if units.is_multiple_of(threads) || units >= 4 * threads {
        let init = || (Kept::new(p), Aligned::zeros(if parts > 1 { len } else { 0 }));
        return for_chunks(totals, len, init, |(kept, part), unit, total| {
            let buffers = kept.get();
            sum_split(unit, 0, total, buffers);
            for i in 1..parts {
                sum_split(unit, i, part, buffers);
                add(total, part);
            }
            (0..visits).for_each(|i| visit(unit, split(visited, i), total, buffers));
        });
    }
    let mut sums = Aligned::zeros(units * parts * len);
    let init = || Kept::new(p);
    for_chunks(&mut sums, len, init, |kept, task, sum| sum_split(task / parts, task % parts, sum, kept.get()));
    totals.par_chunks_exact_mut(len).zip(sums.par_chunks_exact(parts * len)).for_each(|(total, sums)| {
        total.copy_from_slice(&sums[..len]);
        sums.chunks_exact(len).skip(1).for_each(|part| add(total, part));
    });
    for_tasks(units * visits, init, |kept, task| {
        let unit = task / visits;
        visit(unit, split(visited, task % visits), &totals[unit * len..][..len], kept.get());
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
