//! Validation cases.

mod features;

use super::{Extra, SoftmaxAttention};
use crate::case::{Case, CaseGraph, Data};
use crate::graph::{Graph, Tensor};
use crate::ops::attention::{Shape, attention_case};

/// One covering list: each awkward size, mask and layout at least once, alone and beside others.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = plain_cases();
    cases.extend(HEAD_SIZES.map(both_masks));
    cases.extend(features::cases());
    cases.extend(unordered_cases());
    cases
}

/// What launches the kernels that people time: without features, at four head sizes, with backward in two passes and in
/// one. Causality and lengths are arguments of the same machine code.
pub fn representative() -> Vec<Case> {
    let case = |(dim, unordered)| {
        Case::new(format!("D{dim}, unordered: {unordered}"), move |g| {
            let [q, k, v] = ["q", "k", "v"].map(|name| g.normal(name, &[1, 1, 16, dim]));
            g.record(SoftmaxAttention { unordered, ..Default::default() }, &[q, k, v])
        })
    };
    [16, 64, 128, 256].into_iter().flat_map(|dim| [(dim, false), (dim, true)]).map(case).collect()
}

/// One of each multiple of 16 to which the tensor cores' tiles round up, as far as the other cases have none.
const HEAD_SIZES: [usize; 10] = [24, 90, 112, 129, 150, 176, 190, 200, 224, 240];

/// Full and causal attention on the same heads of one size.
fn both_masks(dim: usize) -> Case {
    Case::new(format!("T33×35 D{dim}, full and causal"), move |g| {
        let [q, k, v] = [("q", 33), ("k", 35), ("v", 35)].map(|(name, rows)| g.normal(name, &[1, 1, rows, dim]));
        let full = g.record(SoftmaxAttention::causal(false), &[q, k, v])?;
        let causal = g.record(SoftmaxAttention::causal(true), &[q, k, v])?;
        Ok([full, causal].concat())
    })
}

/// Gradients in one pass, by tiles: each shape that the tensor cores' tables have, and slices of ordinary arithmetic.
fn unordered_cases() -> Vec<Case> {
    let case = |heads, lengths, dims, causal, key_lengths: &'static [i32]| {
        let record = move |g: &mut Graph, inputs: &[Tensor]| {
            let extras = inputs.get(3).map(|_| Extra::KeyLengths).into_iter().collect();
            g.record(SoftmaxAttention { causal, extras, unordered: true, ..Default::default() }, inputs)
        };
        let mut case = attention_case(Shape { heads, lengths, dims }, causal, key_lengths, record);
        case.name += ", unordered";
        case
    };
    let of_queries = Case::new("unordered, but keys and values are constants", |g| {
        let q = g.normal("q", &[1, 1, 9, 8]);
        let (k, v) = (constant(g, "k", &[1, 1, 7, 8]), constant(g, "v", &[1, 1, 7, 8]));
        g.record(SoftmaxAttention { unordered: true, ..Default::default() }, &[q, k, v])
    });
    let twice = Case::new("unordered, q is also the keys of another", |g| {
        let [x, y] = ["x", "y"].map(|name| g.normal(name, &[1, 2, 37, 16]));
        let op = SoftmaxAttention { unordered: true, ..Default::default() };
        Ok([g.record(op.clone(), &[x, y, y])?, g.record(op, &[y, x, x])?].concat())
    });
    let only_lse = Case::new("unordered, a gradient through lse alone", |g| {
        let [q, k, v] = ["q", "k", "v"].map(|name| g.normal(name, &[1, 2, 70, 16]));
        Ok(vec![g.record(SoftmaxAttention { unordered: true, ..Default::default() }, &[q, k, v])?[1]])
    });
    vec![
        case((1, 2, 1), (65, 130), (16, 16), false, &[]).in_every_order(),
        case((2, 4, 2), (70, 130), (64, 40), true, &[130, 77]).in_every_order(),
        case((1, 1, 1), (70, 66), (100, 128), true, &[]),
        case((1, 1, 1), (40, 70), (200, 37), false, &[]),
        case((1, 1, 1), (33, 66), (256, 256), true, &[]),
        case((1, 1, 1), (33, 66), (300, 260), true, &[50]),
        case((2, 2, 2), (0, 4), (16, 16), false, &[]),
        case((2, 2, 2), (4, 0), (16, 16), false, &[]),
        case((1, 1, 1), (1000, 1000), (64, 64), true, &[]).large(),
        of_queries,
        twice,
        only_lse,
    ]
}

/// Keys and values that a length hides are NaN or infinite, within a tile that is visible in part and in later ones.
fn beyond_lengths(unordered: bool) -> Case {
    Case::new(format!("NaN beyond the lengths, unordered: {unordered}"), move |g| {
        let (keys, dim, lengths) = (70, 16, [37, 0]);
        let q = g.normal("q", &[2, 1, 20, dim]);
        let [k, v] = ["k", "v"].map(|name| {
            let mut values = g.draw(2 * keys * dim, 1.0);
            for (i, x) in values.iter_mut().enumerate() {
                if i / dim % keys >= lengths[i / dim / keys] {
                    *x = [f64::NAN, f64::INFINITY][i % 2];
                }
            }
            g.given(name, &[2, 1, keys, dim], values)
        });
        let lengths = g.ints("key_lengths", &[2], 0..keys as i64 + 1, lengths.map(|n| n as i32).to_vec());
        let op = SoftmaxAttention { unordered, ..Default::default() }.with(Extra::KeyLengths);
        g.record(op, &[q, k, v, lengths])
    })
}

/// An input that needs no gradient, with standard normal values.
fn constant(g: &mut CaseGraph, name: &str, shape: &[usize]) -> Tensor {
    let values = g.draw(shape.iter().product(), 1.0);
    let t = g.input(name, shape);
    g.data.push((t, Data::Real(values)));
    t
}

/// Without features.
fn plain_cases() -> Vec<Case> {
    let case = |heads, lengths, dims, causal, key_lengths: &'static [i32]| {
        let record = move |g: &mut Graph, inputs: &[Tensor]| {
            let extras = inputs.get(3).map(|_| Extra::KeyLengths).into_iter().collect();
            g.record(SoftmaxAttention { causal, extras, ..Default::default() }, inputs)
        };
        attention_case(Shape { heads, lengths, dims }, causal, key_lengths, record)
    };
    let packed = Case::new("packed projections read in place, causal", |g| {
        let qkv = g.normal("qkv", &[2, 37, 3 * 48]);
        let [q, k, v] = [0, 1, 2].map(|i| g.heads(qkv, i * 48..(i + 1) * 48, 3));
        let (q, k, v) = (q?, k?, v?);
        Ok(vec![g.record(SoftmaxAttention::causal(true), &[q, k, v])?[0]])
    });
    let same = Case::new("q = k = v, scale 0.3", |g| {
        let x = g.normal("x", &[1, 2, 37, 16]);
        g.record(SoftmaxAttention { scale: Some(0.3), ..Default::default() }, &[x, x, x])
    });
    let only_lse = Case::new("a gradient through lse alone", |g| {
        let [q, k, v] = ["q", "k", "v"].map(|name| g.normal(name, &[1, 2, 70, 16]));
        Ok(vec![g.record(SoftmaxAttention::causal(true), &[q, k, v])?[1]])
    });
    let large = Case::new("scores of several hundred", |g| {
        let (q, k, v) = (
            g.scaled("q", &[1, 1, 65, 16], 20.0),
            g.scaled("k", &[1, 1, 65, 16], 20.0),
            g.normal("v", &[1, 1, 65, 16]),
        );
        g.record(SoftmaxAttention::causal(true), &[q, k, v])
    });
    vec![
        case((1, 1, 1), (1, 1), (1, 1), false, &[]),
        case((2, 3, 3), (37, 37), (37, 2), false, &[]),
        case((1, 2, 2), (63, 65), (16, 16), true, &[]),
        case((1, 2, 1), (65, 63), (64, 64), true, &[]).in_every_order(),
        case((3, 4, 2), (70, 130), (40, 24), true, &[130, 0, 77]).in_every_order(),
        case((2, 2, 2), (127, 200), (80, 80), false, &[1, 150]),
        case((1, 1, 1), (130, 127), (128, 128), true, &[]),
        case((1, 1, 1), (40, 70), (256, 37), false, &[]),
        case((1, 1, 1), (33, 66), (300, 260), true, &[50]),
        case((2, 6, 2), (5, 1), (8, 8), false, &[1, 0]),
        case((1, 2, 2), (100, 3), (16, 16), true, &[]),
        case((2, 2, 2), (0, 4), (16, 16), false, &[]),
        case((2, 2, 2), (4, 0), (16, 16), false, &[]),
        case((66_000, 1, 1), (2, 2), (1, 1), true, &[]).large().of_indices(),
        case((1, 1, 1), (1000, 1000), (64, 64), true, &[]).large(),
        beyond_lengths(false),
        beyond_lengths(true),
        packed,
        same,
        only_lse,
        large,
    ]
}
