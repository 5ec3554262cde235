//! `attn heatmap`: what a model attends to. `classifier` has what is shown of a classifier.

mod classifier;

use super::device::DeviceArgs;
use super::{Status, print, print_line};
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::io::Target;
use crate::model::Gpt;
use crate::model::look::{Heads, Look};
use crate::plot::heat::{Figure, Panel};
use crate::plot::{Picture, terminal};
use crate::train::checkpoint::Checkpoint;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Show what a model attends to
///
/// Of a language model: attention weights per layer and head. A row is a token that looks back, a column a token that is
/// looked at; a row's weights sum to 1. Softmax attention gives its weights, other variants those that they imply.
///
/// Of a classifier: heads down and words across where its model is head-attention, with weights that sum to 1; of every
/// other model what each word does for the predicted class, gradient × input: above 0 it speaks for the class.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  attn heatmap --checkpoint run --text \"12+34=640\"
  attn heatmap --checkpoint run --text \"KING:\" --layer 0,2 --out heat.png --out heat.svg --json heat.json
  attn heatmap --classifier attention --text \"a great mess\" --out heat.png")]
pub struct Args {
    /// Checkpoint that `attn train lm` wrote
    #[arg(long, value_name = "DIR", required_unless_present = "classifier")]
    checkpoint: Option<PathBuf>,
    /// Directory that `attn train classify` wrote
    #[arg(long, value_name = "DIR", conflicts_with_all = ["checkpoint", "layer"])]
    classifier: Option<PathBuf>,
    /// The text to look at, in the model's tokens
    #[arg(long, value_name = "TEXT")]
    text: String,
    /// Layers to show, from 0 [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 1)]
    layer: Vec<usize>,
    /// Heads to show, from 0 [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 1)]
    head: Vec<usize>,
    /// Draw to this file, .png or .svg; may be repeated
    #[arg(long, value_name = "FILE")]
    out: Vec<PathBuf>,
    /// Write tokens and weights here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Columns of what is no terminal.
const WIDTH: usize = 100;

/// Runs the command.
///
/// # Errors
/// If the checkpoint, the text or a flag will not do, or a file cannot be written.
pub fn main(args: Args) -> Result<Status> {
    let shown = Shown {
        pictures: args.out.iter().map(|path| Picture::new(path)).collect::<Result<_>>()?,
        json: args.json.as_deref().map(Target::new).transpose()?,
    };
    if let Some(from) = &args.classifier {
        return classifier::show(from, &args, shown);
    }
    let path = args.checkpoint.as_deref().expect("clap asks for one of the two");
    let checkpoint = Checkpoint::open(path)?;
    let config = checkpoint.config();
    let layers = chosen("--layer", &args.layer, config.layers)?;
    let heads = chosen("--head", &args.head, config.heads)?;
    let tokens = checkpoint.tokenizer().encode(&args.text, "--text")?;
    let block = config.block;
    if tokens.is_empty() || tokens.len() > block {
        let problem = format!("has {} tokens, and the model sees 1 to {block} at once", tokens.len());
        return Err(Error::argument("--text", problem, "give a text of that length"));
    }
    let words: Vec<String> = tokens.iter().map(|&t| visible(&checkpoint.tokenizer().decode(&[t]))).collect();

    let gpt = Gpt::new(config.clone())?;
    let look = Look::new(&gpt, tokens.len(), args.device.open(Precision::F32)?)?;
    checkpoint.load_parameters(look.plan())?;
    let weights = look.run(&tokens)?;

    let panel = |layer: usize, head: usize| Panel {
        title: format!("layer {layer}, head {head}"),
        cells: visible_keys(&weights[layer][head]),
    };
    let panels = layers.iter().map(|&layer| heads.iter().map(|&head| panel(layer, head)).collect());
    let figure = Figure {
        title: "Attention weights".into(),
        subtitle: format!("{}; {}", path.display(), config.attention.join(", ")),
        rows: words.clone(),
        columns: words,
        panels: panels.collect(),
        unit: "Probability".into(),
        signed: false,
    };
    let value = to_json(&tokens, &figure.rows, &layers, &heads, &weights, |layer| config.attention_of(layer));
    shown.files(&figure, &value)?;
    let width = terminal_size::terminal_size().map_or(WIDTH, |(width, _)| width.0 as usize);
    print(terminal::to_text(&figure, width))?;
    shown.said(&args)
}

/// Where the heatmap goes besides the terminal.
struct Shown {
    pictures: Vec<Picture>,
    json: Option<Target>,
}

impl Shown {
    fn files(&self, figure: &Figure, value: &Value) -> Result<()> {
        if let Some(to) = &self.json {
            to.write(|w| writeln!(w, "{value}"))?;
        }
        if !self.pictures.is_empty() {
            let drawing = figure.draw();
            self.pictures.iter().try_for_each(|picture| picture.write(&drawing))?;
        }
        Ok(())
    }

    fn said(&self, args: &Args) -> Result<Status> {
        args.out.iter().try_for_each(|path| print_line(format_args!("drawn to {}", path.display())))?;
        Ok(Status::Done)
    }
}

/// The numbers given, or all, each below n.
fn chosen(flag: &str, given: &[usize], n: usize) -> Result<Vec<usize>> {
    if let Some(bad) = given.iter().find(|&&i| i >= n) {
        let problem = format!("does not exist: the model has {n}");
        return Err(Error::argument(format!("{flag} {bad}"), problem, format!("give numbers from 0 to {}", n - 1)));
    }
    Ok(if given.is_empty() { (0..n).collect() } else { given.to_vec() })
}

/// Keys after a query are none to it.
fn visible_keys(head: &[Vec<f64>]) -> Vec<Vec<Option<f64>>> {
    let row = |(t, row): (usize, &Vec<f64>)| row.iter().enumerate().map(|(s, &x)| (s <= t).then_some(x)).collect();
    head.iter().enumerate().map(row).collect()
}

/// A token as it can be seen: spaces and ends of lines have signs.
fn visible(token: &str) -> String {
    let one = |c: char| match c {
        ' ' => '·',
        '\n' => '↵',
        '\t' => '→',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    token.chars().map(one).collect()
}

fn to_json<'a>(
    tokens: &[i32],
    words: &[String],
    layers: &[usize],
    heads: &[usize],
    weights: &[Heads],
    attention: impl Fn(usize) -> &'a str,
) -> Value {
    let layer = |&layer: &usize| {
        let heads: Vec<Value> =
            heads.iter().map(|&head| json!({ "head": head, "weights": weights[layer][head] })).collect();
        json!({ "layer": layer, "attention": attention(layer), "heads": heads })
    };
    let layers: Vec<Value> = layers.iter().map(layer).collect();
    json!({ "tokens": tokens, "words": words, "layers": layers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_has_a_sign() {
        assert_eq!(visible("\n") + &visible(" the\t"), "↵·the→");
        assert_eq!(visible("\u{7}a"), "\u{fffd}a");
    }

    #[test]
    fn wrong_choices_are_named() {
        assert_eq!(chosen("--layer", &[], 3).unwrap(), [0, 1, 2]);
        assert_eq!(chosen("--layer", &[2], 3).unwrap(), [2]);
        let error = chosen("--head", &[3], 3).unwrap_err().to_string();
        assert!(error.starts_with("--head 3: does not exist: the model has 3; give numbers from 0 to 2"), "{error}");
    }
}
