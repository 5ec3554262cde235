//! Time over length on logarithmic axes: a line a variant.

use super::analysis::{Crossover, Exponents, about, points, variants};
use super::{Direction, Row};
use crate::plot::chart::{Chart, Curve, Mark, Stroke};
use crate::plot::{Axis, Ticks};

/// The figure: a line a variant with how it grows, and the points where O(T) variants pass softmax attention.
pub fn chart(
    (title, subtitle): (String, String),
    rows: &[Row],
    exponents: &Exponents,
    crossovers: &[Crossover],
    is_linear: &dyn Fn(&str) -> bool,
) -> Chart {
    let note = |variant| {
        let fitted = exponents.get(variant).and_then(|e| e.values().next());
        fitted.map(|e| format!("grows as T^{e:.2}")).unwrap_or_default()
    };
    let curve = |(i, variant): (usize, &'static str)| Curve {
        note: note(variant),
        ..Curve::new(variant, i, Stroke::Dotted, points(rows, variant))
    };
    let x = Axis::logarithmic("sequence length T", Ticks::PowersOfTwo);
    let y = Axis::logarithmic("", Ticks::Times);
    let curves = variants(rows).into_iter().enumerate().map(curve).collect();
    Chart { title, subtitle, x, y, curves, marks: marks(rows, crossovers, is_linear) }
}

/// For the title.
pub fn verb(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Backward => "backward",
        Direction::Both => "forward and backward",
    }
}

fn marks(rows: &[Row], crossovers: &[Crossover], is_linear: &dyn Fn(&str) -> bool) -> Vec<Mark> {
    let passing =
        crossovers.iter().filter(|c| c.against == super::SOFTMAX && is_linear(c.variant) && !c.from_the_start);
    let mark = |c: &Crossover| {
        let at = c.length?;
        Some(Mark::Point(at, interpolated(&points(rows, c.against), at)?, format!("T = {}", about(at))))
    };
    passing.filter_map(mark).collect()
}

/// y at x, on straight lines in logarithms.
fn interpolated(points: &[(f64, f64)], x: f64) -> Option<f64> {
    let pair = points.windows(2).find(|p| p[0].0 <= x && x <= p[1].0)?;
    let along = (x / pair[0].0).ln() / (pair[1].0 / pair[0].0).ln();
    Some((pair[0].1.ln() + along * (pair[1].1 / pair[0].1).ln()).exp())
}
