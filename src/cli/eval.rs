//! `attn eval`: how well a checkpoint predicts a text.

use super::device::DeviceArgs;
use super::{Status, print_line};
use crate::data::{Format, Text, read};
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::io::Target;
use crate::model::Gpt;
use crate::train::checkpoint::Checkpoint;
use crate::train::{Evaluation, Evaluator, Progress};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Evaluate a model
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    model: Model,
}

#[derive(Debug, clap::Subcommand)]
enum Model {
    Lm(LmArgs),
}

/// Loss and perplexity of a language model on a text
///
/// The text is taken as it is and cut into consecutive blocks, the last perhaps short; every character but the first
/// is predicted once, from those before it in its block.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  attn eval lm --checkpoint run --text other.txt --json result.json")]
struct LmArgs {
    /// Checkpoint that `attn train lm` wrote; may be repeated
    #[arg(long, value_name = "DIR", required = true)]
    checkpoint: Vec<PathBuf>,
    /// Text in UTF-8, in the model's characters; may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    text: Vec<PathBuf>,
    /// Blocks computed at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Also write the results here: an object, or for several checkpoints or texts {"rows": […]}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs the command.
///
/// # Errors
/// If a checkpoint or a text will not do.
pub fn main(args: Args) -> Result<Status> {
    let Model::Lm(args) = args.model;
    let target = args.json.as_deref().map(Target::new).transpose()?;
    let device = args.device.open(Precision::F32)?;
    let mut rows = Vec::new();
    for directory in &args.checkpoint {
        let checkpoint = Checkpoint::open(directory)?;
        for path in &args.text {
            let found = evaluate(&checkpoint, path, args.batch_size as usize, &device)?;
            let Evaluation { tokens, loss } = found;
            let perplexity = found.perplexity();
            let (directory, path) = (directory.display().to_string(), path.display().to_string());
            let name = if args.checkpoint.len() * args.text.len() > 1 {
                format!("{directory}, {path}: ")
            } else {
                String::new()
            };
            print_line(format_args!("{name}tokens {tokens}, loss {loss:.6}, perplexity {perplexity:.4}"))?;
            rows.push(json!({
                "checkpoint": directory, "text": path, "tokens": tokens, "loss": loss, "perplexity": perplexity
            }));
        }
    }
    if let Some(target) = target {
        let value = if rows.len() == 1 { rows.remove(0) } else { json!({ "rows": Value::Array(rows) }) };
        target.write(|w| writeln!(w, "{value:#}"))?;
    }
    Ok(Status::Done)
}

fn evaluate(checkpoint: &Checkpoint, path: &Path, rows: usize, device: &Arc<dyn Device>) -> Result<Evaluation> {
    let (corpus, _) = read(&Text::open(path)?, &Format::default(), checkpoint.tokenizer(), |_| ())?;
    if corpus.tokens().len() < 2 {
        let unit = checkpoint.tokenizer().unit();
        let problem = format!("has fewer than two {unit}, so that there is nothing to predict");
        return Err(Error::file(path, problem, "give a longer text"));
    }
    let gpt = Gpt::new(checkpoint.config().clone())?;
    let block = gpt.config().block;
    let windows = corpus.windows(block, block).count();
    let evaluator = Evaluator::new(gpt.loss(rows.min(windows), 0.0)?, device.clone())?;
    checkpoint.load_parameters(evaluator.plan())?;
    let mut progress = Progress::new("evaluating", 0, windows as u64);
    let found = evaluator.run(&corpus, corpus.windows(block, block), |done| progress.reached(done as u64))?;
    progress.finish();
    Ok(found)
}
