//! Heatmaps in a terminal: a block for each cell, the fuller the larger its number.

use super::heat::{Figure, Panel};
use std::fmt::Write;

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Between panels that stand side by side.
const GAP: usize = 3;
/// Columns for the words of rows.
const WORDS: usize = 12;

/// The figure for a terminal of so many columns. Where not even one panel fits, neighbouring cells become one,
/// which shows the largest of them.
pub fn to_text(figure: &Figure, width: usize) -> String {
    let longest = figure.rows.iter().map(|w| w.chars().count()).max().unwrap_or(0);
    let words = longest.min(WORDS) + 1;
    let room = width.saturating_sub(words).max(8);
    let across = figure.columns.len().max(1);
    let merged = across.div_ceil(room);
    let shown = across.div_ceil(merged);
    // Two columns make a cell about as wide as it is high.
    let cell = if 2 * shown <= room { 2 } else { 1 };
    let titles = figure.panels.iter().flatten().map(|panel| panel.title.chars().count()).max().unwrap_or(0);
    let panel_width = (cell * shown).max(titles.min(room));
    let side = ((room + GAP) / (panel_width + GAP)).max(1);
    let mut text = String::new();
    let _ = writeln!(text, "{}\n{}", figure.title, figure.subtitle);
    if merged > 1 {
        let _ = writeln!(text, "each block stands for {merged} × {merged} weights and shows the largest");
    }
    let header: String = figure.columns.iter().step_by(merged).map(|w| fitted(w, cell)).collect();
    let largest = figure.largest();
    for line in figure.panels.iter().flat_map(|line| line.chunks(side)) {
        text.push('\n');
        let mut each = |left: &str, of: &dyn Fn(&Panel) -> String| {
            let parts: Vec<String> = line.iter().map(|panel| fitted(&of(panel), panel_width)).collect();
            let joined = parts.join(&" ".repeat(GAP));
            let _ = writeln!(text, "{}", format!("{:>words$}{joined}", format!("{left} ")).trim_end());
        };
        each("", &|panel| panel.title.clone());
        each("", &|_| header.clone());
        for (i, row) in figure.rows.iter().enumerate().step_by(merged) {
            let word: String = row.chars().take(WORDS).collect();
            each(&word, &|panel| {
                let rows = &panel.cells[i..(i + merged).min(panel.cells.len())];
                (0..shown).map(|j| block(rows, j * merged, merged, largest).to_string().repeat(cell)).collect()
            });
        }
    }
    let _ = writeln!(text, "\n{}: · nearly 0, {} up to {largest:.3}", figure.unit, String::from_iter(BLOCKS));
    text
}

/// Just so many characters of a text.
fn fitted(text: &str, width: usize) -> String {
    text.chars().chain(std::iter::repeat(' ')).take(width).collect()
}

fn block(rows: &[Vec<Option<f64>>], from: usize, merged: usize, largest: f64) -> char {
    let cells = rows.iter().flat_map(|row| row[from..(from + merged).min(row.len())].iter().flatten());
    match cells.copied().reduce(f64::max) {
        None => ' ',
        Some(x) if x < largest / 16.0 => '·',
        Some(x) => BLOCKS[((x / largest * BLOCKS.len() as f64).ceil() as usize).clamp(1, BLOCKS.len()) - 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(n: usize) -> Figure {
        let words: Vec<String> = (0..n).map(|i| String::from((b'a' + (i % 26) as u8) as char)).collect();
        let cell = |i: usize, j: usize| (j <= i).then_some(if i == j { 0.5 } else { 0.0 });
        let cells = (0..n).map(|i| (0..n).map(|j| cell(i, j)).collect()).collect();
        let panel = Panel { title: "head".into(), cells };
        let (title, subtitle, unit) = ("Weights".into(), "of a".into(), "weight".into());
        Figure {
            title,
            subtitle,
            rows: words.clone(),
            columns: words,
            panels: vec![vec![panel.clone(), panel]],
            unit,
            signed: false,
        }
    }

    #[test]
    fn side_by_side_where_there_is_room() {
        let text = to_text(&figure(3), 40);
        let expected = "  head     head\n  a b c    a b c\na ██       ██\nb ··██     ··██\nc ····██   ····██\n";
        assert!(text.contains(expected), "{text}");
        let mut wordy = figure(1);
        wordy.panels[0].iter_mut().for_each(|panel| panel.title = "layer 0, head 1".into());
        assert!(
            to_text(&wordy, 40).contains("  layer 0, head 1   layer 0, head 1\n  a                 a\n"),
            "a title is not cut"
        );
        let narrow = to_text(&figure(3), 12);
        assert!(narrow.contains("c ····██\n\n  head"), "{narrow}");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for (n, width) in [(3, 40), (30, 40), (100, 40), (200, 80)] {
            let text = to_text(&figure(n), width);
            let widest = text.lines().skip(3).map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= width, "{n} words in {width} columns: {widest}");
        }
        // Merged cells show the largest of theirs.
        assert!(to_text(&figure(100), 40).contains("each block stands for 3 × 3"));
    }
}
