//! Lines over sizes, such as how many answers are right against how much is asked.

use super::color::LINES;
use super::{Anchor, Drawing, GRID, INK, MUTED, Style, text_width};

/// A line.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What it is, written where it ends.
    pub name: String,
    /// Size, and the least, mean and largest number there, each from 0 to 1.
    pub points: Vec<(f64, [f64; 3])>,
}

/// Shares from 0 to 100 % over sizes on a logarithmic axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Shares {
    /// What is shown.
    pub title: String,
    /// Of what.
    pub subtitle: String,
    /// What a size is.
    pub x: String,
    /// What a share is.
    pub y: String,
    /// The lines.
    pub series: Vec<Series>,
    /// A share worth knowing, and what it is: drawn across.
    pub mark: (f64, String),
}

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 560.0;

impl Shares {
    /// Draws it: means as lines, and from least to largest as bars.
    pub fn draw(&self) -> Drawing {
        let names = self.series.iter().map(|s| text_width(&s.name, 14.0, true)).fold(0.0, f64::max);
        let (left, right, top, bottom) = (84.0, WIDTH - names - 36.0, 96.0, HEIGHT - 70.0);
        let mut sizes: Vec<f64> = self.series.iter().flat_map(|s| s.points.iter().map(|p| p.0)).collect();
        sizes.sort_by(f64::total_cmp);
        sizes.dedup();
        let (low, high) = (sizes.first().copied().unwrap_or(1.0), sizes.last().copied().unwrap_or(2.0));
        let x = |size: f64| match high > low {
            true => left + 24.0 + (size / low).ln() / (high / low).ln() * (right - left - 48.0),
            false => (left + right) / 2.0,
        };
        let y = |share: f64| bottom - share * (bottom - top);
        let mut d = Drawing::new(WIDTH, HEIGHT);
        d.text(&self.title, (28.0, 34.0), Style::plain(20.0, INK).bold());
        d.text(&self.subtitle, (28.0, 62.0), Style::plain(13.0, MUTED));
        for i in 0..=4 {
            let share = i as f64 / 4.0;
            d.line(vec![(left, y(share)), (right, y(share))], 1.0, GRID);
            let label = format!("{:.0} %", 100.0 * share);
            d.text(label, (left - 10.0, y(share)), Style::plain(13.0, MUTED).at(Anchor::End));
        }
        d.line(vec![(left, y(self.mark.0)), (right, y(self.mark.0))], 1.2, MUTED);
        d.text(&self.mark.1, (left + 6.0, y(self.mark.0) + 12.0), Style::plain(12.0, MUTED));
        for &size in &sizes {
            d.line(vec![(x(size), bottom), (x(size), bottom + 5.0)], 1.0, MUTED);
            d.text(size.to_string(), (x(size), bottom + 18.0), Style::plain(13.0, MUTED).at(Anchor::Middle));
        }
        let middle = ((left + right) / 2.0, (top + bottom) / 2.0);
        d.text(&self.x, (middle.0, bottom + 46.0), Style::plain(14.0, INK).at(Anchor::Middle));
        d.text(&self.y, (24.0, middle.1), Style::plain(14.0, INK).at(Anchor::Middle).turned(-90.0));
        let mut ends = Vec::new();
        for (i, series) in self.series.iter().enumerate() {
            let color = LINES[i % LINES.len()];
            for (size, [least, _, most]) in &series.points {
                d.line(vec![(x(*size), y(*least)), (x(*size), y(*most))], 1.5, color);
            }
            d.line(series.points.iter().map(|(size, all)| (x(*size), y(all[1]))).collect(), 2.5, color);
            series.points.iter().for_each(|(size, all)| d.dot((x(*size), y(all[1])), 4.0, color));
            ends.extend(series.points.last().map(|(size, all)| (y(all[1]), x(*size), &series.name, color)));
        }
        // Names at the lines' ends, kept apart.
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut free = top - 20.0;
        for (at, x, name, color) in ends {
            let at = at.max(free);
            free = at + 20.0;
            d.text(name, (x + 14.0, at), Style::plain(14.0, color).bold());
        }
        d
    }
}
