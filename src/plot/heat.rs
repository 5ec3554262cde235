//! Heatmaps: panels of coloured cells in a grid, words across at 45° and down, and a colour bar.

use super::color::{diverging, viridis};
use super::{Anchor, Color, Drawing, INK, MUTED, Style, text_width};

/// One heatmap.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What stands above it.
    pub title: String,
    /// A number for each row and column; `None` where there is none, as for keys that a query cannot see.
    pub cells: Vec<Vec<Option<f64>>>,
}

/// Panels that share their words.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What is shown.
    pub title: String,
    /// Of what.
    pub subtitle: String,
    /// What each row is, from the top.
    pub rows: Vec<String>,
    /// What each column is.
    pub columns: Vec<String>,
    /// Rows of panels, from the top.
    pub panels: Vec<Vec<Panel>>,
    /// What a colour means, beside the bar.
    pub unit: String,
    /// Whether numbers may be below 0: colours then go from the least to the largest possible through white.
    pub signed: bool,
}

const MARGIN: f64 = 28.0;
/// The longest side of a panel, in pixels, and of a cell.
const PANEL: f64 = 340.0;
const CELL: (f64, f64) = (2.0, 26.0);
/// Between panels.
const GAP: f64 = 22.0;
/// Text smaller than this is not read.
const LEAST: f64 = 9.0;
const LARGEST: f64 = 13.0;
/// Characters of a word; of longer ones the rest is left out.
const WORD: usize = 18;

/// Every how many rows or columns there is room for a word.
fn every(cell: f64) -> usize {
    (LEAST * 1.15 / cell).ceil().max(1.0) as usize
}

fn shortened(word: &str) -> String {
    match word.chars().count() > WORD {
        true => word.chars().take(WORD - 1).chain(['…']).collect(),
        false => word.into(),
    }
}

impl Figure {
    /// The largest number, whatever its sign; 1 where all are 0.
    pub fn largest(&self) -> f64 {
        let cells = self.panels.iter().flatten().flat_map(|p| p.cells.iter().flatten());
        let largest = cells.filter_map(|x| *x).fold(0.0, |largest: f64, x| largest.max(x.abs()));
        if largest > 0.0 { largest } else { 1.0 }
    }

    /// The colour of a part of the largest number.
    fn color(&self, part: f64) -> Color {
        if self.signed { diverging(part) } else { viridis(part) }
    }

    /// Draws it. Colours go from 0 to the largest number, or from its negative.
    pub fn draw(&self) -> Drawing {
        let (down, across) = (self.rows.len().max(1), self.columns.len().max(1));
        let cell = (PANEL / down.max(across) as f64).clamp(CELL.0, CELL.1);
        let size = (cell * 0.82).clamp(LEAST, LARGEST);
        let width_of = |word: &String| text_width(&shortened(word), size, false);
        let widest = |words: &[String]| words.iter().map(width_of).fold(0.0, f64::max);
        let (panel_width, panel_height) = (cell * across as f64, cell * down as f64);
        let panels_across = self.panels.iter().map(Vec::len).max().unwrap_or(0);
        let left = MARGIN + widest(&self.rows) + 10.0;
        let top = MARGIN + 56.0;
        let (step_x, step_y) = (panel_width + GAP, panel_height + GAP + 20.0);
        // Turned words reach down by their width's share, and left of their column.
        let below = 16.0 + (widest(&self.columns) + size) * std::f64::consts::FRAC_1_SQRT_2;
        let right = left + panels_across as f64 * step_x - GAP;
        let bottom = top + self.panels.len() as f64 * step_y - GAP;
        let title_end =
            MARGIN + text_width(&self.title, 19.0, true).max(text_width(&self.subtitle, 13.0, false)) + MARGIN;
        let bar_width = 96.0 + size;
        let bar = (bottom - top - 20.0).clamp(120.0, 360.0);
        let height = (bottom + below).max(top + 20.0 + bar + MARGIN) + MARGIN / 2.0;
        let mut drawing = Drawing::new((right + bar_width + MARGIN).max(title_end), height);
        drawing.text(&self.title, (MARGIN, MARGIN + 2.0), Style::plain(19.0, INK).bold());
        drawing.text(&self.subtitle, (MARGIN, MARGIN + 26.0), Style::plain(13.0, MUTED));

        let largest = self.largest();
        for (i, line) in self.panels.iter().enumerate() {
            let y0 = top + i as f64 * step_y + 20.0;
            self.words_down(&mut drawing, (left, y0), cell, size);
            for (j, panel) in line.iter().enumerate() {
                let x0 = left + j as f64 * step_x;
                drawing.text(&panel.title, (x0, y0 - 10.0), Style::plain(12.0, INK).bold());
                drawing.rectangle((x0, y0), (panel_width, panel_height), [244, 244, 245]);
                for (row, cells) in panel.cells.iter().enumerate() {
                    for (column, x) in cells.iter().enumerate().filter_map(|(c, x)| Some((c, (*x)?))) {
                        let at = (x0 + column as f64 * cell, y0 + row as f64 * cell);
                        drawing.rectangle(at, (cell, cell), self.color(x / largest));
                    }
                }
            }
        }
        for j in 0..self.panels.last().map_or(0, Vec::len) {
            let x0 = left + j as f64 * step_x;
            for (column, word) in self.columns.iter().enumerate().step_by(every(cell)) {
                let at = (x0 + (column as f64 + 0.5) * cell + size * 0.3, bottom + 8.0);
                drawing.text(shortened(word), at, Style::plain(size, INK).at(Anchor::End).turned(-45.0));
            }
        }
        self.bar(&mut drawing, right + 26.0, top + 20.0, bar);
        drawing
    }

    fn words_down(&self, drawing: &mut Drawing, (left, top): (f64, f64), cell: f64, size: f64) {
        for (row, word) in self.rows.iter().enumerate().step_by(every(cell)) {
            let at = (left - 7.0, top + (row as f64 + 0.5) * cell);
            drawing.text(shortened(word), at, Style::plain(size, INK).at(Anchor::End));
        }
    }

    fn bar(&self, drawing: &mut Drawing, x: f64, top: f64, height: f64) {
        let steps = 64;
        let (largest, least) = (self.largest(), if self.signed { -1.0 } else { 0.0 });
        let at = |part: f64| least + part * (1.0 - least);
        for i in 0..steps {
            let part = |i: usize| height * i as f64 / steps as f64;
            let color = self.color(at(1.0 - (i as f64 + 0.5) / steps as f64));
            drawing.rectangle((x, top + part(i)), (16.0, part(i + 1) - part(i)), color);
        }
        for i in 0..=4 {
            let y = top + height * (1.0 - i as f64 / 4.0);
            drawing.line(vec![(x + 16.0, y), (x + 20.0, y)], 1.0, MUTED);
            let value = largest * at(i as f64 / 4.0);
            let digits = if largest < 0.05 { 4 } else { 2 };
            drawing.text(format!("{value:.digits$}"), (x + 24.0, y), Style::plain(11.0, MUTED));
        }
        let style = Style::plain(12.0, INK).at(Anchor::Middle).turned(-90.0);
        drawing.text(&self.unit, (x + 66.0, top + height / 2.0), style);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::Shape;

    #[test]
    fn cells_have_their_colour_and_nothing_leaves_the_page() {
        for n in [1, 7, 200] {
            let words: Vec<String> = (0..n).map(|i| format!("a rather long word {i}")).collect();
            let cells: Vec<Vec<Option<f64>>> =
                (0..n).map(|i| (0..n).map(|j| (j <= i).then_some(1.0 / (i + 1) as f64)).collect()).collect();
            let panel = Panel { title: "layer 0, head 0".into(), cells };
            let figure = Figure {
                title: "Attention weights".into(),
                subtitle: "of a test".into(),
                rows: words.clone(),
                columns: words,
                panels: vec![vec![panel.clone(), panel.clone()], vec![panel.clone(), panel]],
                unit: "Probability".into(),
                signed: false,
            };
            let drawing = figure.draw();
            let (mut colored, mut words) = (0, 0);
            for shape in &drawing.shapes {
                match shape {
                    Shape::Rectangle { x, y, width, height, .. } => {
                        assert!(*x >= 0.0 && *y >= 0.0 && x + width <= drawing.width && y + height <= drawing.height);
                        colored += 1;
                    }
                    Shape::Text { text, x, y, style } => {
                        words += 1;
                        let width = text_width(text, style.size, style.bold);
                        let (sin, cos) = style.angle.to_radians().sin_cos();
                        let (from, to) = match style.anchor {
                            Anchor::Start => (0.0, width),
                            Anchor::Middle => (-width / 2.0, width / 2.0),
                            Anchor::End => (-width, 0.0),
                        };
                        for end in [from, to] {
                            let (x, y) = (x + end * cos, y + end * sin);
                            assert!(
                                (0.0..=drawing.width).contains(&x) && (0.0..=drawing.height).contains(&y),
                                "{text}"
                            );
                        }
                    }
                    _ => {}
                }
            }
            // Visible cells, a background a panel, and the bar's 64 steps; no more words than can be read.
            assert_eq!(colored, 4 * (n * (n + 1) / 2 + 1) + 64);
            assert!((7..220).contains(&words), "{words}");
        }
    }
}
