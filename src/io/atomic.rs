//! Writing a file whole or not at all: to a temporary file beside it, then renamed.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file to be written, known to be writable when it was made.
#[derive(Debug, Clone)]
pub struct Target {
    /// As the user wrote it, for messages.
    named: PathBuf,
    /// Where links lead.
    path: PathBuf,
    /// Pipes and devices are written in place: a rename would replace them.
    in_place: bool,
}

impl Target {
    /// Checks that `path` can be written, before time is spent on what goes there.
    ///
    /// # Errors
    /// If it is a folder, or its folder is missing or not writable.
    pub fn new(path: &Path) -> Result<Target> {
        let path = if path.as_os_str().is_empty() { Path::new("the empty name") } else { path };
        let resolved = path.canonicalize().unwrap_or_else(|_| path.into());
        let in_place = match resolved.metadata() {
            Ok(m) if m.is_dir() => return Err(Error::file(path, "is a folder", "name a file in it")),
            Ok(m) => !m.is_file(),
            Err(_) => false,
        };
        let target = Target { named: path.into(), path: resolved, in_place };
        if !in_place {
            if path.file_name().is_none() {
                return Err(Error::file(path, "is no file name", "name a file"));
            }
            // Made and removed at once: the same permissions, space and quota are needed later.
            target.temporary()?;
        }
        Ok(target)
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn temporary(&self) -> Result<tempfile::NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".attn-").suffix(".tmp");
        #[cfg(unix)]
        {
            // What a plain create asks for; the umask still applies.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        builder.tempfile_in(self.folder()).map_err(|e| {
            let remedy =
                if self.folder().is_dir() { "choose a folder you may write to" } else { "make its folder first" };
            Error::file(&self.named, format!("cannot be written: {}", e.kind()), remedy)
        })
    }

    /// Writes the file. An error leaves what was there before.
    ///
    /// # Errors
    /// If the system refuses, for instance for lack of space.
    pub fn write(&self, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
        let failed = |e: std::io::Error| {
            Error::file(&self.named, format!("cannot be written: {e}"), "free space or choose another place")
        };
        let to_writer = |file: &File| {
            let mut writer = BufWriter::new(file);
            write(&mut writer)?;
            writer.flush()
        };
        if self.in_place {
            return to_writer(&File::options().write(true).open(&self.path).map_err(failed)?).map_err(failed);
        }
        let temporary = self.temporary()?;
        to_writer(temporary.as_file()).map_err(failed)?;
        temporary.persist(&self.path).map_err(|e| failed(e.error))?;
        Ok(())
    }
}

/// Writes `bytes` to `path`, whole or not at all.
///
/// # Errors
/// As [`Target::new`] and [`Target::write`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    Target::new(path)?.write(|w| w.write_all(bytes))
}
