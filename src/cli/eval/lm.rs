//! `attn eval lm`: how well language models predict texts.

use crate::cli::device::DeviceArgs;
use crate::cli::{Status, print_line};
use crate::data::{Column, Documents, Format};
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::io::Target;
use crate::model::HeadMerge;
use crate::train::Progress;
use crate::train::checkpoint::Checkpoint;
use crate::train::perplexities::{Request, Row, Sample, Source, perplexities};
use comfy_table::{CellAlignment, Table};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Loss and perplexity of language models on texts
///
/// A text is taken as it is and cut into consecutive blocks, the last perhaps short; every token but the first is
/// predicted once, from those before it in its block. With --documents lines every line is a document, between the
/// tokenizer's start and stop where it has them, and three figures are found: perplexity = exp(total loss / tokens);
/// mean_document_loss; and mean_document_perplexity, the mean of exp(a document's loss), which is never smaller than
/// exp(mean_document_loss). Several checkpoints, texts or batch sizes give a table.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  attn eval lm --checkpoint run --text other.txt --json result.json
  attn eval lm --checkpoint run --text book.txt --stride 32        sees more of what stands before
  attn eval lm --checkpoint base --checkpoint other --documents lines --text train=train.txt --text dev=dev.txt \\
    --sentence normal=\"Thank you so much\" --batch-size 1,32 --csv table.csv")]
pub struct Args {
    /// Checkpoint that `attn train lm` wrote; may be repeated
    #[arg(long, value_name = "DIR", required = true)]
    checkpoint: Vec<PathBuf>,
    /// Text in UTF-8, in the model's tokens, perhaps with a name for it; may be repeated
    #[arg(long, value_name = "[NAME=]FILE", required_unless_present = "sentence")]
    text: Vec<String>,
    /// A sentence, with a name for it: a text of its own. At a batch size above 1 it is computed together with the first
    /// rows of the first --text, which do not count; may be repeated
    #[arg(long, value_name = "NAME=SENTENCE")]
    sentence: Vec<String>,
    /// Blocks or documents computed at once; several, separated by commas, give a figure each
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "16",
        value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Vec<u32>,
    /// Tokens from one window to the next where a text is longer than the block: below the block size windows overlap,
    /// and only what is new in them counts [default: the block size]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    stride: Option<u32>,
    /// Whether a text is one stream, or each line a document of its own; empty lines are left out
    #[arg(long, value_name = "stream|lines", default_value = "stream", hide_possible_values = true)]
    documents: Documents,
    /// With --documents lines: take this column of a table, by number from 1 or by its name in the first line;
    /// separated by commas in a .csv, else by tabs
    #[arg(long, value_name = "NAME_OR_NUMBER")]
    text_column: Option<Column>,
    /// With --documents lines: cut documents to N tokens, start and stop included [default: whole, in windows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    max_length: Option<u32>,
    /// Merge heads in this way, not as in training: concat turns a weighting of heads off
    #[arg(long, value_name = "MERGE")]
    head_merge: Option<HeadMerge>,
    /// With --documents lines: also print every document's loss and perplexity
    #[arg(long)]
    per_document: bool,
    /// Also write the results here: an object, or for several {"rows": […]}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write the table here
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs the command.
///
/// # Errors
/// If a checkpoint, a text or the device will not do.
pub fn main(args: Args) -> Result<Status> {
    let lines = args.documents == Documents::Lines;
    for (given, flag) in [
        (args.text_column.is_some(), "--text-column"),
        (args.max_length.is_some(), "--max-length"),
        (args.per_document, "--per-document"),
    ] {
        if given && !lines {
            let remedy = format!("add --documents lines, or leave {flag} out");
            return Err(Error::argument(flag, "has no meaning without --documents lines", remedy));
        }
    }
    let samples = samples(&args)?;
    let targets = [&args.json, &args.csv].map(|path| path.as_deref().map(Target::new).transpose());
    let [json, csv] = targets;
    let (json, csv) = (json?, csv?);
    let request = Request {
        samples,
        batch_sizes: args.batch_size.iter().map(|&n| n as usize).collect(),
        format: Format { documents: args.documents, text_column: args.text_column.clone() },
        max_length: args.max_length.map(|n| n as usize),
        stride: args.stride.map(|n| n as usize),
        head_merge: args.head_merge,
    };
    let device = args.device.open(Precision::F32)?;
    let mut rows: Vec<Row> = Vec::new();
    let mut remarks = BTreeSet::new();
    for directory in &args.checkpoint {
        let checkpoint = Checkpoint::open(directory)?;
        let remark = |text: String| {
            // Checkpoints of one tokenizer have the same remarks.
            if remarks.insert(text.clone()) {
                eprintln!("{text}");
            }
        };
        let mut bar: Option<Progress> = None;
        let progress = |_: &str, done: usize, of: usize| {
            bar.get_or_insert_with(|| Progress::new("evaluating", 0, of as u64)).reached(done as u64);
            if done >= of {
                bar.take().iter().for_each(Progress::finish);
            }
        };
        let name = directory.display().to_string();
        rows.extend(perplexities(&checkpoint, &name, &request, &device, remark, progress)?);
    }
    for row in rows.iter().filter(|_| args.per_document) {
        print_documents(row)?;
    }
    match &rows[..] {
        [row] => print_line(line(row))?,
        _ => print_line(table(&rows, args.checkpoint.len() > 1))?,
    }
    if let Some(target) = csv {
        let text = to_csv(&rows);
        target.write(|w| w.write_all(&text))?;
    }
    if let Some(target) = json {
        let mut rows: Vec<_> = rows.iter().map(|row| row.to_json(args.per_document)).collect();
        let value = if rows.len() == 1 { rows.remove(0) } else { json!({ "rows": rows }) };
        target.write(|w| writeln!(w, "{value:#}"))?;
    }
    Ok(Status::Done)
}

/// What is to be evaluated, texts first; each under a name of its own.
fn samples(args: &Args) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for given in &args.text {
        // A file whose name has an equals sign is that file.
        let named = given.split_once('=').filter(|(name, _)| !name.is_empty() && !Path::new(given).exists());
        let (name, path) = named.unwrap_or((given, given));
        samples.push(Sample { name: name.into(), source: Source::File(path.into()) });
    }
    for given in &args.sentence {
        let Some((name, text)) = given.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            let remedy = "give NAME=SENTENCE, such as normal=\"Thank you so much\"";
            return Err(Error::argument(format!("--sentence {given:?}"), "has no name", remedy));
        };
        samples.push(Sample { name: name.into(), source: Source::Sentence(text.into()) });
    }
    for (i, sample) in samples.iter().enumerate() {
        if samples[..i].iter().any(|s| s.name == sample.name) {
            let what = format!("the name {:?}", sample.name);
            return Err(Error::argument(what, "stands for two texts", "give each a name of its own: NAME=…"));
        }
    }
    Ok(samples)
}

fn line(row: &Row) -> String {
    let (tokens, loss, perplexity) = (row.found.tokens, row.found.loss, row.found.perplexity());
    let mut line = format!("tokens {tokens}, loss {loss:.6}, perplexity {perplexity:.4}");
    if let Some(means) = row.means() {
        let (loss, perplexity) = (means.mean_document_loss, means.mean_document_perplexity);
        line += &format!(
            ", documents {}, mean_document_loss {loss:.6}, mean_document_perplexity {perplexity:.4}",
            means.documents
        );
    }
    line
}

fn print_documents(row: &Row) -> Result<()> {
    let Row { checkpoint, text, batch_size, .. } = row;
    print_line(format_args!("{checkpoint}, {text}, batch size {batch_size}"))?;
    for (i, d) in row.documents.iter().flatten().enumerate() {
        let (number, tokens, loss, perplexity) = (i + 1, d.tokens, d.loss, d.perplexity());
        print_line(format_args!("document {number}: tokens {tokens}, loss {loss:.6}, perplexity {perplexity:.4}"))?;
    }
    Ok(())
}

/// The names of a row's columns.
fn heads(rows: &[Row]) -> Vec<&'static str> {
    let mut heads = vec!["checkpoint", "text", "batch_size", "tokens", "loss", "perplexity"];
    if rows.iter().any(|r| r.documents.is_some()) {
        heads.extend(["documents", "mean_document_loss", "mean_document_perplexity"]);
    }
    heads
}

/// A row a line; and where there are several checkpoints, one more table in which they stand beside each other.
fn table(rows: &[Row], compare: bool) -> String {
    let mut table = plain_table(heads(rows));
    for row in rows {
        let mut cells = vec![
            row.checkpoint.clone(),
            row.text.clone(),
            row.batch_size.to_string(),
            row.found.tokens.to_string(),
            format!("{:.4}", row.found.loss),
            figure(row.found.perplexity()),
        ];
        if let Some(means) = row.means() {
            cells.push(means.documents.to_string());
            cells.push(format!("{:.4}", means.mean_document_loss));
            cells.push(figure(means.mean_document_perplexity));
        }
        table.add_row(cells);
    }
    right(&mut table, 2);
    if !compare {
        return table.to_string();
    }
    let mut text = table.to_string();
    text += &format!("\n\n{}", beside(rows, "perplexity", |r| Some(r.found.perplexity())));
    if rows.iter().any(|r| r.documents.is_some()) {
        let of = |r: &Row| r.means().map(|m| m.mean_document_perplexity);
        text += &format!("\n\n{}", beside(rows, "mean_document_perplexity", of));
    }
    text
}

/// A line a checkpoint and a column a text and batch size.
fn beside(rows: &[Row], name: &str, of: impl Fn(&Row) -> Option<f64>) -> Table {
    let columns: Vec<(&str, usize)> =
        rows.iter().take_while(|r| r.checkpoint == rows[0].checkpoint).map(|r| (&r.text[..], r.batch_size)).collect();
    let title = |(text, batch_size): &(&str, usize)| format!("{text}, batch {batch_size}");
    let mut table = plain_table([name.to_string()].into_iter().chain(columns.iter().map(title)));
    for checkpoint in rows.chunks(columns.len()) {
        let cells = checkpoint.iter().map(|r| of(r).map_or_else(String::new, figure));
        table.add_row([checkpoint[0].checkpoint.clone()].into_iter().chain(cells));
    }
    right(&mut table, 1);
    table
}

fn plain_table(heads: impl IntoIterator<Item = impl Into<comfy_table::Cell>>) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(heads.into_iter().map(Into::into).collect::<Vec<comfy_table::Cell>>());
    table
}

fn right(table: &mut Table, from: usize) {
    table.column_iter_mut().skip(from).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
}

/// A perplexity, which may be huge.
fn figure(x: f64) -> String {
    if x < 1e6 { format!("{x:.2}") } else { format!("{x:.2e}") }
}

fn to_csv(rows: &[Row]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let heads = heads(rows);
    let written = writer.write_record(&heads).and_then(|()| {
        rows.iter().try_for_each(|row| {
            let json = row.to_json(false);
            let cell = |head: &&str| json[*head].as_str().map_or_else(|| json[*head].to_string(), String::from);
            writer.write_record(heads.iter().map(cell))
        })
    });
    written.expect("rows have as many cells as heads");
    writer.into_inner().expect("memory takes it")
}
