//! `attn train classify`: classifiers of texts, on any device.
//!
//! - `flags`: the settings.
//! - `prepare`: tables, words and vectors become rows.
//! - `run`: one run, from its first or last step on, to its end.
//! - `several`: runs side by side: a learning curve, or a sweep.

mod flags;
mod prepare;
mod run;
mod several;

use super::device::DeviceArgs;
use super::{Status, print_line};
use crate::error::{Error, Result};
use flags::Flags;
use std::path::{Path, PathBuf};

/// Train a classifier of texts
///
/// The table given by --train is learned, that given by --dev says after each epoch how good it is. The directory given by
/// --out receives log.jsonl and the last checkpoint; its folder best/ that of the best evaluation, which in the end reads
/// --test, once. TensorBoard reads the directory.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  attn train classify --model mean-logreg --train train.tsv --dev dev.tsv --text-column 1 --label-column 2 \\
    --vectors glove.txt --lowercase --freeze-embeddings --out logreg
  attn train classify --model bow-logreg --train train.csv --dev dev.csv --text-column text --label-column label --out bow
  attn train classify --model head-attention --examples 10,100,1000 … --out curve      a learning curve
  attn train classify --recipe recipes/mean-ffnn.toml --train … --dev … --vectors … --out ffnn
  attn train classify --resume ffnn --epochs 40                                          goes on where that stopped")]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Settings by the flags' long names, in TOML; flags beside it count more
    #[arg(long, value_name = "FILE.toml", conflicts_with = "resume")]
    recipe: Option<PathBuf>,
    /// Train every run that this file describes, each in a folder of --out: [base] holds settings of all runs by the flags'
    /// long names, [grid] lists whose every combination is a run, [[run]] named runs. Flags beside it count less; what they
    /// and [base] say that means nothing to a run's model is left out. The test table is read once, by the best run. Given
    /// the same command again, it goes on
    #[arg(long, value_name = "FILE.toml", conflicts_with = "resume")]
    sweep: Option<PathBuf>,
    /// Directory for the log and the checkpoints
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    out: Option<PathBuf>,
    /// Write over what --out holds
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Go on, bit for bit, with the run in this directory. Its settings hold; only --epochs, --patience and where the
    /// tables are may change
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    resume: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Reads a file of settings.
fn toml_file<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::file(path, format!("cannot be read: {e}"), "give a file of settings in TOML"))?;
    toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        let remedy = "give flags by their long names without dashes, as in `lr = 1e-3`";
        Error::file(path, format!("is wrong in line {line}: {}", e.message()), remedy)
    })
}

/// Runs the command.
///
/// # Errors
/// If a flag, a table, the vectors or the device will not do; if a run was interrupted, with how to resume it.
pub(super) fn main(args: Args) -> Result<Status> {
    let flags = match &args.recipe {
        Some(recipe) => args.flags.over(&toml_file(recipe)?),
        None => args.flags.clone(),
    };
    if let Some(from) = &args.resume {
        let done = run::run(&flags, run::Place::Resumed(from), &args.device)?;
        return finish(&done);
    }
    let out = args.out.as_deref().expect("clap asks for it");
    if let Some(sweep) = &args.sweep {
        return several::sweep(sweep, &flags, out, args.overwrite, &args.device);
    }
    if flags.examples.as_ref().is_some_and(|all| all.len() > 1) {
        return several::learning_curve(&flags, out, args.overwrite, &args.device);
    }
    let done = run::run(&flags, run::Place::New { out, overwrite: args.overwrite }, &args.device)?;
    finish(&done)
}

fn finish(done: &run::Done) -> Result<Status> {
    if let Some(test) = done.test()? {
        print_line(format_args!("test: {}", run::figures(&test)))?;
        print_line(run::confusion(&test.confusion, &done.labels))?;
    }
    Ok(Status::Done)
}
