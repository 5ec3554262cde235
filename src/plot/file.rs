//! Files that a drawing goes to: PNG or SVG, by their names.

use super::{Drawing, png, svg};
use crate::error::{Error, Result};
use crate::io::Target;
use std::path::Path;

/// A picture to be written, known to be writable when it was made.
#[derive(Debug, Clone)]
pub struct Picture {
    to: Target,
    format: Format,
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Png,
    Svg,
}

impl Picture {
    /// Checks that `path` names a picture and can be written.
    ///
    /// # Errors
    /// If it ends neither in .png nor in .svg, or as [`Target::new`].
    pub fn new(path: &Path) -> Result<Picture> {
        let extension = path.extension().map(|e| e.to_ascii_lowercase());
        let format = match extension.as_ref().and_then(|e| e.to_str()) {
            Some("png") => Format::Png,
            Some("svg") => Format::Svg,
            _ => return Err(Error::file(path, "ends neither in .png nor in .svg", "give it such a name")),
        };
        Ok(Picture { to: Target::new(path)?, format })
    }

    /// `name.svg` and `name.png` in a folder.
    ///
    /// # Errors
    /// As [`Target::new`].
    pub fn both(folder: &Path, name: &str) -> Result<[Picture; 2]> {
        let picture = |extension: &str| Picture::new(&folder.join(format!("{name}.{extension}")));
        Ok([picture("svg")?, picture("png")?])
    }

    /// Writes the drawing; pixels are twice as many as it says.
    ///
    /// # Errors
    /// As [`Target::write`].
    pub fn write(&self, drawing: &Drawing) -> Result<()> {
        let bytes = match self.format {
            Format::Png => png::to_png(drawing, 2),
            Format::Svg => svg::to_svg(drawing).into_bytes(),
        };
        self.to.write(|w| w.write_all(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_refused() {
        let error = Picture::new(Path::new("heat.jpg")).unwrap_err().to_string();
        assert!(error.starts_with("heat.jpg: ends neither in .png nor in .svg"), "{error}");
    }
}
