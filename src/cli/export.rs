//! `attn export`: a checkpoint for other programs.

use super::{Status, print_line};
use crate::error::{Error, Result};
use crate::io::{Target, pytorch};
use crate::model::weights::{self, EMBEDDING, HEAD, TRANSPOSED, Values};
use crate::model::{GptConfig, Positions};
use crate::ops::linear::Activation;
use crate::train::directory;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Write a checkpoint's weights for another program
///
/// A checkpoint of a plain GPT-2 is in Hugging Face's layout as it is; this leaves out what only training needs. Weights
/// may come from anywhere that `attn train lm --init` takes them from, so that this also converts minGPT's to GPT-2's.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  attn export --checkpoint run --format gpt2 --out gpt2-directory
  attn export --checkpoint run --format mingpt --out model.pt")]
pub struct Args {
    /// Checkpoint, or a directory in Hugging Face's GPT-2 layout
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Take the weights from this file instead; --checkpoint then gives config.json alone
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// What for: transformers (a directory), or minGPT (a .pt file for load_state_dict)
    #[arg(long, value_enum)]
    format: Format,
    /// Directory or file to write
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Write over what --out holds
    #[arg(long)]
    overwrite: bool,
}

/// Whose layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Hugging Face's GPT-2.
    Gpt2,
    /// minGPT's state dict.
    Mingpt,
}

/// Files beside the weights that transformers reads too.
const TOKENIZER_FILES: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"];

/// Runs the command.
///
/// # Errors
/// If the checkpoint cannot be read, its model is none that the other program computes, or `--out` cannot be written.
pub fn main(args: Args) -> Result<Status> {
    if !args.checkpoint.is_dir() {
        let remedy = "give a directory that `attn train lm --out` wrote, or one in Hugging Face's GPT-2 layout";
        return Err(Error::file(&args.checkpoint, "is no directory", remedy));
    }
    directory::settle(&args.checkpoint)?;
    let config = GptConfig::read(&args.checkpoint.join("config.json"))?;
    let path = args.weights.clone().map_or_else(|| weights::file_in(&args.checkpoint), Ok)?;
    let tensors = prefixed(weights::import(&path)?);
    check(&config, &tensors, &path)?;
    let taken = if args.out.is_dir() { !directory::is_vacant(&args.out) } else { args.out.exists() };
    if taken && !args.overwrite {
        return Err(Error::file(&args.out, "exists already", "give another --out, or --overwrite"));
    }
    match args.format {
        Format::Gpt2 => gpt2(&config, tensors, &args)?,
        Format::Mingpt => mingpt(&config, tensors, &args.out)?,
    }
    print_line(format_args!("{} holds the weights of {}", args.out.display(), path.display()))?;
    Ok(Status::Done)
}

/// With names as both formats have them, and without masks.
fn prefixed(tensors: BTreeMap<String, Values>) -> BTreeMap<String, Values> {
    let mask = |name: &str| name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
    let full = |name: String| {
        if name.starts_with("transformer.") || name == HEAD { name } else { format!("transformer.{name}") }
    };
    tensors.into_iter().filter(|(name, _)| !mask(name)).map(|(name, t)| (full(name), t)).collect()
}

/// An error where transformers would compute another function, or the weights are not this configuration's.
fn check(config: &GptConfig, tensors: &BTreeMap<String, Values>, path: &Path) -> Result<()> {
    if !config.is_gpt2() {
        let what = if config.positions != Positions::Learned {
            "its positions are not learned"
        } else if config.attention.iter().any(|name| name != "softmax-attention") {
            "it has layers without softmax attention"
        } else {
            "its heads are not concatenated"
        };
        let problem = format!("is no GPT-2: {what}");
        return Err(Error::argument("the model", problem, "export a model without such options"));
    }
    for (name, shape) in [
        (EMBEDDING, [config.vocabulary, config.width]),
        ("transformer.wpe.weight", [config.block, config.width]),
        ("transformer.h.0.attn.c_attn.weight", [config.width, 3 * config.width]),
    ] {
        match tensors.get(name) {
            Some(found) if found.shape == shape => {}
            found => {
                let got = found.map_or("is missing".into(), |t| format!("has shape {:?}, expected {shape:?}", t.shape));
                let remedy = "give weights of the model that config.json describes";
                return Err(Error::file(path, format!("tensor `{name}` {got}"), remedy));
            }
        }
    }
    Ok(())
}

fn gpt2(config: &GptConfig, mut tensors: BTreeMap<String, Values>, args: &Args) -> Result<()> {
    if config.tied {
        tensors.remove(HEAD);
    }
    let config = format!("{:#}\n", config.to_json(0.0)).into_bytes();
    let mut files = vec![("config.json", config), (weights::MODEL, weights::to_bytes(&tensors))];
    for name in TOKENIZER_FILES {
        let path = args.checkpoint.join(name);
        if path.is_file() {
            let bytes = std::fs::read(&path)
                .map_err(|e| Error::file(&path, format!("cannot be read: {e}"), "restore the checkpoint"))?;
            files.push((name, bytes));
        }
    }
    directory::create(&args.out)?;
    directory::replace(&args.out, &files)
}

/// minGPT's state dict: weights (out, in), a head of its own, and the causal masks that it keeps as buffers.
fn mingpt(config: &GptConfig, mut tensors: BTreeMap<String, Values>, out: &Path) -> Result<()> {
    for (differs, what) in [
        (config.activation != Activation::GeluTanh, "the activation is not GELU by tanh"),
        (config.layer_norm_eps != 1e-5, "LayerNorm's epsilon is not 1e-5"),
        (config.inner.is_some_and(|n| n != 4 * config.width), "the MLP is not 4 times as wide as the model"),
    ] {
        if differs {
            let problem = format!("is none of minGPT's: {what}");
            return Err(Error::argument("the model", problem, "use --format gpt2"));
        }
    }
    if !tensors.contains_key(HEAD) {
        tensors.insert(HEAD.into(), tensors[EMBEDDING].clone());
    }
    let mask = (0..config.block).flat_map(|t| (0..config.block).map(move |s| (s <= t) as u8 as f64)).collect();
    let mask = Values { shape: vec![1, 1, config.block, config.block], values: mask };
    for layer in 0..config.layers {
        tensors.insert(format!("transformer.h.{layer}.attn.bias"), mask.clone());
    }
    let written = tensors.into_iter().map(|(name, t)| {
        let t = if TRANSPOSED.iter().any(|end| name.ends_with(end)) { t.transposed() } else { t };
        (name, t.shape, t.values)
    });
    pytorch::write(&Target::new(out)?, &written.collect::<Vec<_>>())
}
