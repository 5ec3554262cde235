//! What the rows say: growth exponents, crossovers, the answer in a sentence.

use super::Row;
use serde::Serialize;
use std::collections::BTreeMap;

/// From which length on a variant stays faster than another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Crossover {
    /// The faster.
    pub variant: &'static str,
    /// The slower, from there on.
    pub against: &'static str,
    /// What was timed.
    pub direction: &'static str,
    /// The length, interpolated between two that were measured; `None`: it is not faster at the longest one.
    pub length: Option<f64>,
    /// Whether it is faster at the shortest length already, so that `length` is only where measuring began.
    pub from_the_start: bool,
}

/// Exponents by variant and direction: the slope of log time over log T, fitted to the upper half of the lengths.
pub type Exponents = BTreeMap<&'static str, BTreeMap<&'static str, f64>>;

/// A variant's (T, milliseconds), by length.
pub fn points(rows: &[Row], variant: &str) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> =
        rows.iter().filter(|r| r.variant == variant).map(|r| (r.length as f64, r.median_ms)).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// The variants in the rows, in order of appearance.
pub fn variants(rows: &[Row]) -> Vec<&'static str> {
    let mut list = Vec::new();
    for row in rows {
        if !list.contains(&row.variant) {
            list.push(row.variant);
        }
    }
    list
}

/// Fits every variant that has two lengths or more.
pub fn exponents(rows: &[Row]) -> Exponents {
    let fit = |variant| Some((variant, BTreeMap::from([(rows.first()?.direction, slope(&points(rows, variant))?)])));
    variants(rows).into_iter().filter_map(fit).collect()
}

/// The least-squares slope of log y over log x, over the upper half of the points.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let used = &points[(points.len() / 2).min(points.len().saturating_sub(2))..];
    if used.len() < 2 {
        return None;
    }
    let n = used.len() as f64;
    let logs: Vec<(f64, f64)> = used.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let mean = logs.iter().fold((0.0, 0.0), |m, p| (m.0 + p.0 / n, m.1 + p.1 / n));
    let (cov, var) =
        logs.iter().fold((0.0, 0.0), |s, p| (s.0 + (p.0 - mean.0) * (p.1 - mean.1), s.1 + (p.0 - mean.0).powi(2)));
    Some(cov / var).filter(|s| s.is_finite())
}

/// Each pair in which the first might come to win: every O(T) variant against every other kind, and every variant
/// against softmax attention.
pub fn crossovers(rows: &[Row], is_linear: &dyn Fn(&str) -> bool) -> Vec<Crossover> {
    let all = variants(rows);
    let mut list = Vec::new();
    for &variant in &all {
        for &against in all.iter().filter(|&&a| a != variant) {
            let gains = is_linear(variant) && !is_linear(against);
            if gains || against == super::SOFTMAX {
                let (length, from_the_start) = match crossing(&points(rows, variant), &points(rows, against)) {
                    Some((length, start)) => (Some(length), start),
                    None => (None, false),
                };
                list.push(Crossover { variant, against, direction: rows[0].direction, length, from_the_start });
            }
        }
    }
    list
}

/// From which x on `a` stays below `b`, and whether that is the first x.
fn crossing(a: &[(f64, f64)], b: &[(f64, f64)]) -> Option<(f64, bool)> {
    let common: Vec<(f64, f64)> =
        (a.iter()).filter_map(|&(x, y)| Some((x, (y / b.iter().find(|p| p.0 == x)?.1).ln()))).collect();
    let slower = common.iter().rposition(|p| p.1 >= 0.0);
    let Some(i) = slower else { return Some((common.first()?.0, true)) };
    let (&(x0, r0), &(x1, r1)) = (&common[i], common.get(i + 1)?);
    // The ratio's logarithm is nearly a straight line over log T.
    Some(((x0.ln() + (x1 / x0).ln() * r0 / (r0 - r1)).exp(), false))
}

/// Such as `1.2k` for 1234; lengths are shown with two digits, since no interpolation is better.
pub fn about(length: f64) -> String {
    let unit = 10f64.powf((length.log10().floor() - 1.0).max(0.0));
    format!("{}", (length / unit).round() * unit)
}

/// The answer in one sentence.
pub fn sentence(rows: &[Row], crossovers: &[Crossover], is_linear: &dyn Fn(&str) -> bool, place: &str) -> String {
    let Some(last) = rows.iter().map(|r| r.length).max() else { return "Nothing was measured.".into() };
    let of = |variant: &str| rows.iter().find(|r| r.variant == variant && r.length == last);
    let timed = match rows[0].direction {
        "both" => "forward and backward",
        one => one,
    };
    let mut parts = Vec::new();
    for c in crossovers.iter().filter(|c| c.against == super::SOFTMAX && is_linear(c.variant)) {
        let name = c.variant;
        let mut part = match c.length {
            Some(t) if c.from_the_start => format!("{name} beats {} at every length from T = {t} ({timed})", c.against),
            Some(t) => format!("{name} overtakes {} from T ≈ {} ({timed})", c.against, about(t)),
            None => format!("{name} does not overtake {} up to T = {last} ({timed})", c.against),
        };
        if let (Some(fast), Some(slow)) = (of(name), of(c.against)) {
            let times = slow.median_ms / fast.median_ms;
            part += &if times >= 1.0 {
                format!(" and is {times:.1} times as fast at T = {last}")
            } else {
                format!(", where it takes {:.1} times as long", 1.0 / times)
            };
            part += &fast.error.map(|e| format!(", with an error of {e:.2} against it")).unwrap_or_default();
        }
        parts.push(part);
    }
    if parts.is_empty() {
        let at_last = rows.iter().filter(|r| r.length == last);
        let fastest = at_last.min_by(|a, b| a.median_ms.total_cmp(&b.median_ms)).expect("a row has that length");
        let (name, ms) = (fastest.variant, super::report::milliseconds(fastest.median_ms));
        let alone = if variants(rows).len() == 1 { "takes" } else { "is the fastest with" };
        parts.push(format!("{name} {alone} {ms} ms at T = {last} ({timed})"));
    }
    format!("On {place}, {}.", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(x: f64) -> (f64, f64) {
        (x, x * x / 1000.0)
    }

    #[test]
    fn slopes_and_crossings_of_power_laws() {
        let lengths = [256.0, 512.0, 1024.0, 2048.0];
        let quadratic = lengths.map(square);
        let linear = lengths.map(|x| (x, 0.7 * x));
        assert!((slope(&quadratic).unwrap() - 2.0).abs() < 1e-9);
        assert!((slope(&linear[..2]).unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(slope(&linear[..1]), None);
        let (at, start) = crossing(&linear, &quadratic).unwrap();
        assert!((at - 700.0).abs() < 1e-6 && !start);
        assert_eq!(crossing(&quadratic, &linear), None);
        assert_eq!(crossing(&linear[2..], &quadratic[2..]), Some((1024.0, true)));
        // Faster once, slower later: what counts is from where it stays so.
        let mut noisy = linear;
        noisy[0].1 = 1.0;
        assert!((crossing(&noisy, &quadratic).unwrap().0 - 700.0).abs() < 1e-6);
        assert_eq!((about(1234.0), about(312.7), about(9.6)), ("1200".into(), "310".into(), "10".into()));
    }
}
