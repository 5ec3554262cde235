//! A drawing as SVG. Text stays text: a viewer shows it in its own font where it has not ours.

use super::{Anchor, BASELINE, Color, Drawing, Shape};
use std::fmt::Write;

/// The file's text.
pub fn to_svg(drawing: &Drawing) -> String {
    let Drawing { width, height, shapes } = drawing;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"Inter, Helvetica, Arial, sans-serif\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for shape in shapes {
        let _ = match shape {
            Shape::Rectangle { x, y, width, height, color } => {
                let (x, y, width, height) = (n(*x), n(*y), n(*width), n(*height));
                let fill = rgb(*color);
                writeln!(svg, r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"/>"#)
            }
            Shape::Line { points, width, color } => {
                let points: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", n(*x), n(*y))).collect();
                let (points, stroke) = (points.join(" "), rgb(*color));
                writeln!(
                    svg,
                    r#"<polyline points="{points}" fill="none" stroke="{stroke}" stroke-width="{width}" stroke-linejoin="round"/>"#
                )
            }
            Shape::Dot { x, y, radius, color } => {
                let (x, y, fill) = (n(*x), n(*y), rgb(*color));
                writeln!(svg, r#"<circle cx="{x}" cy="{y}" r="{radius}" fill="{fill}"/>"#)
            }
            Shape::Text { text, x, y, style } => {
                let anchor = match style.anchor {
                    Anchor::Start => "start",
                    Anchor::Middle => "middle",
                    Anchor::End => "end",
                };
                let weight = if style.bold { r#" font-weight="600""# } else { "" };
                let turn = match style.angle {
                    0.0 => String::new(),
                    angle => format!(r#" transform="rotate({angle} {} {})""#, n(*x), n(*y)),
                };
                let (at, size, fill) = ((n(*x), n(y + BASELINE * style.size)), n(style.size), rgb(style.color));
                writeln!(
                    svg,
                    r#"<text x="{}" y="{}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}{turn} xml:space="preserve">{}</text>"#,
                    at.0,
                    at.1,
                    escaped(text)
                )
            }
        };
    }
    svg + "</svg>\n"
}

/// Two decimals are finer than any screen.
fn n(x: f64) -> f64 {
    (100.0 * x).round() / 100.0
}

fn rgb([r, g, b]: Color) -> String {
    format!("rgb({r},{g},{b})")
}

/// Text as XML has it; a control character, which XML has not, as the sign for one that nobody knows.
fn escaped(text: &str) -> String {
    let one = |c: char| match c {
        '&' => "&amp;".into(),
        '<' => "&lt;".into(),
        '>' => "&gt;".into(),
        c if c.is_control() => "\u{fffd}".into(),
        c => String::from(c),
    };
    text.chars().map(one).collect()
}
