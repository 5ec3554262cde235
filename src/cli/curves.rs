//! Curves over training steps.

use crate::error::Result;
use crate::plot::chart::{Chart, Curve, Stroke};
use crate::plot::{Axis, Picture, Ticks};
use serde_json::Value;
use std::path::Path;

/// A run's points: step and the number of this name in its log's rows.
pub fn points(rows: &[Value], name: &str) -> Vec<(f64, f64)> {
    rows.iter().filter_map(|row| Some((row["step"].as_f64()?, row[name].as_f64()?))).collect()
}

/// Means of runs of points, so that at most about `most` are left: what a noisy curve says.
pub fn smoothed(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let window = points.len().div_ceil(most).max(1);
    let mean = |p: &[(f64, f64)]| {
        let n = p.len() as f64;
        (p.iter().map(|p| p.0).sum::<f64>() / n, p.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(window).map(mean).collect()
}

/// The curves of one run: its training loss, the same smoothed, and validation.
pub fn of_run(rows: &[Value], title: &str) -> Chart {
    let (training, validation) = (points(rows, "loss"), points(rows, "val_loss"));
    let curves = vec![
        Curve::new("", 0, Stroke::Faint, training.clone()),
        Curve::new("training", 0, Stroke::Plain, smoothed(&training, 60)),
        Curve::new("validation", 1, Stroke::Dotted, validation),
    ];
    chart(title, "loss (nats a token) over steps", curves)
}

/// Curves over steps; on a logarithmic axis where some end long before others.
pub fn chart(title: &str, subtitle: &str, curves: Vec<Curve>) -> Chart {
    let ends = || curves.iter().filter_map(|curve| Some(curve.points.last()?.0));
    let (shortest, longest) = (ends().fold(f64::MAX, f64::min), ends().fold(0.0, f64::max));
    let x = match longest >= 4.0 * shortest {
        true => Axis::logarithmic("step", Ticks::PowersOfTwo),
        false => Axis::linear("step", Ticks::Round),
    };
    let y = Axis::linear("", Ticks::Round);
    Chart { title: title.into(), subtitle: subtitle.into(), x, y, curves, marks: Vec::new() }
}

/// Writes `curves.svg` and `curves.png` in a directory.
///
/// # Errors
/// If one cannot be written.
pub fn write(directory: &Path, chart: &Chart) -> Result<()> {
    let drawing = chart.draw();
    Picture::both(directory, "curves")?.iter().try_for_each(|picture| picture.write(&drawing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_takes_means() {
        let points: Vec<(f64, f64)> = (0..6).map(|i| (i as f64, (i % 2) as f64)).collect();
        assert_eq!(smoothed(&points, 3), [(0.5, 0.5), (2.5, 0.5), (4.5, 0.5)]);
        assert_eq!(smoothed(&points, 60), points);
    }
}
