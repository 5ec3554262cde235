//! Figures: a list of shapes, written as SVG and painted as PNG from the same numbers.
//!
//! A [`Drawing`] holds rectangles, lines, dots and text at any angle, which words under a heatmap want; [`svg`] writes
//! them down, and [`png`] paints them with the bundled font, so that what stands where is decided once. [`heat`] draws
//! heatmaps (which [`terminal`] shows without a file), [`chart`] lines over axes; a [`Picture`] is the file.

mod axis;
pub mod chart;
pub mod color;
mod file;
pub mod heat;
pub mod png;
pub mod svg;
pub mod terminal;

pub use axis::{Axis, Ticks};
pub use file::Picture;

use ab_glyph::{Font, FontRef, GlyphId};
use std::sync::LazyLock;

/// Red, green and blue, 0 to 255.
pub type Color = [u8; 3];

/// Of text that is read.
pub const INK: Color = [24, 24, 27];
/// Of text that explains.
pub const MUTED: Color = [113, 113, 122];
/// Of lines behind what is drawn.
pub const GRID: Color = [228, 228, 231];

/// Where a text's given point is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// At its start.
    Start,
    /// In its middle.
    Middle,
    /// At its end.
    End,
}

/// How a text looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Style {
    /// Height of a line, in pixels.
    pub size: f64,
    /// Whether it is bold.
    pub bold: bool,
    /// Its colour.
    pub color: Color,
    /// Which of its points is placed; halfway up its lower-case letters.
    pub anchor: Anchor,
    /// Degrees by which it is turned around that point, clockwise.
    pub angle: f64,
}

impl Style {
    /// Plain text that starts at its point.
    pub fn plain(size: f64, color: Color) -> Style {
        Style { size, bold: false, color, anchor: Anchor::Start, angle: 0.0 }
    }

    /// The same in bold.
    pub fn bold(self) -> Style {
        Style { bold: true, ..self }
    }

    /// The same with another anchor.
    pub fn at(self, anchor: Anchor) -> Style {
        Style { anchor, ..self }
    }

    /// The same, turned.
    pub fn turned(self, angle: f64) -> Style {
        Style { angle, ..self }
    }
}

/// One thing on a drawing; pixels count from the upper left corner.
#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Rectangle { x: f64, y: f64, width: f64, height: f64, color: Color },
    Line { points: Vec<(f64, f64)>, width: f64, color: Color },
    Dot { x: f64, y: f64, radius: f64, color: Color },
    Text { text: String, x: f64, y: f64, style: Style },
}

/// Shapes on white, the later over the earlier.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawing {
    width: f64,
    height: f64,
    shapes: Vec<Shape>,
}

impl Drawing {
    /// An empty drawing of this size in pixels.
    pub fn new(width: f64, height: f64) -> Drawing {
        Drawing { width: width.ceil(), height: height.ceil(), shapes: Vec::new() }
    }

    /// A filled rectangle.
    pub fn rectangle(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), color: Color) {
        self.shapes.push(Shape::Rectangle { x, y, width, height, color });
    }

    /// A line through points.
    pub fn line(&mut self, points: Vec<(f64, f64)>, width: f64, color: Color) {
        self.shapes.push(Shape::Line { points, width, color });
    }

    /// A filled circle.
    pub fn dot(&mut self, (x, y): (f64, f64), radius: f64, color: Color) {
        self.shapes.push(Shape::Dot { x, y, radius, color });
    }

    /// A text.
    pub fn text(&mut self, text: impl Into<String>, (x, y): (f64, f64), style: Style) {
        self.shapes.push(Shape::Text { text: text.into(), x, y, style });
    }
}

/// Below a text's point lies its baseline, by so much of its size: half the height of lower-case letters.
const BASELINE: f64 = 0.36;

/// A character's outline, and what measures it.
struct Glyph {
    font: &'static FontRef<'static>,
    id: GlyphId,
    /// Pixels for each of the font's units, at size 1.
    unit: f64,
}

/// A character in Inter, which is bundled with the commonest characters, else in DejaVu Sans, which knows more: accents,
/// Greek, Cyrillic, arrows. What neither has is shown as the sign for it.
fn glyph(c: char, bold: bool) -> Glyph {
    static FONTS: LazyLock<[FontRef<'static>; 3]> = LazyLock::new(|| {
        let files: [&'static [u8]; 3] = [
            include_bytes!("../../assets/inter-regular.ttf"),
            include_bytes!("../../assets/inter-semibold.ttf"),
            include_bytes!("../../assets/dejavu-sans-subset.ttf"),
        ];
        files.map(|bytes| FontRef::try_from_slice(bytes).expect("the bundled fonts are valid"))
    });
    let (own, fallback) = (&FONTS[bold as usize], &FONTS[2]);
    let in_font = |font: &'static FontRef<'static>, c: char| {
        let id = font.glyph_id(c);
        (id.0 != 0).then(|| Glyph { font, id, unit: 1.0 / font.units_per_em().map_or(1000.0, f64::from) })
    };
    let found = in_font(own, c).or_else(|| in_font(fallback, c)).or_else(|| in_font(fallback, '\u{fffd}'));
    found.expect("the bundled fonts have the sign for an unknown character")
}

impl Glyph {
    /// How far the next character is, in pixels at size 1.
    fn advance(&self) -> f64 {
        self.font.h_advance_unscaled(self.id) as f64 * self.unit
    }
}

/// How wide a text is, in pixels.
pub fn text_width(text: &str, size: f64, bold: bool) -> f64 {
    size * text.chars().map(|c| glyph(c, bold).advance()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_drawing_as_svg_and_as_pixels() {
        let mut drawing = Drawing::new(60.0, 40.0);
        drawing.rectangle((10.0, 10.0), (20.0, 5.0), [255, 0, 0]);
        drawing.text("a<b", (5.0, 30.0), Style::plain(12.0, INK).turned(-45.0));
        let svg = svg::to_svg(&drawing);
        assert!(svg.contains(r#"<rect x="10" y="10" width="20" height="5" fill="rgb(255,0,0)"/>"#), "{svg}");
        assert!(svg.contains("rotate(-45 5 30)") && svg.contains(">a&lt;b</text>"), "{svg}");
        let (pixels, width) = (png::paint(&drawing, 2), 120);
        let at = |x: usize, y: usize| &pixels[3 * (y * width + x)..][..3];
        assert_eq!(
            (at(20, 20), at(59, 29), at(60, 29), at(59, 30)),
            (&[255, 0, 0][..], &[255, 0, 0][..], &[255; 3][..], &[255; 3][..])
        );
        // Turned text leaves ink above its point, to the right.
        let dark = |x0: usize, y0: usize| (y0..y0 + 20).any(|y| (x0..x0 + 20).any(|x| at(x, y)[0] < 100));
        assert!(dark(15, 40) && !dark(60, 60));
    }

    #[test]
    fn the_fonts_have_the_signs_for_what_cannot_be_seen() {
        let unknown = glyph('\u{e000}', false).id;
        for c in "·↵→…äαжa".chars() {
            assert!([false, true].iter().all(|&bold| glyph(c, bold).id != unknown), "{c}");
        }
    }

    #[test]
    fn widths_are_the_fonts() {
        assert!(text_width("mm", 10.0, false) > 2.0 * text_width("i", 10.0, false));
        assert!((text_width("abc", 20.0, false) - 2.0 * text_width("abc", 10.0, false)).abs() < 1e-9);
        assert_eq!(text_width("", 10.0, true), 0.0);
    }
}
