//! A directory whose files change together or not at all.
//!
//! New files are written into `.part-…` inside the directory and reach the disk; renaming that to `.ready` commits
//! them; then they move to their places. Whoever opens the directory first finishes moves that a crash cut short.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

const PART: &str = ".part-";
const READY: &str = ".ready";

fn failed(path: &Path, e: io::Error) -> Error {
    Error::file(path, format!("cannot be written: {e}"), "give an --out on a disk with space that you may write to")
}

/// Creates the directory, and its parents, where they do not exist.
///
/// # Errors
/// If that fails.
pub fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(|e| failed(directory, e))
}

/// Replaces these files of the directory.
///
/// # Errors
/// If one cannot be written; then all are as they were.
pub fn replace(directory: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
    settle(directory)?;
    let write = || -> io::Result<()> {
        // What a crash left uncommitted is of no use.
        for entry in fs::read_dir(directory)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(PART) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let part = tempfile::Builder::new().prefix(PART).tempdir_in(directory)?;
        for (name, bytes) in files {
            let mut file = File::create(part.path().join(name))?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        fs::rename(part.path(), directory.join(READY))
    };
    write().map_err(|e| failed(directory, e))?;
    settle(directory)
}

/// Finishes a replacement that was committed.
///
/// # Errors
/// If a file cannot be moved.
pub fn settle(directory: &Path) -> Result<()> {
    let ready = directory.join(READY);
    if !ready.is_dir() {
        return Ok(());
    }
    let finish = || -> io::Result<()> {
        for entry in fs::read_dir(&ready)? {
            let entry = entry?;
            fs::rename(entry.path(), directory.join(entry.file_name()))?;
        }
        fs::remove_dir(&ready)
    };
    finish().map_err(|e| failed(&ready, e))
}

/// Whether there is nothing in it, or no such directory.
pub fn is_vacant(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(!directory.exists(), |mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_change_together() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        replace(path, &[("a", b"1".into()), ("b", b"1".into())]).unwrap();
        // Cut short after the commit, with one file moved.
        fs::create_dir(path.join(READY)).unwrap();
        fs::write(path.join(READY).join("b"), "2").unwrap();
        settle(path).unwrap();
        assert_eq!((read("a"), read("b")), ("1".into(), "2".into()));
        // Cut short before it: nothing changed, and nothing is in the way.
        fs::create_dir(path.join(".part-x")).unwrap();
        replace(path, &[("a", b"3".into())]).unwrap();
        assert_eq!((read("a"), read("b")), ("3".into(), "2".into()));
        assert_eq!(fs::read_dir(path).unwrap().count(), 2);
        assert!(replace(&path.join("missing"), &[("a", vec![])]).unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn vacant() {
        let directory = tempfile::tempdir().unwrap();
        assert!(is_vacant(directory.path()) && is_vacant(&directory.path().join("none")));
        fs::write(directory.path().join("f"), "").unwrap();
        assert!(!is_vacant(directory.path()) && !is_vacant(&directory.path().join("f")));
    }
}
