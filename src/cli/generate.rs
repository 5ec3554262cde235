//! `attn generate`: text from a checkpoint.

use super::device::DeviceArgs;
use super::{Status, print};
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::model::{Gpt, Sampler};
use crate::train::checkpoint::Checkpoint;
use std::path::PathBuf;

/// Continue a prompt with a language model
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  attn generate --checkpoint run --prompt \"KING:\" --tokens 200 --top-k 10
  attn generate --checkpoint adder --prompt \"12+34=\" --tokens 4 --greedy")]
pub struct Args {
    /// Checkpoint that `attn train lm` wrote
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// How the text begins; in the model's tokens, at least one
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Tokens to add
    #[arg(long, value_name = "N", default_value_t = 100)]
    tokens: u32,
    /// Divides the logits: below 1 bolder, above 1 more even
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    temperature: f64,
    /// Draw among the N likeliest tokens only [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,
    /// Seed of what is drawn
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Always take the likeliest token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "seed"])]
    greedy: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs the command.
///
/// # Errors
/// If the checkpoint or the prompt will not do.
pub fn main(args: Args) -> Result<Status> {
    if !(args.temperature > 0.0 && args.temperature.is_finite()) {
        let what = format!("--temperature {}", args.temperature);
        return Err(Error::argument(what, "is not above 0", "give a number above 0, or --greedy"));
    }
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let tokenizer = checkpoint.tokenizer();
    let mut tokens = tokenizer.encode(&args.prompt, "--prompt")?;
    if tokens.is_empty() {
        return Err(Error::argument("--prompt", "is empty", "give at least one token"));
    }
    let gpt = Gpt::new(checkpoint.config().clone())?;
    let sampler = Sampler::new(&gpt, args.device.open(Precision::F32)?)?;
    checkpoint.load_parameters(sampler.plan())?;
    let top_k = if args.greedy { 1 } else { args.top_k.map_or(gpt.config().vocabulary, |k| k as usize) };
    print(&args.prompt)?;
    let mut decoder = tokenizer.decoder(&tokens);
    for _ in 0..args.tokens {
        let next = sampler.next(&tokens, args.temperature, top_k, args.seed)?;
        tokens.push(next);
        print(decoder.push(next))?;
    }
    print(decoder.finish() + "\n")?;
    Ok(Status::Done)
}
