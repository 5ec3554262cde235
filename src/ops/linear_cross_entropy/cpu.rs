//! The fused head on the CPU.
//!
//! Rows whose target is ignored are left out from the start. Of the others, a *block* of [`BLOCK`] meets a *tile* of
//! [`TILE`] classes at a time: their logits, TILE×BLOCK numbers with the classes along the rows, stay in the first
//! cache. Laid out like this, maxima and sums over the classes are sums of vectors, and all three products of backward
//! read their operands as they lie.
//!
//! A task is a *group* of rows with a *part* of the classes. Tasks leave sums of their own (of exponentials; of the
//! gradient of their rows; with several groups, of the gradient of their classes), which are added in order. How the work
//! is divided depends on sizes alone, so results are the same bits whatever the threads. What tasks leave is bounded: 16
//! tasks at a time, of 1,024 rows at most; the gradient of the classes is written directly where parts suffice as tasks.

use super::LinearCrossEntropy;
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::product::Product;
use crate::cpu::scratch::with_scratch;
use crate::cpu::{Real, Rows};
use crate::op::*;
use crate::ops::cross_entropy::lse;
use crate::ops::rows::add_to;
use rayon::prelude::*;

/// Classes whose logits are held at once.
const TILE: usize = 128;
/// Rows whose logits are held at once: four AVX-512 vectors, a strip of the product.
const BLOCK: usize = 64;
/// Tasks at a time.
const TASKS: usize = 16;
/// Rows of a task at most.
const LARGEST_GROUP: usize = 1024;
/// What rows and columns are padded to: whole vectors of every instruction set.
const PADDING: usize = 16;

/// How rows and classes are divided into tasks.
#[derive(Debug, Clone, Copy)]
struct Division {
    /// Rows of a group.
    group: usize,
    /// Groups at a time.
    groups: usize,
    /// Classes of a part, whole tiles.
    part: usize,
    /// Parts of all classes.
    parts: usize,
}

impl Division {
    fn of(rows: usize, classes: usize) -> Division {
        let tiles = classes.div_ceil(TILE);
        let part = tiles.div_ceil((tiles / 4).clamp(1, TASKS)) * TILE;
        let parts = classes.div_ceil(part);
        let groups = TASKS / parts;
        let group = rows.div_ceil(groups).next_multiple_of(BLOCK).clamp(BLOCK, LARGEST_GROUP);
        Division { group, groups, part, parts }
    }
}

/// The rows of a group, packed.
struct Group<R> {
    /// Their number, padded.
    rows: usize,
    /// Hidden (rows, padded columns).
    hidden: Vec<R>,
    /// Its transpose (columns, rows).
    transposed: Vec<R>,
    targets: Vec<usize>,
    /// In backward.
    lse: Vec<R>,
}

/// What both passes read.
#[derive(Clone, Copy)]
struct Head<'a, R> {
    hidden: &'a [R],
    weight: &'a [R],
    columns: usize,
    targets: &'a [i32],
}

impl<'a, R: Real> Head<'a, R> {
    fn of(inputs: &[Input<'a, R>]) -> Head<'a, R> {
        let weight = inputs[1].real();
        let (hidden, targets, columns) = (inputs[0].all(), inputs[2].ints(), weight.shape[1]);
        Head { hidden, weight: weight.contiguous(), columns, targets }
    }

    /// A row's logits, straight from the formula.
    fn logits(&self, row: usize) -> Vec<R> {
        let x = &self.hidden[row * self.columns..][..self.columns];
        let logit = |w: &[R]| x.iter().zip(w).map(|(&x, &w)| x * w).sum();
        self.weight.chunks_exact(self.columns).map(logit).collect()
    }

    fn parts(&self, division: Division) -> impl Iterator<Item = Classes<'a, R>> + use<'a, R> {
        let columns = self.columns;
        let parts = self.weight.chunks(division.part * columns).enumerate();
        parts.map(move |(i, weight)| Classes { weight, columns, first: i * division.part })
    }

    fn classes(&self) -> usize {
        self.weight.len() / self.columns
    }

    fn pack(&self, rows: &[usize], lse: Option<&[R]>) -> Group<R> {
        let (columns, padded, n) = (self.columns, columns_padded(self.columns), rows.len().next_multiple_of(PADDING));
        let mut hidden = vec![R::ZERO; n * padded];
        let mut transposed = vec![R::ZERO; columns * n];
        for (i, &row) in rows.iter().enumerate() {
            let x = &self.hidden[row * columns..][..columns];
            hidden[i * padded..][..columns].copy_from_slice(x);
            x.iter().enumerate().for_each(|(c, &x)| transposed[c * n + i] = x);
        }
        let mut lse: Vec<R> = lse.map_or(vec![], |lse| rows.iter().map(|&row| lse[row]).collect());
        lse.resize(n, R::ZERO);
        let targets = rows.iter().map(|&row| self.targets[row] as usize).collect();
        Group { rows: n, hidden, transposed, targets, lse }
    }
}

/// The classes of a task.
#[derive(Clone, Copy)]
struct Classes<'a, R> {
    /// Their weights (classes, columns).
    weight: &'a [R],
    columns: usize,
    /// The first one.
    first: usize,
}

impl<'a, R: Real> Classes<'a, R> {
    /// The tiles: how many classes stand before each one, and its weights.
    fn tiles(self) -> impl Iterator<Item = (usize, &'a [R])> {
        self.weight.chunks(TILE * self.columns).enumerate().map(|(i, w)| (i * TILE, w))
    }

    /// Logits (classes, BLOCK) of a tile and the block of rows from `first` on.
    #[inline(always)]
    fn logits<S: Simd<R>>(&self, s: S, weight: &[R], group: &Group<R>, first: usize, to: &mut [R]) {
        let columns = BLOCK.min(group.rows - first);
        s.call(Product {
            m: weight.len() / self.columns,
            k: self.columns,
            columns,
            a: weight,
            a_strides: (self.columns, 1),
            b: &group.transposed[first..],
            b_row: group.rows,
            c: Rows::of(to, BLOCK, columns),
            add: false,
        });
    }

    /// Which rows of the block from `first` on have their target in a tile that begins after `before` classes: the row
    /// within the block, and the class within the tile.
    fn targets<'b>(
        &self,
        before: usize,
        group: &'b Group<R>,
        first: usize,
    ) -> impl Iterator<Item = (usize, usize)> + use<'b, R> {
        let (start, targets) = (self.first + before, &group.targets[first.min(group.targets.len())..]);
        let in_tile = move |(row, &target): (usize, &usize)| Some((row, target.checked_sub(start)?));
        targets.iter().take(BLOCK).enumerate().filter_map(in_tile).filter(|(_, class)| *class < TILE)
    }
}

/// Of each row and a part of the classes: the largest logit, Σ exp(logit − largest), and the target's logit or 0.
struct Statistics<R> {
    largest: Vec<R>,
    sum: Vec<R>,
    target: Vec<R>,
}

struct ForwardTask<'a, R> {
    group: &'a Group<R>,
    classes: Classes<'a, R>,
    /// TILE×BLOCK numbers to work in.
    logits: &'a mut [R],
}

/// Takes the logits of N vectors of rows, from column `at` of the tile on, into their statistics.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Over several, iterators read worse.
fn gather<R: Real, S: Simd<R>, const N: usize>(s: S, logits: &[R], at: usize, largest: &mut [R], sum: &mut [R]) {
    let zero = s.splat(R::ZERO);
    let (mut before, mut high, mut sums) = ([zero; N], [zero; N], [zero; N]);
    for j in 0..N {
        before[j] = s.load(&largest[j * S::LANES..]);
        high[j] = before[j];
    }
    for row in logits.chunks_exact(BLOCK) {
        for j in 0..N {
            // A NaN is dropped here, not by the sum.
            high[j] = s.max(s.load(&row[at + j * S::LANES..]), high[j]);
        }
    }
    for j in 0..N {
        sums[j] = s.load(&sum[j * S::LANES..]) * s.exp_small(before[j] - high[j]);
    }
    for row in logits.chunks_exact(BLOCK) {
        for j in 0..N {
            sums[j] = sums[j] + s.exp_small(s.load(&row[at + j * S::LANES..]) - high[j]);
        }
    }
    for j in 0..N {
        s.store(high[j], &mut largest[j * S::LANES..]);
        s.store(sums[j], &mut sum[j * S::LANES..]);
    }
}

impl<R: Real> Kernel<R> for ForwardTask<'_, R> {
    type Output = Statistics<R>;

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) -> Statistics<R> {
        let ForwardTask { group, classes, logits } = self;
        // Finite, so that logits of −∞ alone give 0 as a sum and no NaN.
        let (mut largest, mut sum) = (vec![R::from_f64(-3e38); group.rows], vec![R::ZERO; group.rows]);
        let mut target = vec![R::ZERO; group.rows];
        for (before, weight) in classes.tiles() {
            let logits = &mut logits[..weight.len() / classes.columns * BLOCK];
            for first in (0..group.rows).step_by(BLOCK) {
                classes.logits(s, weight, group, first, logits);
                let (mut at, end) = (0, BLOCK.min(group.rows - first));
                while at < end {
                    let (largest, sum) = (&mut largest[first + at..], &mut sum[first + at..]);
                    if end - at >= 4 * S::LANES {
                        gather::<R, S, 4>(s, logits, at, largest, sum);
                        at += 4 * S::LANES;
                    } else {
                        gather::<R, S, 1>(s, logits, at, largest, sum);
                        at += S::LANES;
                    }
                }
                for (row, class) in classes.targets(before, group, first) {
                    target[first + row] = logits[class * BLOCK + row];
                }
            }
        }
        Statistics { largest, sum, target }
    }
}

struct BackwardTask<'a, R> {
    group: &'a Group<R>,
    classes: Classes<'a, R>,
    /// dloss / number of targets that count.
    scale: R,
    /// Whether hidden needs a gradient.
    wants_hidden: bool,
    /// The gradient of the classes' weights, if it is needed, and whether to add to what is there.
    d_weight: Option<(&'a mut [R], bool)>,
    /// TILE×BLOCK numbers to work in; and, where the columns are no whole vectors, twice TILE rows of padded columns.
    scratch: [&'a mut [R]; 3],
}

/// logits ← softmax(logits)·scale, for a block's rows.
#[inline(always)]
fn probabilities<R: Real, S: Simd<R>>(s: S, logits: &mut [R], lse: &[R], scale: R) {
    let scale = s.splat(scale);
    for row in logits.chunks_exact_mut(BLOCK) {
        for (x, lse) in row.chunks_exact_mut(S::LANES).zip(lse.chunks_exact(S::LANES)) {
            s.store(s.exp_small(s.load(x) - s.load(lse)) * scale, x);
        }
    }
}

impl<R: Real> Kernel<R> for BackwardTask<'_, R> {
    /// The gradient of hidden (rows, padded columns); empty if it is not needed.
    type Output = Vec<R>;

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) -> Vec<R> {
        let BackwardTask { group, classes, scale, wants_hidden, mut d_weight, scratch } = self;
        let [logits, weight_copy, d_copy] = scratch;
        let (columns, padded) = (classes.columns, columns_padded(classes.columns));
        let mut d_hidden = vec![R::ZERO; if wants_hidden { group.rows * padded } else { 0 }];
        // Rows of the products below are whole vectors: weights of other widths, and their gradients, go by way of copies.
        let copied = columns != padded;
        weight_copy.fill(R::ZERO);
        for (before, weight) in classes.tiles() {
            let count = weight.len() / columns;
            let logits = &mut logits[..count * BLOCK];
            for (to, from) in weight_copy.chunks_exact_mut(padded).zip(weight.chunks_exact(columns)) {
                to[..columns].copy_from_slice(from);
            }
            let rows_of_weight: &[R] = if copied { weight_copy } else { weight };
            for first in (0..group.rows).step_by(BLOCK) {
                let block = BLOCK.min(group.rows - first);
                classes.logits(s, weight, group, first, logits);
                probabilities(s, logits, &group.lse[first..first + block], scale);
                for (row, class) in classes.targets(before, group, first) {
                    logits[class * BLOCK + row] -= scale;
                }
                if wants_hidden {
                    s.call(Product {
                        m: block,
                        k: count,
                        columns: padded,
                        a: logits,
                        a_strides: (1, BLOCK),
                        b: rows_of_weight,
                        b_row: padded,
                        c: Rows::of(&mut d_hidden[first * padded..], padded, padded),
                        add: before > 0,
                    });
                }
                let Some((d_weight, add)) = &mut d_weight else { continue };
                let d_tile = &mut d_weight[before * columns..][..count * columns];
                s.call(Product {
                    m: count,
                    k: block,
                    columns: padded,
                    a: logits,
                    a_strides: (BLOCK, 1),
                    b: &group.hidden[first * padded..],
                    b_row: padded,
                    c: Rows::of(if copied { &mut *d_copy } else { &mut *d_tile }, padded, padded),
                    add: first > 0 || *add && !copied,
                });
                if copied && first + block == group.rows {
                    for (to, from) in d_tile.chunks_exact_mut(columns).zip(d_copy.chunks_exact(padded)) {
                        add_to(to, &from[..columns], *add);
                    }
                }
            }
        }
        d_hidden
    }
}

fn columns_padded(columns: usize) -> usize {
    columns.next_multiple_of(PADDING)
}

impl LinearCrossEntropy {
    /// The rows whose targets count.
    fn counted(&self, targets: &[i32]) -> Vec<usize> {
        (0..targets.len()).filter(|&row| targets[row] != self.ignore).collect()
    }
}

impl<R: Real> CpuOp<R> for LinearCrossEntropy {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let head = Head::of(&io.inputs);
        let counted = self.counted(head.targets);
        let lses = io.saved[0].contiguous();
        let token_losses = io.outputs[1].contiguous();
        lses.fill(R::ZERO);
        token_losses.fill(R::ZERO);
        if mode == Mode::Definition {
            for &row in &counted {
                let logits = head.logits(row);
                lses[row] = lse(&logits, mode);
                token_losses[row] = lses[row] - logits[head.targets[row] as usize];
            }
        } else {
            forward(&head, &counted, lses, token_losses);
        }
        // In f64, as one term after another f32 would lose a digit over a few thousand targets.
        let total: f64 = token_losses.iter().map(|x| x.to_f64()).sum();
        let count = counted.len();
        io.outputs[0].fill(if count > 0 { R::from_f64(total / count as f64) } else { R::ZERO });
        io.saved[1].fill(R::from_usize(count));
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, mode: Mode) {
        let Some(d_loss) = &io.d_outputs[0] else { return };
        let head = Head::of(&io.inputs);
        let counted = self.counted(head.targets);
        // Used only where a target counts, so that the count is not 0.
        let scale = d_loss.all()[0] / io.saved[1].all()[0];
        let lses = io.saved[0].all();
        let [d_hidden, d_weight, _] = &mut io.d_inputs[..] else { unreachable!("three inputs") };
        let d_hidden = d_hidden.take().map(Gradient::added);
        if mode == Mode::Fast {
            let d_weight = d_weight.as_mut().map(|d| (d.to.contiguous(), d.accumulate));
            return backward(&head, &counted, lses, scale, d_hidden, d_weight);
        }
        let (mut d_hidden, mut d_weight) = (d_hidden, d_weight.take().map(Gradient::added));
        let columns = head.columns;
        for &row in &counted {
            let at = row * columns..(row + 1) * columns;
            for (class, logit) in head.logits(row).into_iter().enumerate() {
                let one = if class as i32 == head.targets[row] { R::ONE } else { R::ZERO };
                let d = ((logit - lses[row]).exp() - one) * scale;
                let of_class = class * columns..(class + 1) * columns;
                if let Some(to) = &mut d_hidden {
                    to[at.clone()].iter_mut().zip(&head.weight[of_class.clone()]).for_each(|(to, &w)| *to += d * w);
                }
                if let Some(to) = &mut d_weight {
                    to[of_class].iter_mut().zip(&head.hidden[at.clone()]).for_each(|(to, &x)| *to += d * x);
                }
            }
        }
    }
}

/// lse and loss of each row that counts.
fn forward<R: Real>(head: &Head<R>, counted: &[usize], lses: &mut [R], token_losses: &mut [R]) {
    let division = Division::of(counted.len(), head.classes());
    for rows in counted.chunks(division.group * division.groups) {
        let groups: Vec<Group<R>> = rows.par_chunks(division.group).map(|rows| head.pack(rows, None)).collect();
        let tasks = groups.iter().flat_map(|group| head.parts(division).map(move |classes| (group, classes)));
        let tasks: Vec<_> = tasks.collect();
        let statistics: Vec<Statistics<R>> = (tasks.into_par_iter().with_max_len(1))
            .map(|(group, classes)| {
                with_scratch([TILE * BLOCK], |[logits]| vectorise(ForwardTask { group, classes, logits }))
            })
            .collect();
        for (rows, parts) in rows.chunks(division.group).zip(statistics.chunks(division.parts)) {
            for (i, &row) in rows.iter().enumerate() {
                let largest = parts.iter().map(|p| p.largest[i]).fold(parts[0].largest[i], R::maximum);
                let sum = parts.iter().map(|p| p.sum[i] * (p.largest[i] - largest).exp()).sum::<R>();
                lses[row] = largest + sum.ln();
                token_losses[row] = lses[row] - parts.iter().map(|p| p.target[i]).sum::<R>();
            }
        }
    }
}

/// d_hidden += …; d_weight as it is told.
fn backward<R: Real>(
    head: &Head<R>,
    counted: &[usize],
    lses: &[R],
    scale: R,
    mut d_hidden: Option<&mut [R]>,
    mut d_weight: Option<(&mut [R], bool)>,
) {
    let division = Division::of(counted.len(), head.classes());
    if counted.is_empty()
        && let Some((d_weight, false)) = &mut d_weight
    {
        d_weight.fill(R::ZERO);
    }
    let (columns, padded, wants_hidden) = (head.columns, columns_padded(head.columns), d_hidden.is_some());
    let copied = if columns == padded { 0 } else { TILE * padded };
    let mut partial = vec![R::ZERO; if division.groups > 1 { division.groups * head.weight.len() } else { 0 }];
    for rows in counted.chunks(division.group * division.groups) {
        let groups: Vec<Group<R>> = rows.par_chunks(division.group).map(|rows| head.pack(rows, Some(lses))).collect();
        // With one group a time, its tasks write the weight's gradient; otherwise each group has a sum of its own.
        let mut to: Vec<Option<(&mut [R], bool)>> = match &mut d_weight {
            None => (0..groups.len() * division.parts).map(|_| None).collect(),
            Some((all, add)) if division.groups == 1 => {
                all.chunks_mut(division.part * columns).map(|part| Some((part, *add))).collect()
            }
            Some(_) => (partial.chunks_mut(head.weight.len()).take(groups.len()))
                .flat_map(|sum| sum.chunks_mut(division.part * columns).map(|part| Some((part, false))))
                .collect(),
        };
        let tasks = groups.iter().flat_map(|group| head.parts(division).map(move |classes| (group, classes)));
        let tasks: Vec<_> = tasks.zip(to.drain(..)).collect();
        let sums: Vec<Vec<R>> = (tasks.into_par_iter().with_max_len(1))
            .map(|((group, classes), d_weight)| {
                with_scratch([TILE * BLOCK, copied, copied], |scratch| {
                    vectorise(BackwardTask { group, classes, scale, wants_hidden, d_weight, scratch })
                })
            })
            .collect();
        drop(to);
        if let Some(d_hidden) = &mut d_hidden {
            for (rows, parts) in rows.chunks(division.group).zip(sums.chunks(division.parts)) {
                for (i, &row) in rows.iter().enumerate() {
                    let to = &mut d_hidden[row * columns..][..columns];
                    parts.iter().for_each(|part| add_to(to, &part[i * padded..][..columns], true));
                }
            }
        }
        if let Some((all, add)) = &mut d_weight {
            if division.groups > 1 {
                for (group, sum) in partial.chunks(head.weight.len()).take(groups.len()).enumerate() {
                    add_to(all, sum, *add || group > 0);
                }
            }
            *add = true;
        }
    }
}
