//! Validation cases: a covering list of shapes, masks and layouts.

use super::{FeatureMap, LinearAttention};
use crate::case::{Case, CaseGraph};
use crate::error::Result;
use crate::graph::Tensor;

/// B, H, Hk, T, S, Dk, Dv.
type Shape = [usize; 7];

/// A case on normal q, k, v, with key lengths where any are given.
fn case(name: &str, op: LinearAttention, [b, h, hk, t, s, dk, dv]: Shape, lengths: &'static [i32]) -> Case {
    Case::new(format!("{name}, B{b} H{h}/{hk} T{t} S{s} Dk{dk} Dv{dv}"), move |g: &mut CaseGraph| {
        let mut inputs =
            vec![g.normal("q", &[b, h, t, dk]), g.normal("k", &[b, hk, s, dk]), g.normal("v", &[b, hk, s, dv])];
        inputs.extend(key_lengths(g, b, s, lengths));
        g.record(op, &inputs)
    })
}

fn key_lengths(g: &mut CaseGraph, batch: usize, keys: usize, lengths: &[i32]) -> Option<Tensor> {
    (!lengths.is_empty()).then(|| g.ints("key_lengths", &[batch], 0..keys as i64 + 1, lengths.to_vec()))
}

/// Rows of both signs, and every third all negative: with relu, queries and keys whose features are 0.
fn some_negative(g: &mut CaseGraph, name: &str, shape: &[usize]) -> Tensor {
    let mut values = g.draw(shape.iter().product(), 1.0);
    let row = |row: &mut [f64]| row.iter_mut().for_each(|x| *x = -20.0 - x.abs());
    values.chunks_mut(shape[3]).step_by(3).for_each(row);
    g.given(name, shape, values)
}

/// As the registry lists them.
pub(super) fn cases() -> Vec<Case> {
    let full = LinearAttention { causal: false, feature_map: FeatureMap::Elu1 };
    let causal = LinearAttention { causal: true, ..full };
    let relu = |causal: bool| LinearAttention { causal, feature_map: FeatureMap::Relu };
    let mut cases = vec![
        case("one key", full, [2, 1, 1, 1, 1, 1, 1], &[]),
        case("ragged with a 0", full, [2, 2, 2, 37, 63, 37, 2], &[63, 0]),
        case("keys in three segments", full, [2, 2, 1, 200, 300, 4, 5], &[300, 130]),
        case("wide values", full, [1, 1, 1, 37, 63, 80, 128], &[]),
        case("widest keys", full, [1, 1, 1, 63, 37, 256, 16], &[]),
        case("relu", relu(false), [1, 2, 2, 65, 63, 16, 16], &[]),
        case("causal", causal, [1, 2, 2, 63, 63, 64, 64], &[]),
        case("causal, in two segments of two tiles", causal, [1, 2, 1, 140, 140, 64, 16], &[]).in_every_order(),
        case("causal, fewer queries", causal, [2, 2, 1, 65, 200, 16, 37], &[200, 130]),
        case("causal, fewer keys", causal, [1, 2, 2, 127, 65, 8, 16], &[]),
        case("causal, ragged with a 0", causal, [3, 2, 1, 65, 65, 16, 16], &[40, 0, 65]),
        case("causal, wide keys", causal, [1, 1, 1, 65, 70, 128, 64], &[]),
        case("causal, wide values", causal, [1, 1, 1, 65, 37, 37, 80], &[]),
        case("causal, one query", causal, [2, 2, 2, 1, 127, 16, 16], &[127, 3]),
        case("causal, long", causal, [1, 1, 1, 1000, 1000, 16, 16], &[]).large(),
        case("many heads", full, [32_800, 2, 1, 1, 2, 2, 1], &[]).large(),
    ];
    for causal in [false, true] {
        let mask = if causal { "causal" } else { "full" };
        cases.push(Case::new(format!("{mask}, relu with zero denominators"), move |g| {
            let inputs = [
                some_negative(g, "q", &[1, 2, 37, 4]),
                some_negative(g, "k", &[1, 2, 37, 4]),
                g.normal("v", &[1, 2, 37, 8]),
            ];
            g.record(relu(causal), &inputs)
        }));
        cases.push(Case::new(format!("{mask}, packed projection"), move |g| {
            let x = g.normal("x", &[2, 63, 3 * 24]);
            let inputs = [g.heads(x, 0..24, 2)?, g.heads(x, 24..48, 2)?, g.heads(x, 48..72, 2)?];
            g.record(LinearAttention { causal, ..full }, &inputs)
        }));
    }
    cases.push(Case::new("one tensor as q, k and v", move |g| -> Result<Vec<Tensor>> {
        let x = g.normal("x", &[1, 2, 37, 16]);
        g.record(full, &[x, x, x])
    }));
    cases.push(
        Case::new("every order: two tiles of everything", move |g: &mut CaseGraph| {
            let inputs =
                [g.normal("q", &[1, 1, 70, 70]), g.normal("k", &[1, 1, 70, 70]), g.normal("v", &[1, 1, 70, 70])];
            g.record(full, &inputs)
        })
        .in_every_order(),
    );
    cases
}
