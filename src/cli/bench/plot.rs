//! Time over length on logarithmic axes, as SVG and PNG: a line a variant, named where it ends.

use super::analysis::{Crossover, Exponents, about, points, variants};
use super::{Direction, Row};
use crate::error::Result;
use crate::io::Target;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::sync::Once;

/// A line.
pub struct Series {
    /// The variant.
    pub name: String,
    /// How it grows, such as `T^1.98`.
    pub note: String,
    /// (T, milliseconds), by T.
    pub points: Vec<(f64, f64)>,
}

/// What is drawn.
pub struct Figure {
    /// What was measured, and on what.
    pub title: String,
    /// The shape.
    pub subtitle: String,
    /// The lines.
    pub series: Vec<Series>,
    /// Points where one line passes another: where, and what to write there.
    pub marks: Vec<(f64, f64, String)>,
}

/// For the title.
pub fn verb(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Backward => "backward",
        Direction::Both => "forward and backward",
    }
}

/// A series a variant.
pub fn series(rows: &[Row], exponents: &Exponents) -> Vec<Series> {
    let note = |variant| {
        let fitted = exponents.get(variant).and_then(|e| e.values().next());
        fitted.map(|e| format!("grows as T^{e:.2}")).unwrap_or_default()
    };
    let one =
        |variant: &'static str| Series { name: variant.into(), note: note(variant), points: points(rows, variant) };
    variants(rows).into_iter().map(one).collect()
}

/// Where O(T) variants pass softmax attention.
pub fn marks(rows: &[Row], crossovers: &[Crossover], is_linear: &dyn Fn(&str) -> bool) -> Vec<(f64, f64, String)> {
    let passing =
        crossovers.iter().filter(|c| c.against == super::SOFTMAX && is_linear(c.variant) && !c.from_the_start);
    let mark = |c: &Crossover| {
        let at = c.length?;
        Some((at, interpolated(&points(rows, c.against), at)?, format!("T = {}", about(at))))
    };
    passing.filter_map(mark).collect()
}

/// y at x, on straight lines in logarithms.
fn interpolated(points: &[(f64, f64)], x: f64) -> Option<f64> {
    let pair = points.windows(2).find(|p| p[0].0 <= x && x <= p[1].0)?;
    let along = (x / pair[0].0).ln() / (pair[1].0 / pair[0].0).ln();
    Some((pair[0].1.ln() + along * (pair[1].1 / pair[0].1).ln()).exp())
}

const WIDTH: u32 = 1080;
const HEIGHT: u32 = 640;
const COLORS: [RGBColor; 6] = [
    RGBColor(29, 78, 216),
    RGBColor(217, 72, 15),
    RGBColor(21, 128, 61),
    RGBColor(126, 34, 206),
    RGBColor(190, 24, 93),
    RGBColor(82, 82, 91),
];
const INK: RGBColor = RGBColor(24, 24, 27);
const MUTED: RGBColor = RGBColor(113, 113, 122);
const GRID: RGBColor = RGBColor(232, 232, 236);

/// Draws as SVG.
///
/// # Errors
/// If the file cannot be written.
pub fn write_svg(to: &Target, figure: &Figure) -> Result<()> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
        draw(&area, figure, 1).expect("drawing to a string cannot fail");
    }
    to.write(|w| w.write_all(text.as_bytes()))
}

/// Draws as PNG, at twice the size.
///
/// # Errors
/// If the file cannot be written.
pub fn write_png(to: &Target, figure: &Figure) -> Result<()> {
    let (width, height) = (2 * WIDTH, 2 * HEIGHT);
    let mut pixels = vec![0; (3 * width * height) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        draw(&area, figure, 2).expect("drawing to memory cannot fail");
    }
    let file = png(&pixels, width, height);
    to.write(|w| w.write_all(&file))
}

/// RGB pixels as a PNG file.
pub(crate) fn png(pixels: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let written = encoder.write_header().and_then(|mut w| w.write_image_data(pixels));
    written.expect("encoding to memory cannot fail");
    file
}

/// A logarithmic axis: values from `low` to `high` lie between pixels `from` and `to`.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn at(&self, x: f64) -> f64 {
        self.from + (x / self.low).ln() / (self.high / self.low).ln() * (self.to - self.from)
    }
}

/// Powers of two between, thinned to at most nine.
fn length_ticks(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log2().ceil() as i32, high.log2().floor() as i32);
    let step = ((last - first) / 9 + 1).max(1);
    (first..=last).step_by(step as usize).map(|e| 2f64.powi(e)).collect()
}

/// 256, 512, 1k, 2k, … 1M.
fn length_label(t: f64) -> String {
    match t {
        t if t >= 1048576.0 => format!("{}M", t / 1048576.0),
        t if t >= 1024.0 => format!("{}k", t / 1024.0),
        t => t.to_string(),
    }
}

/// Powers of ten between; where they are few, twice and five times them as well.
fn time_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
    let factors: &[f64] = if (high / low).log10() < 2.2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let all = decades.flat_map(|e| factors.iter().map(move |f| f * 10f64.powi(e)));
    all.filter(|&t| t >= low * 0.999 && t <= high * 1.001).collect()
}

/// A time with its unit.
fn time_label(ms: f64) -> String {
    let (value, unit) = match ms {
        ms if ms >= 999.0 => (ms / 1e3, "s"),
        ms if ms >= 0.999 => (ms, "ms"),
        ms => (ms * 1e3, "µs"),
    };
    format!("{} {unit}", (value * 1000.0).round() / 1000.0)
}

/// Makes the bundled fonts known to plotters.
pub(crate) fn register_fonts() {
    static FONTS: Once = Once::new();
    FONTS.call_once(|| {
        let fonts: [(FontStyle, &'static [u8]); 2] = [
            (FontStyle::Normal, include_bytes!("../../../assets/inter-regular.ttf")),
            (FontStyle::Bold, include_bytes!("../../../assets/inter-semibold.ttf")),
        ];
        for (style, bytes) in fonts {
            // By the name that an SVG viewer resolves to a font of its own.
            assert!(register_font("sans-serif", style, bytes).is_ok(), "the bundled fonts are valid");
        }
    });
}

fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    figure: &Figure,
    scale: i32,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    register_fonts();
    let s = scale as f64;
    let pixel = |x: f64, y: f64| ((x * s).round() as i32, (y * s).round() as i32);
    let text = |text: &str, x: f64, y: f64, size: f64, style: FontStyle, color: RGBColor, h: HPos| {
        let font = FontDesc::new(FontFamily::SansSerif, size * s, style);
        let style = TextStyle::from(font).color(&color).pos(Pos::new(h, VPos::Center));
        area.draw(&Text::new(text.to_string(), pixel(x, y), style))
    };
    let line = |points: Vec<(f64, f64)>, color: RGBColor, width: f64| {
        let style = color.stroke_width((width * s).round().max(1.0) as u32);
        area.draw(&PathElement::new(points.into_iter().map(|(x, y)| pixel(x, y)).collect::<Vec<_>>(), style))
    };

    area.fill(&WHITE)?;
    let all = || figure.series.iter().flat_map(|s| s.points.iter().copied());
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::MAX, f64::MIN_POSITIVE), |r, v| (v.min(r.0), v.max(r.1)))
    };
    let (x_low, x_high) = range(&mut all().map(|p| p.0));
    let (y_low, y_high) = range(&mut all().map(|p| p.1));
    // One length alone still gets an axis around it.
    let (x_low, x_high) = if x_low < x_high { (x_low, x_high) } else { (x_low / 2.0, x_high * 2.0) };
    let (y_low, y_high) = (y_low.max(1e-6) / 1.5, y_high.max(2e-6) * 1.5);
    let (left, right, top, bottom) = (84.0, WIDTH as f64 - 190.0, 104.0, HEIGHT as f64 - 66.0);
    let x = Axis { low: x_low, high: x_high, from: left + 14.0, to: right - 14.0 };
    let y = Axis { low: y_low, high: y_high, from: bottom, to: top };

    text(&figure.title, 28.0, 34.0, 21.0, FontStyle::Bold, INK, HPos::Left)?;
    text(&figure.subtitle, 28.0, 62.0, 14.0, FontStyle::Normal, MUTED, HPos::Left)?;
    for tick in time_ticks(y_low, y_high) {
        line(vec![(left, y.at(tick)), (right, y.at(tick))], GRID, 1.0)?;
        text(&time_label(tick), left - 12.0, y.at(tick) + 1.5, 13.0, FontStyle::Normal, MUTED, HPos::Right)?;
    }
    for tick in length_ticks(x_low, x_high) {
        line(vec![(x.at(tick), top), (x.at(tick), bottom)], GRID, 1.0)?;
        text(&length_label(tick), x.at(tick), bottom + 18.0, 13.0, FontStyle::Normal, MUTED, HPos::Center)?;
    }
    line(vec![(left, bottom), (right, bottom)], MUTED, 1.0)?;
    text("sequence length T", (left + right) / 2.0, bottom + 44.0, 14.0, FontStyle::Normal, INK, HPos::Center)?;

    for (i, series) in figure.series.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        line(series.points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect(), color, 2.5)?;
        for p in &series.points {
            area.draw(&Circle::new(pixel(x.at(p.0), y.at(p.1)), (3.6 * s) as i32, color.filled()))?;
        }
    }
    for (at, ms, label) in &figure.marks {
        let (cx, cy) = (x.at(*at), y.at(*ms));
        line(vec![(cx, cy + 8.0), (cx, bottom)], MUTED, 1.0)?;
        area.draw(&Circle::new(pixel(cx, cy), (6.5 * s) as i32, WHITE.filled()))?;
        area.draw(&Circle::new(pixel(cx, cy), (6.5 * s) as i32, INK.stroke_width((2.0 * s) as u32)))?;
        text(label, cx + 8.0, bottom - 14.0, 13.0, FontStyle::Bold, INK, HPos::Left)?;
    }
    // Names at the lines' ends, kept apart.
    let mut ends: Vec<(f64, usize)> =
        (figure.series.iter().enumerate()).filter_map(|(i, s)| Some((y.at(s.points.last()?.1), i))).collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let height = 38.0;
    for i in 1..ends.len() {
        ends[i].0 = ends[i].0.max(ends[i - 1].0 + height);
    }
    let mut floor = bottom - 8.0;
    for end in ends.iter_mut().rev() {
        end.0 = end.0.min(floor);
        floor = end.0 - height;
    }
    for (at, i) in ends {
        let (series, color) = (&figure.series[i], COLORS[i % COLORS.len()]);
        text(&series.name, right + 4.0, at - 8.0, 14.0, FontStyle::Bold, color, HPos::Left)?;
        text(&series.note, right + 4.0, at + 10.0, 12.0, FontStyle::Normal, MUTED, HPos::Left)?;
    }
    area.present()
}
