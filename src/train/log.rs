//! What a run reports: `log.jsonl`, a row a step, and validation rows; and the same for TensorBoard, with text samples.

use super::Evaluation;
use super::tensorboard::{self, Events};
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
    events: Events,
}

/// The log's name in its directory.
pub const LOG: &str = "log.jsonl";

fn failed(path: &Path, e: std::io::Error) -> Error {
    Error::file(path, format!("cannot be written: {e}"), "give an --out on a disk with space that you may write to")
}

fn read(directory: &Path) -> Result<String> {
    let path = directory.join(LOG);
    std::fs::read_to_string(&path)
        .map_err(|e| Error::file(&path, format!("cannot be read: {e}"), "restore or remove it"))
}

fn parsed(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok()
}

/// The rows of a run, in their order; one that is cut short is left out.
///
/// # Errors
/// If the log cannot be read.
pub fn rows(directory: &Path) -> Result<Vec<Value>> {
    Ok(read(directory)?.lines().filter_map(parsed).collect())
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
        if let Some(from) = from.filter(|d| d.join(LOG).exists()) {
            let reached = |line: &&str| parsed(line).is_some_and(|r| r["step"].as_u64().is_some_and(|s| s <= step));
            kept = read(from)?.lines().filter(reached).flat_map(|line| [line, "\n"]).collect();
        }
        let part = directory.join("log.jsonl.part");
        std::fs::write(&part, &kept).and_then(|()| std::fs::rename(&part, &path)).map_err(|e| failed(&path, e))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| failed(&path, e))?;
        let here = from == Some(directory);
        if !here {
            tensorboard::remove(directory)?;
        }
        let mut log = Log { path, file, events: Events::open(directory, if here { step + 1 } else { 0 })? };
        // Elsewhere, TensorBoard has not seen them yet.
        kept.lines().filter(|_| !here).filter_map(parsed).try_for_each(|row| log.scalars(&row))?;
        Ok(log)
    }

    fn scalars(&mut self, row: &Value) -> Result<()> {
        let Some(fields) = row.as_object() else { return Ok(()) };
        let numbers = fields.iter().filter(|(name, _)| *name != "step");
        let numbers: Vec<(&str, f64)> = numbers.filter_map(|(n, v)| Some((n.as_str(), v.as_f64()?))).collect();
        self.events.scalars(row["step"].as_u64().unwrap_or_default(), &numbers)
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

    /// What the model writes after so many steps: for TensorBoard only, as code, line by line as it is.
    pub fn sample(&mut self, step: u64, text: &str) -> Result<()> {
        let code: String = text.lines().flat_map(|line| ["    ", line, "\n"]).collect();
        self.events.text(step, "sample", &code)
    }

    /// Any row; its numbers go to TensorBoard too.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn row(&mut self, row: Value) -> Result<()> {
        self.scalars(&row)?;
        self.file.write_all(format!("{row}\n").as_bytes()).map_err(|e| failed(&self.path, e))
    }
}
