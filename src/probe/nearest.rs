//! The point of a convex hull that is nearest to the origin (Wolfe, "Finding the nearest point in a polytope",
//! Mathematical Programming 11, 1976).
//!
//! It answers in finitely many steps, exactly but for rounding, what a look-up asks: the nearest point p of the hull of
//! xᵢ has p·xᵢ ≥ ‖p‖² for every i, so that no direction has a larger least product with all of them than p/‖p‖, and that
//! product is ‖p‖. Where p is 0, its mixture of the xᵢ proves that no direction has a positive product with all.

/// A product with p this much below ‖p‖², in parts of the largest squared norm, is rounding.
const ROUNDING: f64 = 1e-13;

/// The nearest point, and the mixture of points (their numbers, with weights above 0 that sum to 1) that it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Nearest {
    /// The point.
    pub point: Vec<f64>,
    /// Of which points it is mixed.
    pub mixture: Vec<(usize, f64)>,
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The nearest point of the hull of `points`, all of one length.
///
/// # Panics
/// If there are none.
pub fn nearest(points: &[Vec<f64>]) -> Nearest {
    let norms: Vec<f64> = points.iter().map(|x| dot(x, x)).collect();
    let first = (0..points.len()).min_by(|&a, &b| norms[a].total_cmp(&norms[b])).expect("there are points");
    let largest = norms.iter().copied().fold(0.0, f64::max);
    let mut mixture = vec![(first, 1.0)];
    let mut point = points[first].clone();
    // Each round ends nearer to the origin, in another affinely independent set: finitely many. The limit is against
    // rounding alone, which can make two sets look equally near.
    for _ in 0..100 * (points.len() + point.len()) {
        let products = points.iter().map(|x| dot(&point, x));
        let (next, least) = products.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).expect("there are points");
        let done = least >= dot(&point, &point) - ROUNDING * largest;
        if done || mixture.iter().any(|&(i, _)| i == next) {
            break;
        }
        mixture.push((next, 0.0));
        // To the nearest point of the affine hull, or as far as the hull itself reaches: there a point drops out.
        while let Some(target) = affine(points, &mixture) {
            let leaving = |(now, to): (f64, f64)| if to < now { now / (now - to) } else { f64::INFINITY };
            let steps = mixture.iter().map(|m| m.1).zip(target.iter().copied()).map(leaving);
            let (out, step) = steps.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).expect("not empty");
            let inside = step > 1.0;
            let step = step.min(1.0);
            mixture.iter_mut().zip(&target).for_each(|(m, &to)| m.1 += step * (to - m.1));
            if inside {
                break;
            }
            mixture.remove(out);
        }
        point = mix(points, &mixture);
    }
    Nearest { point, mixture }
}

fn mix(points: &[Vec<f64>], mixture: &[(usize, f64)]) -> Vec<f64> {
    let mut point = vec![0.0; points[0].len()];
    for &(i, weight) in mixture {
        point.iter_mut().zip(&points[i]).for_each(|(p, x)| *p += weight * x);
    }
    point
}

/// Weights, some perhaps below 0, of the point nearest to the origin in the affine hull: with the Gram matrix G they are
/// proportional to (G + s·11ᵀ)⁻¹·1, whatever s > 0. `None` if the points are affinely dependent.
fn affine(points: &[Vec<f64>], mixture: &[(usize, f64)]) -> Option<Vec<f64>> {
    let n = mixture.len();
    let product = |i: usize, j: usize| dot(&points[mixture[i].0], &points[mixture[j].0]);
    // As large as the largest entry, so that neither drowns the other.
    let shift = (0..n).map(|i| product(i, i)).fold(f64::MIN_POSITIVE, f64::max);
    let rows = (0..n).map(|i| (0..n).map(|j| product(i, j) / shift + 1.0).chain([1.0]).collect());
    let weights = solve(rows.collect())?;
    let sum: f64 = weights.iter().sum();
    Some(weights.iter().map(|w| w / sum).collect())
}

/// Solves n equations, given as rows of n coefficients and the right side, by Gauss with pivots from the column.
fn solve(mut rows: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let n = rows.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        rows.swap(column, pivot);
        if rows[column][column].abs() < 1e-15 {
            return None;
        }
        let (above, below) = rows.split_at_mut(column + 1);
        let top = &above[column];
        for row in below {
            let factor = row[column] / top[column];
            row[column..].iter_mut().zip(&top[column..]).for_each(|(x, top)| *x -= factor * top);
        }
    }
    let mut found = vec![0.0; n];
    for i in (0..n).rev() {
        found[i] = (rows[i][n] - dot(&rows[i][i + 1..n], &found[i + 1..])) / rows[i][i];
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::Philox;

    /// What makes a point the nearest: it is a mixture of the points, and no point lies on the origin's side of it.
    fn check(points: &[Vec<f64>]) -> f64 {
        let Nearest { point, mixture } = nearest(points);
        let sum: f64 = mixture.iter().map(|m| m.1).sum();
        assert!(mixture.iter().all(|m| m.1 > -1e-12) && (sum - 1.0).abs() < 1e-9, "{mixture:?}");
        assert!(mix(points, &mixture).iter().zip(&point).all(|(a, b)| (a - b).abs() < 1e-12));
        let norm = dot(&point, &point);
        let largest = points.iter().map(|x| dot(x, x)).fold(0.0, f64::max);
        assert!(points.iter().all(|x| dot(x, &point) >= norm - 1e-11 * largest), "{points:?}: {point:?}");
        norm.sqrt()
    }

    #[test]
    fn worked_by_hand() {
        assert_eq!(check(&[vec![3.0, 4.0]]), 5.0);
        // The foot on a segment; its end; inside a triangle.
        assert!((check(&[vec![1.0, 1.0], vec![1.0, -3.0]]) - 1.0).abs() < 1e-12);
        assert!((check(&[vec![1.0, 1.0], vec![3.0, 2.0]]) - 2f64.sqrt()).abs() < 1e-12);
        assert!(check(&[vec![1.0, 1.0], vec![-2.0, 1.0], vec![0.0, -1.0]]) < 1e-12);
        // A face of three points.
        assert!(
            (check(&[vec![1.0, 0.0, 0.0], vec![0.0, 1.0, 0.0], vec![0.0, 0.0, 1.0]]) - 1.0 / 3f64.sqrt()).abs() < 1e-12
        );
    }

    #[test]
    fn random_and_degenerate_hulls() {
        for seed in 0..300 {
            let random = Philox::new(seed, 0, 0);
            let (n, d) = (1 + random.word(1 << 20) as usize % 40, 1 + random.word(1 << 21) as usize % 8);
            let shift = random.normal(1 << 22);
            // Whole numbers give repeated points and faces with many; others are in general position.
            let entry = |i: u64| match seed % 2 {
                0 => (2.0 * random.normal(i)).round() + shift.round(),
                _ => random.normal(i) + shift,
            };
            let points: Vec<Vec<f64>> = (0..n).map(|i| (0..d).map(|j| entry((i * d + j) as u64)).collect()).collect();
            check(&points);
        }
    }
}
