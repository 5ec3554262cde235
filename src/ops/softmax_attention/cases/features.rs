//! Each feature alone, then beside others, with rows that see nothing for each reason there is.

use super::{Extra, SoftmaxAttention};
use crate::case::{Case, CaseGraph, Data};
use crate::error::Result;
use crate::graph::Tensor;
use crate::ops::dropout::Dropout as DropoutOp;

/// What a case has beyond plain attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Feature {
    Causal,
    /// (S/5, 3), or (S/5, 0) where causal.
    Window,
    /// At 1.5, where standard normal scores feel it.
    Softcap,
    Alibi,
    /// p 0.3.
    Dropout,
    /// Two thirds of the keys, none, then a third, batch by batch.
    KeyLengths,
    /// Four, one without queries and one without keys.
    Sequences,
    /// About a third hidden; where it has rows, the second hides all.
    Mask,
    /// About a tenth −∞; where it has rows, the third is −∞ throughout.
    Bias,
    Weights,
    /// Two query heads to a key/value head.
    Grouped,
    Splits,
    /// Backward in one pass.
    Unordered,
}
use Feature::*;

/// Sizes of a case, and along which axes (batch, head, query) mask and bias are broadcast.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    lengths: (usize, usize),
    dims: (usize, usize),
    broadcast: [bool; 3],
}

fn sizes(batch: usize, heads: usize, lengths: (usize, usize), dims: (usize, usize), broadcast: [bool; 3]) -> Sizes {
    Sizes { batch, heads, lengths, dims, broadcast }
}

/// What a case has, its T and S, its Dk and Dv.
type Row = (&'static [Feature], (usize, usize), (usize, usize));

/// Every pair of features: both, either alone and neither (but packed sequences have no key lengths).
const COVERING: &[Row] = &[
    (&[Causal, Window, Softcap, Alibi, Dropout, Sequences, Mask, Bias, Weights, Grouped, Splits], (70, 129), (16, 9)),
    (&[Causal, Window, Softcap, Alibi, Dropout, KeyLengths, Weights], (67, 131), (5, 16)),
    (&[KeyLengths, Mask, Bias, Grouped, Splits], (65, 71), (24, 8)),
    (&[Causal, Alibi, Sequences, Grouped, Splits], (130, 67), (8, 17)),
    (&[Window, Dropout, Sequences, Bias, Weights], (97, 101), (16, 16)),
    (&[Softcap, Alibi, Sequences, Mask, Bias, Weights], (39, 75), (33, 7)),
    (&[Causal, Softcap, Dropout, Sequences, Mask, Splits], (66, 130), (8, 8)),
    (&[Causal, Window, Softcap, Mask, Grouped], (129, 66), (16, 40)),
    (
        &[Causal, Window, Softcap, Alibi, Dropout, Sequences, Mask, Bias, Weights, Grouped, Splits, Unordered],
        (67, 131),
        (48, 33),
    ),
    (&[KeyLengths, Mask, Bias, Grouped, Unordered], (66, 71), (129, 80)),
    (&[Causal, Window, Softcap, Dropout, KeyLengths, Unordered], (71, 70), (16, 72)),
];

pub(super) fn cases() -> Vec<Case> {
    let (small, wide) = ((13, 17), (67, 131));
    let mut cases = Vec::new();
    for alone in [Window, Softcap, Alibi, Dropout, KeyLengths, Sequences, Mask, Bias, Weights, Splits, Unordered] {
        let batch = if alone == Sequences { 1 } else { 2 };
        // Few enough elements for finite differences, and enough for several tiles.
        cases.push(case(&[alone], sizes(batch, 2, small, (5, 3), [true, false, false])));
        cases.push(case(&[alone], sizes(1, 2, wide, (16, 8), [false, true, false])));
    }
    // More queries than keys: those before the first key see nothing.
    cases.push(case(&[Window], sizes(1, 1, (71, 30), (8, 8), [false; 3])));
    cases.push(case(&[Causal, Sequences], sizes(1, 1, (71, 30), (8, 8), [false; 3])));
    // One mask and bias for all queries, for all heads, for everything; and an own one for each.
    for broadcast in [[false, true, true], [true, false, true], [true; 3], [false; 3]] {
        cases.push(case(&[Mask, Bias], sizes(2, 2, (9, 14), (4, 4), broadcast)));
    }
    cases.push(case(&[Bias], sizes(3, 2, (66, 70), (8, 8), [true, true, true])));
    cases.push(case(&[Bias, Mask, Dropout], sizes(2, 2, (0, 7), (4, 4), [false; 3])));
    cases.push(case(&[Bias, Mask, Weights], sizes(2, 2, (7, 0), (4, 4), [true; 3])));
    // One query against many keys, as in decoding.
    cases.push(case(&[Causal, KeyLengths, Grouped, Splits], sizes(2, 4, (1, 300), (16, 16), [true; 3])));
    for (i, &(features, lengths, dims)) in COVERING.iter().enumerate() {
        let batch = if features.contains(&Sequences) { 1 } else { 2 };
        let broadcast = [i % 2 == 0, i % 3 == 0, i % 4 == 2];
        cases.push(case(features, sizes(batch, 2, lengths, dims, broadcast)));
    }
    cases.push(Case::new("a bias that is computed, one for two attentions", shared_bias));
    cases
}

fn case(features: &[Feature], sizes: Sizes) -> Case {
    let Sizes { batch, heads, lengths: (t, s), dims: (dk, dv), broadcast } = sizes;
    let names: Vec<String> = features.iter().map(|f| format!("{f:?}").to_lowercase()).collect();
    let mut name = format!("{}: B{batch} H{heads} T{t}×{s} D{dk}×{dv}", names.join(" "));
    if features.contains(&Mask) || features.contains(&Bias) {
        let axes: Vec<&str> = ["B", "H", "T"].into_iter().zip(broadcast).filter(|(_, b)| *b).map(|(n, _)| n).collect();
        name += &format!(" broadcast {}", if axes.is_empty() { "nowhere".into() } else { axes.concat() });
    }
    let features = features.to_vec();
    Case::new(name, move |g| record(g, &features, sizes))
}

fn record(g: &mut CaseGraph, features: &[Feature], sizes: Sizes) -> Result<Vec<Tensor>> {
    let Sizes { batch, heads, lengths: (t, s), dims: (dk, dv), broadcast } = sizes;
    let has = |feature: Feature| features.contains(&feature);
    let kv_heads = if has(Grouped) { heads / 2 } else { heads };
    let mut inputs = vec![
        g.normal("q", &[batch, heads, t, dk]),
        g.normal("k", &[batch, kv_heads, s, dk]),
        g.normal("v", &[batch, kv_heads, s, dv]),
    ];
    let mut op = SoftmaxAttention {
        causal: has(Causal),
        window: has(Window).then_some((s / 5, if has(Causal) { 0 } else { 3 })),
        softcap: has(Softcap).then_some(1.5),
        dropout: has(Dropout).then_some(DropoutOp { p: 0.3, stream: 7 }),
        weights: has(Weights),
        splits: has(Splits).then_some(3),
        unordered: has(Unordered),
        ..Default::default()
    };
    let full = [batch, heads, t];
    let rows = [0, 1, 2].map(|axis| if broadcast[axis] { 1 } else { full[axis] });
    let shape = [rows[0], rows[1], rows[2], s];
    let whole_row = |row: usize| move |i: usize| rows[2] > 1 && i / s.max(1) % rows[2] == row;
    let mut give = |extra: Extra, t: Tensor| {
        op.extras.push(extra);
        inputs.push(t);
    };
    if has(KeyLengths) {
        let lengths = (0..batch).map(|b| [s * 2 / 3, 0, s / 3][b % 3] as i32).collect();
        give(Extra::KeyLengths, g.ints("key_lengths", &[batch], 0..s as i64 + 1, lengths));
    }
    if has(Sequences) {
        let bounds = |all: usize, parts: [usize; 3]| [0, parts[0], parts[1], parts[2], all].map(|x| x as i32).to_vec();
        let of_q = bounds(t, [t / 3, t / 3, t * 2 / 3 + 1]);
        let of_k = bounds(s, [s / 4, s / 2, s / 2]);
        give(Extra::CuSeqlensQ, g.ints("cu_seqlens_q", &[5], 0..t as i64 + 1, of_q));
        give(Extra::CuSeqlensK, g.ints("cu_seqlens_k", &[5], 0..s as i64 + 1, of_k));
    }
    if has(Mask) {
        let drawn = g.draw(shape.iter().product(), 1.0);
        let hidden = whole_row(1);
        let mask = drawn.iter().enumerate().map(|(i, &x)| (x > -0.4 && !hidden(i)) as i32 * 3).collect();
        give(Extra::Mask, g.ints("mask", &shape, 0..4, mask));
    }
    if has(Bias) {
        let mut bias = g.draw(shape.iter().product(), 1.0);
        let hidden = whole_row(2);
        for (_, x) in bias.iter_mut().enumerate().filter(|(i, x)| hidden(*i) || **x < -1.3) {
            *x = f64::NEG_INFINITY;
        }
        give(Extra::Bias, g.given("bias", &shape, bias));
    }
    if has(Alibi) {
        // Slopes that 16 bits cannot hold.
        let slopes = (1..=heads).map(|h| (0.7 * 2f64.powf(-8.0 * h as f64 / heads as f64)) as f32 as f64).collect();
        let constant = g.full_input("alibi_slopes", &[heads]);
        g.data.push((constant, Data::Real(slopes)));
        give(Extra::AlibiSlopes, constant);
    }
    if has(Dropout) {
        let any = i32::MIN as i64..i32::MAX as i64 + 1;
        give(Extra::Rng, g.ints("rng", &[3], any, vec![5, -9, 3]));
    }
    g.record(op, &inputs)
}

/// The bias's gradient is added to one that is there already.
fn shared_bias(g: &mut CaseGraph) -> Result<Vec<Tensor>> {
    let [q, k, v] = ["q", "k", "v"].map(|name| g.normal(name, &[1, 2, 20, 4]));
    let bias = g.normal("bias", &[1, 1, 20, 20]);
    let op = SoftmaxAttention::causal(true).with(Extra::Bias);
    let mut outputs = g.record(op.clone(), &[q, k, v, bias])?;
    outputs.extend(g.record(op, &[k, q, v, bias])?);
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Feature; 13] = [
        Causal, Window, Softcap, Alibi, Dropout, KeyLengths, Sequences, Mask, Bias, Weights, Grouped, Splits, Unordered,
    ];

    #[test]
    fn every_pair_of_features_is_covered() {
        for (i, a) in ALL.iter().enumerate() {
            for b in &ALL[i + 1..] {
                for (has_a, has_b) in [(true, true), (true, false), (false, true)] {
                    let contradiction = has_a && has_b && [*a, *b] == [KeyLengths, Sequences];
                    let covered = COVERING.iter().any(|(f, ..)| f.contains(a) == has_a && f.contains(b) == has_b);
                    assert_eq!(covered, !contradiction, "{a:?} {has_a}, {b:?} {has_b}");
                }
            }
        }
    }
}
