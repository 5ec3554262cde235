//! `log.jsonl`: a row a step, and validation rows.

use super::Evaluation;
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// An open log. Every row is written at once, so that it can be watched, and survives a crash.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

/// The log's name in its directory.
pub const LOG: &str = "log.jsonl";

fn failed(path: &Path, e: std::io::Error) -> Error {
    Error::file(path, format!("cannot be written: {e}"), "give an --out on a disk with space that you may write to")
}

impl Log {
    /// Starts a log in `directory`. Where `from` is given, it begins with that directory's rows up to and with `step`:
    /// those of a run that went on past its last checkpoint are dropped, as they will come again.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn open(directory: &Path, from: Option<&Path>, step: u64) -> Result<Log> {
        let path = directory.join(LOG);
        let mut kept = String::new();
        if let Some(from) = from.map(|d| d.join(LOG)).filter(|p| p.exists()) {
            let text = std::fs::read_to_string(&from)
                .map_err(|e| Error::file(&from, format!("cannot be read: {e}"), "restore or remove it"))?;
            let reached = |line: &&str| {
                serde_json::from_str::<Value>(line).is_ok_and(|row| row["step"].as_u64().is_some_and(|s| s <= step))
            };
            kept = text.lines().filter(reached).flat_map(|line| [line, "\n"]).collect();
        }
        let part = directory.join("log.jsonl.part");
        std::fs::write(&part, kept).and_then(|()| std::fs::rename(&part, &path)).map_err(|e| failed(&path, e))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| failed(&path, e))?;
        Ok(Log { path, file })
    }

    /// A step's row.
    pub fn step(&mut self, step: u64, loss: f64, lr: f64, tokens_per_s: f64) -> Result<()> {
        self.row(json!({ "step": step, "loss": loss, "lr": lr, "tokens_per_s": tokens_per_s.round() }))
    }

    /// A validation row.
    pub fn validation(&mut self, step: u64, found: Evaluation) -> Result<()> {
        let mut row = json!({ "step": step, "val_loss": found.loss, "val_perplexity": found.perplexity() });
        if let Some(accuracy) = found.accuracy {
            row["val_accuracy"] = json!(accuracy);
        }
        self.row(row)
    }

    fn row(&mut self, row: Value) -> Result<()> {
        self.file.write_all(format!("{row}\n").as_bytes()).map_err(|e| failed(&self.path, e))
    }
}
