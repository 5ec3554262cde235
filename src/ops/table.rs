//! What ops share that gather rows of a table by the tokens (B,T) of sequences with lengths (B).
//!
//! Tokens past a sequence's length are not looked at: padding costs nothing and has no gradient.

use crate::cpu::{Mut, Real};
use crate::error::{Error, Result};
use crate::op::{Gradient, Kind, Spec};
use crate::ops::rows::{expect, wide};
use rayon::prelude::*;

/// Sizes of such an op.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Sequences.
    pub batch: usize,
    /// Places of each, padding included.
    pub length: usize,
    /// Columns of the table.
    pub columns: usize,
}

/// Checks tokens int (B,T), lengths int (B) and a table real (V,C).
///
/// # Errors
/// Naming the argument.
pub(crate) fn sizes(op: &str, [tokens, lengths, table]: [&Spec; 3]) -> Result<Sizes> {
    let (Kind::Int, [batch, length]) = (tokens.kind, &tokens.shape[..]) else {
        return Err(Error::shape(op, "tokens", "int (B, T)", tokens.to_string()));
    };
    expect(op, "lengths", lengths, Spec::int([*batch]))?;
    match table.shape[..] {
        [rows, columns] if table.kind == Kind::Real && rows > 0 && columns > 0 => {
            Ok(Sizes { batch: *batch, length: *length, columns })
        }
        _ => Err(Error::shape(op, "table", "real (V, C) with at least one row and column", table.to_string())),
    }
}

/// How many of `length` places are a sequence's.
#[inline(always)]
pub(crate) fn valid(length_of: i32, length: usize) -> usize {
    (length_of.max(0) as usize).min(length)
}

/// Elements of a table that a thread takes at a time.
const PART: usize = 1 << 18;

/// Adds to a table's gradient: `add(b, t, row)` for each token before its sequence's length, in their order, whatever the
/// threads: each takes a part of the table.
pub(crate) fn add_rows<R: Real>(
    d: Gradient<Mut<R>>,
    s: Sizes,
    (tokens, lengths): (&[i32], &[i32]),
    add: impl Fn(usize, usize, &mut [R]) + Sync,
) {
    let Gradient { mut to, accumulate } = d;
    let rows = (PART / s.columns).max(1);
    to.contiguous().par_chunks_mut(rows * s.columns).enumerate().for_each(|(part, d)| {
        if !accumulate {
            d.fill(R::ZERO);
        }
        wide!(R, || {
            for (b, &length) in lengths.iter().enumerate() {
                let tokens = &tokens[b * s.length..][..valid(length, s.length)];
                for (t, &token) in tokens.iter().enumerate() {
                    let row = (token as usize).wrapping_sub(part * rows);
                    if row < d.len() / s.columns {
                        add(b, t, &mut d[row * s.columns..][..s.columns]);
                    }
                }
            }
        });
    });
}

/// Sequences that a thread takes at a time, of so many elements each.
pub(crate) fn sequences(elements: usize) -> usize {
    ((1 << 16) / elements.max(1)).max(1)
}
