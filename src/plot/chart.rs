//! Lines over an axis, each named where it ends.

use super::color::{self, LINES};
use super::{Anchor, Axis, Color, Drawing, GRID, INK, MUTED, Style, text_width};

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

/// A line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What it is, written where it ends.
    pub name: String,
    /// What else is to be said of it, written under the name.
    pub note: String,
    /// Which of the colours.
    pub color: usize,
    /// How it is drawn.
    pub stroke: Stroke,
    /// (x, y), by x; what is not finite is left out.
    pub points: Vec<(f64, f64)>,
    /// Bars over x, from a least to a largest y.
    pub bars: Vec<(f64, [f64; 2])>,
}

impl Curve {
    /// A curve without bars and note.
    pub fn new(name: impl Into<String>, color: usize, stroke: Stroke, points: Vec<(f64, f64)>) -> Curve {
        Curve { name: name.into(), note: String::new(), color, stroke, points, bars: Vec::new() }
    }
}

/// What is worth pointing at.
#[derive(Debug, Clone, PartialEq)]
pub enum Mark {
    /// A point, with a line down to the axis.
    Point(f64, f64, String),
    /// A level, drawn across.
    Level(f64, String),
}

/// A chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// Of what.
    pub subtitle: String,
    /// Along the bottom.
    pub x: Axis,
    /// Along the left.
    pub y: Axis,
    /// The lines.
    pub curves: Vec<Curve>,
    /// What is pointed at.
    pub marks: Vec<Mark>,
}

const WIDTH: f64 = 1080.0;
const HEIGHT: f64 = 640.0;
const NAME: f64 = 15.0;
const NOTE: f64 = 12.0;

impl Chart {
    /// Draws it.
    pub fn draw(&self) -> Drawing {
        let finite = |c: &Curve| c.points.iter().copied().filter(|p| p.1.is_finite()).collect::<Vec<_>>();
        let curves: Vec<(&Curve, Vec<(f64, f64)>)> = self.curves.iter().map(|c| (c, finite(c))).collect();
        let points = || curves.iter().flat_map(|(_, points)| points);
        let bars = || self.curves.iter().flat_map(|c| c.bars.iter().flat_map(|bar| bar.1));
        let levels = self.marks.iter().filter_map(|m| if let Mark::Level(y, _) = m { Some(*y) } else { None });
        let within_x = self.x.range(points().map(|p| p.0));
        let within_y = self.y.widened(self.y.range(points().map(|p| p.1).chain(bars()).chain(levels)), 0.05);

        let named = || curves.iter().filter(|(c, points)| c.stroke != Stroke::Faint && !points.is_empty());
        let wide = |c: &Curve| text_width(&c.name, NAME, true).max(text_width(&c.note, NOTE, false));
        let names = named().map(|(c, _)| wide(c)).fold(0.0, f64::max);
        let (left, right) = (84.0, WIDTH - (names + 40.0).clamp(60.0, 460.0));
        let (top, bottom) = (92.0, HEIGHT - 70.0);
        // Points keep off the edges, where ticks are few and dots large.
        let inset = if matches!(self.x.ticks, super::Ticks::At(_)) { 24.0 } else { 12.0 };
        let x = |at: f64| left + inset + self.x.along(within_x, at) * (right - left - 2.0 * inset);
        let y = |at: f64| bottom - self.y.along(within_y, at) * (bottom - top);

        let mut d = Drawing::new(WIDTH, HEIGHT);
        d.text(&self.title, (28.0, 34.0), Style::plain(21.0, INK).bold());
        d.text(&self.subtitle, (28.0, 62.0), Style::plain(14.0, MUTED));
        for (at, label) in self.y.ticks(within_y) {
            d.line(vec![(left, y(at)), (right, y(at))], 1.0, GRID);
            d.text(label, (left - 12.0, y(at)), Style::plain(13.0, MUTED).at(Anchor::End));
        }
        for (at, label) in self.x.ticks(within_x) {
            d.line(vec![(x(at), bottom), (x(at), bottom + 5.0)], 1.0, MUTED);
            d.text(label, (x(at), bottom + 18.0), Style::plain(13.0, MUTED).at(Anchor::Middle));
        }
        d.line(vec![(left, bottom), (right, bottom)], 1.0, MUTED);
        let middle = ((left + right) / 2.0, (top + bottom) / 2.0);
        d.text(&self.x.label, (middle.0, bottom + 44.0), Style::plain(14.0, INK).at(Anchor::Middle));
        d.text(&self.y.label, (22.0, middle.1), Style::plain(14.0, INK).at(Anchor::Middle).turned(-90.0));

        for mark in &self.marks {
            if let Mark::Level(at, text) = mark {
                d.line(vec![(left, y(*at)), (right, y(*at))], 1.2, MUTED);
                d.text(text, (left + 6.0, y(*at) + 12.0), Style::plain(12.0, MUTED));
            }
        }
        for (curve, points) in &curves {
            let color = line_color(curve);
            for (at, [least, most]) in &curve.bars {
                d.line(vec![(x(*at), y(*least)), (x(*at), y(*most))], 1.5, color);
            }
            let width = if curve.stroke == Stroke::Faint { 1.0 } else { 2.5 };
            d.line(points.iter().map(|p| (x(p.0), y(p.1))).collect(), width, color);
            if curve.stroke == Stroke::Dotted {
                points.iter().for_each(|p| d.dot((x(p.0), y(p.1)), 3.8, color));
            }
        }
        for mark in &self.marks {
            if let Mark::Point(at, high, text) = mark {
                let (at, high) = (x(*at), y(*high));
                d.line(vec![(at, high + 8.0), (at, bottom)], 1.0, MUTED);
                d.dot((at, high), 7.5, INK);
                d.dot((at, high), 5.5, [255; 3]);
                d.text(text, (at + 8.0, bottom - 14.0), Style::plain(13.0, INK).bold());
            }
        }
        let ends: Vec<(f64, &Curve)> = named().map(|(c, points)| (y(points[points.len() - 1].1), *c)).collect();
        let notes = ends.iter().any(|(_, c)| !c.note.is_empty());
        for (at, curve) in apart(ends, top, bottom, if notes { 38.0 } else { 20.0 }) {
            let name = Style::plain(NAME, line_color(curve)).bold();
            match curve.note.is_empty() {
                true => d.text(&curve.name, (right + 8.0, at), name),
                false => {
                    d.text(&curve.name, (right + 8.0, at - 8.0), name);
                    d.text(&curve.note, (right + 8.0, at + 10.0), Style::plain(NOTE, MUTED));
                }
            }
        }
        d
    }
}

fn line_color(curve: &Curve) -> Color {
    let color = LINES[curve.color % LINES.len()];
    if curve.stroke == Stroke::Faint { color::pale(color) } else { color }
}

/// What stands at heights, moved so far that none covers another, and closer where there is no room for all.
fn apart<T>(mut ends: Vec<(f64, T)>, top: f64, bottom: f64, height: f64) -> Vec<(f64, T)> {
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let height = height.min((bottom - top) / ends.len().max(1) as f64);
    for i in 1..ends.len() {
        ends[i].0 = ends[i].0.max(ends[i - 1].0 + height);
    }
    let mut floor = bottom;
    for end in ends.iter_mut().rev() {
        end.0 = end.0.min(floor);
        floor = end.0 - height;
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::super::{Ticks, svg};
    use super::*;

    #[test]
    fn names_keep_apart() {
        let heights = |ends: &[f64]| -> Vec<f64> {
            apart(ends.iter().map(|e| (*e, ())).collect(), 0.0, 100.0, 20.0).into_iter().map(|e| e.0).collect()
        };
        assert_eq!(heights(&[50.0, 51.0, 10.0]), [10.0, 50.0, 70.0]);
        assert_eq!(heights(&[99.0, 98.0]), [80.0, 100.0]);
    }

    #[test]
    fn a_chart_without_points_is_drawn() {
        let (x, y) = (Axis::linear("step", Ticks::Round), Axis::logarithmic("", Ticks::Times));
        let mut chart = Chart { title: "t".into(), subtitle: "".into(), x, y, curves: vec![], marks: vec![] };
        assert!(svg::to_svg(&chart.draw()).contains(">step<"));
        chart.curves = vec![Curve::new("gone", 0, Stroke::Dotted, vec![(1.0, f64::NAN)])];
        let drawn = svg::to_svg(&chart.draw());
        assert!(!drawn.contains("NaN") && !drawn.contains("gone"), "{drawn}");
        chart.curves = vec![Curve::new("there", 0, Stroke::Dotted, vec![(1.0, 2.0), (2.0, f64::INFINITY)])];
        let drawn = svg::to_svg(&chart.draw());
        assert!(!drawn.contains("inf") && drawn.matches("<circle").count() == 1 && drawn.contains("there"), "{drawn}");
    }
}
