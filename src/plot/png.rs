//! A drawing as pixels: shapes and the bundled font's outlines, painted with their coverage.

use super::{Anchor, BASELINE, Color, Drawing, Shape, Style, glyph, text_width};
use ab_glyph::{Font, OutlineCurve, Point, point};
use ab_glyph_rasterizer::Rasterizer;

/// A PNG file, `scale` times as large as the drawing says.
pub fn to_png(drawing: &Drawing, scale: usize) -> Vec<u8> {
    let (width, height) = size(drawing, scale);
    let mut file = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut file, width as u32, height as u32);
    encoder.set_color(::png::ColorType::Rgb);
    let written = encoder.write_header().and_then(|mut w| w.write_image_data(&paint(drawing, scale)));
    written.expect("encoding to memory cannot fail");
    file
}

fn size(drawing: &Drawing, scale: usize) -> (usize, usize) {
    (drawing.width as usize * scale, drawing.height as usize * scale)
}

/// RGB rows from the top.
pub(super) fn paint(drawing: &Drawing, scale: usize) -> Vec<u8> {
    let (width, height) = size(drawing, scale);
    let s = scale as f64;
    let mut page = Page { pixels: vec![255; 3 * width * height], width, height };
    for shape in &drawing.shapes {
        match shape {
            Shape::Rectangle { x, y, width, height, color } => {
                page.rectangle([x * s, y * s, (x + width) * s, (y + height) * s], *color);
            }
            Shape::Line { points, width, color } => {
                for pair in points.windows(2) {
                    page.segment((pair[0].0 * s, pair[0].1 * s), (pair[1].0 * s, pair[1].1 * s), width * s, *color);
                }
            }
            Shape::Dot { x, y, radius, color } => {
                let turn = |i: usize| std::f64::consts::TAU * i as f64 / 32.0;
                let corner = |i| ((x + radius * turn(i).cos()) * s, (y + radius * turn(i).sin()) * s);
                page.polygon(&(0..32).map(corner).collect::<Vec<_>>(), *color);
            }
            Shape::Text { text, x, y, style } => page.text(text, (x * s, y * s), style, s),
        }
    }
    page.pixels
}

struct Page {
    pixels: Vec<u8>,
    width: usize,
    height: usize,
}

/// A closed outline's curve.
enum Curve {
    Line([Point; 2]),
    Quad([Point; 3]),
    Cubic([Point; 4]),
}

impl Page {
    /// Mixes a colour into a pixel; outside the page nothing happens.
    fn mix(&mut self, x: i64, y: i64, color: Color, coverage: f32) {
        if x < 0 || y < 0 || x >= self.width as i64 || y >= self.height as i64 {
            return;
        }
        let at = 3 * (y as usize * self.width + x as usize);
        for (pixel, color) in self.pixels[at..at + 3].iter_mut().zip(color) {
            *pixel = (*pixel as f32 + (color as f32 - *pixel as f32) * coverage.min(1.0)).round() as u8;
        }
    }

    /// Edges on whole pixels, so that neighbouring cells neither overlap nor leave a seam.
    fn rectangle(&mut self, [left, top, right, bottom]: [f64; 4], color: Color) {
        for y in top.round() as i64..bottom.round() as i64 {
            (left.round() as i64..right.round() as i64).for_each(|x| self.mix(x, y, color, 1.0));
        }
    }

    fn segment(&mut self, a: (f64, f64), b: (f64, f64), width: f64, color: Color) {
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        let length = (dx * dx + dy * dy).sqrt();
        if length == 0.0 {
            return;
        }
        let (nx, ny) = (-dy / length * width / 2.0, dx / length * width / 2.0);
        self.polygon(&[(a.0 + nx, a.1 + ny), (b.0 + nx, b.1 + ny), (b.0 - nx, b.1 - ny), (a.0 - nx, a.1 - ny)], color);
    }

    fn polygon(&mut self, corners: &[(f64, f64)], color: Color) {
        let at = |i: usize| point(corners[i % corners.len()].0 as f32, corners[i % corners.len()].1 as f32);
        self.fill(&(0..corners.len()).map(|i| Curve::Line([at(i), at(i + 1)])).collect::<Vec<_>>(), color);
    }

    fn text(&mut self, text: &str, (x, y): (f64, f64), style: &Style, scale: f64) {
        let size = style.size * scale;
        let mut along = match style.anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => -text_width(text, size, style.bold) / 2.0,
            Anchor::End => -text_width(text, size, style.bold),
        };
        let (sin, cos) = style.angle.to_radians().sin_cos();
        for c in text.chars() {
            let glyph = glyph(c, style.bold);
            let unit = size * glyph.unit;
            // From the font's units, upwards from the baseline, to the turned line's pixels.
            let place = |p: Point| {
                let (u, v) = (along + p.x as f64 * unit, BASELINE * size - p.y as f64 * unit);
                point((x + u * cos - v * sin) as f32, (y + u * sin + v * cos) as f32)
            };
            if let Some(outline) = glyph.font.outline(glyph.id) {
                let placed = outline.curves.iter().map(|curve| match curve {
                    OutlineCurve::Line(a, b) => Curve::Line([place(*a), place(*b)]),
                    OutlineCurve::Quad(a, b, c) => Curve::Quad([place(*a), place(*b), place(*c)]),
                    OutlineCurve::Cubic(a, b, c, d) => Curve::Cubic([place(*a), place(*b), place(*c), place(*d)]),
                });
                let placed: Vec<Curve> = placed.collect();
                self.fill(&placed, style.color);
            }
            along += size * glyph.advance();
        }
    }

    /// Fills closed curves, on a grid of just their size.
    fn fill(&mut self, curves: &[Curve], color: Color) {
        let points = || {
            curves.iter().flat_map(|curve| match curve {
                Curve::Line(p) => &p[..],
                Curve::Quad(p) => &p[..],
                Curve::Cubic(p) => &p[..],
            })
        };
        let least = |value: fn(&Point) -> f32| points().map(value).fold(f32::INFINITY, f32::min);
        let (left, top) = (least(|p| p.x).floor() - 1.0, least(|p| p.y).floor() - 1.0);
        let (right, bottom) = (-least(|p| -p.x), -least(|p| -p.y));
        if !(left.is_finite() && right.is_finite() && top.is_finite() && bottom.is_finite()) {
            return;
        }
        let mut grid = Rasterizer::new((right - left) as usize + 2, (bottom - top) as usize + 2);
        let moved = |p: Point| point(p.x - left, p.y - top);
        for curve in curves {
            match *curve {
                Curve::Line([a, b]) => grid.draw_line(moved(a), moved(b)),
                Curve::Quad([a, b, c]) => grid.draw_quad(moved(a), moved(b), moved(c)),
                Curve::Cubic([a, b, c, d]) => grid.draw_cubic(moved(a), moved(b), moved(c), moved(d)),
            }
        }
        let (left, top) = (left as i64, top as i64);
        grid.for_each_pixel_2d(|x, y, coverage| {
            if coverage > 0.0 {
                self.mix(left + x as i64, top + y as i64, color, coverage);
            }
        });
    }
}
