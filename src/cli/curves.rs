//! Curves over training steps, as SVG and PNG: a line a series, named where it ends.

use super::bench::{png, register_fonts};
use crate::error::Result;
use crate::io::Target;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;
use std::path::Path;

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroke {
    /// A thin pale line without a name.
    Faint,
    /// A line.
    Plain,
    /// A line with a dot at every point.
    Dotted,
}

/// A line of a figure.
#[derive(Debug, Clone)]
pub struct Curve {
    /// What it is.
    pub name: String,
    /// Which of the colours.
    pub color: usize,
    /// How it is drawn.
    pub stroke: Stroke,
    /// (step, loss), by step; what is not finite is left out.
    pub points: Vec<(f64, f64)>,
}

/// What is drawn.
#[derive(Debug, Clone)]
pub struct Figure {
    /// Title.
    pub title: String,
    /// What the curves are.
    pub subtitle: String,
    /// The curves.
    pub curves: Vec<Curve>,
}

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
pub fn of_run(rows: &[Value], title: &str) -> Figure {
    let (training, validation) = (points(rows, "loss"), points(rows, "val_loss"));
    let curve = |name: &str, color, stroke, points| Curve { name: name.into(), color, stroke, points };
    let curves = vec![
        curve("", 0, Stroke::Faint, training.clone()),
        curve("training", 0, Stroke::Plain, smoothed(&training, 60)),
        curve("validation", 1, Stroke::Dotted, validation),
    ];
    Figure { title: title.into(), subtitle: "loss (nats a token) over steps".into(), curves }
}

const WIDTH: u32 = 1080;
const HEIGHT: u32 = 640;
const COLORS: [RGBColor; 10] = [
    RGBColor(29, 78, 216),
    RGBColor(217, 72, 15),
    RGBColor(21, 128, 61),
    RGBColor(126, 34, 206),
    RGBColor(190, 24, 93),
    RGBColor(8, 145, 178),
    RGBColor(161, 98, 7),
    RGBColor(82, 82, 91),
    RGBColor(153, 27, 27),
    RGBColor(77, 124, 15),
];
const INK: RGBColor = RGBColor(24, 24, 27);
const MUTED: RGBColor = RGBColor(113, 113, 122);
const GRID: RGBColor = RGBColor(232, 232, 236);

/// Writes `curves.svg` and `curves.png` in a directory.
///
/// # Errors
/// If one cannot be written.
pub fn write(directory: &Path, figure: &Figure) -> Result<()> {
    let (svg, bitmap) = (Target::new(&directory.join("curves.svg"))?, Target::new(&directory.join("curves.png"))?);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
        draw(&area, figure, 1.0).expect("drawing to a string cannot fail");
    }
    svg.write(|w| w.write_all(text.as_bytes()))?;
    let (width, height) = (2 * WIDTH, 2 * HEIGHT);
    let mut pixels = vec![0; (3 * width * height) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        draw(&area, figure, 2.0).expect("drawing to memory cannot fail");
    }
    let file = png(&pixels, width, height);
    bitmap.write(|w| w.write_all(&file))
}

/// Round numbers from `low` to `high`, about eight.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|f| f * power).into_iter().find(|s| *s >= rough).unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|t| *t <= high + 1e-9 * step).collect()
}

/// A number in as few digits as tell ticks apart.
fn label(x: f64) -> String {
    ((x * 1e6).round() / 1e6).to_string()
}

fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    figure: &Figure,
    scale: f64,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    register_fonts();
    let pixel = |x: f64, y: f64| ((x * scale).round() as i32, (y * scale).round() as i32);
    let text = |text: &str, (x, y): (f64, f64), size: f64, style: FontStyle, color: RGBColor, h: HPos| {
        let font = FontDesc::new(FontFamily::SansSerif, size * scale, style);
        let style = TextStyle::from(font).color(&color).pos(Pos::new(h, VPos::Center));
        area.draw(&Text::new(text.to_string(), pixel(x, y), style))
    };
    let line = |points: Vec<(f64, f64)>, color: RGBAColor, width: f64| {
        let style = color.stroke_width((width * scale).round().max(1.0) as u32);
        area.draw(&PathElement::new(points.into_iter().map(|(x, y)| pixel(x, y)).collect::<Vec<_>>(), style))
    };
    area.fill(&WHITE)?;
    text(&figure.title, (28.0, 34.0), 21.0, FontStyle::Bold, INK, HPos::Left)?;
    text(&figure.subtitle, (28.0, 62.0), 14.0, FontStyle::Normal, MUTED, HPos::Left)?;

    let finite = |c: &Curve| c.points.iter().copied().filter(|p| p.1.is_finite()).collect::<Vec<_>>();
    let curves: Vec<(&Curve, Vec<(f64, f64)>)> = figure.curves.iter().map(|c| (c, finite(c))).collect();
    let all = || curves.iter().flat_map(|(_, points)| points);
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (v.min(low), v.max(high)));
        if low > high { (0.0, 1.0) } else { (low, high.max(low + 1e-6 + 1e-3 * low.abs())) }
    };
    let (first, last) = range(&mut all().map(|p| p.0));
    let (low, high) = range(&mut all().map(|p| p.1));
    let margin = 0.04 * (high - low);
    let (low, high) = (low - margin, high + margin);
    let longest = curves.iter().map(|(c, _)| c.name.chars().count()).max().unwrap_or(0);
    let (left, right) = (80.0, WIDTH as f64 - (36.0 + 8.2 * longest as f64).clamp(60.0, 420.0));
    let (top, bottom) = (92.0, HEIGHT as f64 - 70.0);
    let x = |step: f64| left + (step - first) / (last - first) * (right - left);
    let y = |loss: f64| bottom - (loss - low) / (high - low) * (bottom - top);
    for tick in ticks(low, high) {
        line(vec![(left, y(tick)), (right, y(tick))], GRID.to_rgba(), 1.0)?;
        text(&label(tick), (left - 12.0, y(tick) + 1.5), 13.0, FontStyle::Normal, MUTED, HPos::Right)?;
    }
    for tick in ticks(first, last) {
        line(vec![(x(tick), bottom), (x(tick), bottom + 5.0)], MUTED.to_rgba(), 1.0)?;
        text(&label(tick), (x(tick), bottom + 18.0), 13.0, FontStyle::Normal, MUTED, HPos::Center)?;
    }
    line(vec![(left, bottom), (right, bottom)], MUTED.to_rgba(), 1.0)?;
    text("step", ((left + right) / 2.0, bottom + 44.0), 14.0, FontStyle::Normal, INK, HPos::Center)?;

    for (curve, points) in &curves {
        let color = COLORS[curve.color % COLORS.len()];
        let (color, width) =
            if curve.stroke == Stroke::Faint { (color.mix(0.25), 1.0) } else { (color.to_rgba(), 2.5) };
        line(points.iter().map(|p| (x(p.0), y(p.1))).collect(), color, width)?;
        for p in points.iter().filter(|_| curve.stroke == Stroke::Dotted) {
            area.draw(&Circle::new(pixel(x(p.0), y(p.1)), (3.6 * scale) as i32, color.filled()))?;
        }
    }
    // Names at the lines' ends, kept apart.
    let named = curves.iter().filter(|(c, _)| c.stroke != Stroke::Faint);
    let mut ends: Vec<(f64, &Curve)> = named.filter_map(|(c, points)| Some((y(points.last()?.1), *c))).collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let height = ((bottom - top) / ends.len().max(1) as f64).min(20.0);
    for i in 1..ends.len() {
        ends[i].0 = ends[i].0.max(ends[i - 1].0 + height);
    }
    let mut floor = bottom;
    for end in ends.iter_mut().rev() {
        end.0 = end.0.min(floor);
        floor = end.0 - height;
    }
    for (at, curve) in ends {
        let color = COLORS[curve.color % COLORS.len()];
        text(&curve.name, (right + 10.0, at), height.min(15.0), FontStyle::Bold, color, HPos::Left)?;
    }
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover() {
        assert_eq!(ticks(0.0, 8.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(ticks(1.0, 2000.0), [500.0, 1000.0, 1500.0, 2000.0]);
        assert_eq!(label(ticks(0.12, 0.71)[0]), "0.2");
    }

    #[test]
    fn smoothing_takes_means() {
        let points: Vec<(f64, f64)> = (0..6).map(|i| (i as f64, (i % 2) as f64)).collect();
        assert_eq!(smoothed(&points, 3), [(0.5, 0.5), (2.5, 0.5), (4.5, 0.5)]);
        assert_eq!(smoothed(&points, 60), points);
    }
}
