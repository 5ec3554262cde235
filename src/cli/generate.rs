//! `attn generate`: text from a checkpoint.

use super::device::DeviceArgs;
use super::{Status, print};
use crate::device::Device;
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::model::{Choice, Gpt, Sampler, TokenByToken};
use crate::train::checkpoint::Checkpoint;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Continue a prompt with a language model
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  attn generate --checkpoint run --prompt \"KING:\" --tokens 200 --top-k 10
  attn generate --checkpoint run --prompt \"KING:\" --temperature 0.8 --top-p 0.9 --timings
  attn generate --checkpoint adder --prompt \"12+34=\" --tokens 4 --greedy

Keys and values of earlier tokens are kept, of linear attention a state of constant size, so that a
token costs one row. A text longer than the block size slides through it: from there on, and with
--head-merge reweight throughout, each token computes a whole window.")]
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
    /// Draw among the likeliest tokens only whose probabilities first sum to X, above 0 [default: 1, all]
    #[arg(long, value_name = "X")]
    top_p: Option<f64>,
    /// Seed of what is drawn
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Always take the likeliest token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "seed"])]
    greedy: bool,
    /// Compute the whole window for each token, with nothing kept
    #[arg(long)]
    no_cache: bool,
    /// Print on stderr what a token took, by length of the text
    #[arg(long)]
    timings: bool,
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
    let top_p = args.top_p.unwrap_or(1.0);
    if !(top_p > 0.0 && top_p <= 1.0) {
        let what = format!("--top-p {top_p}");
        return Err(Error::argument(what, "is no share of the probabilities", "give a number above 0, at most 1"));
    }
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let tokenizer = checkpoint.tokenizer();
    let mut tokens = tokenizer.encode(&args.prompt, "--prompt")?;
    if tokens.is_empty() {
        return Err(Error::argument("--prompt", "is empty", "give at least one token"));
    }
    let gpt = Gpt::new(checkpoint.config().clone())?;
    let device = args.device.open(Precision::F32)?;
    let choice = match args.greedy {
        true => Choice::GREEDY,
        false => {
            Choice { temperature: args.temperature, top_k: args.top_k.map(|k| k as usize), top_p, seed: args.seed }
        }
    };
    let mut source = Source::new(&gpt, device, &checkpoint, args.no_cache)?;
    print(&args.prompt)?;
    let mut decoder = tokenizer.decoder(&tokens);
    let mut timings = Timings::default();
    for _ in 0..args.tokens {
        let start = Instant::now();
        let next = choice.draw(&source.logits(&tokens)?, tokens.len())?;
        timings.add(tokens.len(), start.elapsed().as_secs_f64());
        tokens.push(next);
        print(decoder.push(next))?;
    }
    print(decoder.finish() + "\n")?;
    if args.timings {
        timings.print();
    }
    Ok(Status::Done)
}

/// Where logits come from: token by token as long as the text fits the block and the model can, then whole windows.
struct Source<'a> {
    gpt: &'a Gpt,
    device: Arc<dyn Device>,
    checkpoint: &'a Checkpoint,
    steps: Option<TokenByToken>,
    windows: Option<Sampler>,
}

impl<'a> Source<'a> {
    fn new(gpt: &'a Gpt, device: Arc<dyn Device>, checkpoint: &'a Checkpoint, no_cache: bool) -> Result<Source<'a>> {
        let mut steps = None;
        match gpt.steps_by_token() {
            Ok(()) if !no_cache => {
                let planned = TokenByToken::new(gpt, device.clone())?;
                checkpoint.load_parameters(planned.plan())?;
                steps = Some(planned);
            }
            Err(why) if !no_cache => eprintln!("each token computes a whole window: {why}"),
            _ => (),
        }
        Ok(Source { gpt, device, checkpoint, steps, windows: None })
    }

    fn logits(&mut self, tokens: &[i32]) -> Result<Vec<f64>> {
        if let Some(steps) = self.steps.as_mut().filter(|_| tokens.len() <= self.gpt.config().block) {
            return steps.logits(tokens);
        }
        let windows = match self.windows.take() {
            Some(windows) => windows,
            None => {
                // Caches are of no more use.
                self.steps = None;
                let windows = Sampler::new(self.gpt, self.device.clone())?;
                self.checkpoint.load_parameters(windows.plan())?;
                windows
            }
        };
        self.windows.insert(windows).logits(tokens)
    }
}

/// Seconds of each token, by the length of the text before it.
#[derive(Default)]
struct Timings(Vec<(usize, f64)>);

impl Timings {
    fn add(&mut self, length: usize, seconds: f64) {
        self.0.push((length, seconds));
    }

    /// The median of eight spans of lengths. The first token, which runs the whole prompt, is left out.
    fn print(&self) {
        let all = &self.0[self.0.len().min(1)..];
        for span in all.chunks(all.len().div_ceil(8).max(1)) {
            let mut seconds: Vec<f64> = span.iter().map(|s| s.1).collect();
            seconds.sort_by(f64::total_cmp);
            let (first, last) = (span[0].0, span[span.len() - 1].0);
            eprintln!("after {first} to {last} tokens: {:.3} ms a token", seconds[seconds.len() / 2] * 1e3);
        }
    }
}
