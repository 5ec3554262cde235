//! `attn predict`: what a classifier says of texts.

use super::device::DeviceArgs;
use super::{Status, print_line};
use crate::data::Column;
use crate::data::labelled::{self, Columns, Example, Header, Separator};
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::io::Target;
use crate::model::classifier::{Classifier, Predicted};
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};

/// Say which class texts belong to
///
/// Texts are given on the command line, in a table, or a line each on standard input. Each gives a line: the label, its
/// probability and the text. --out keeps all probabilities, with the ids of a table's rows.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  attn predict --checkpoint logreg \"a gripping film\" \"a mess\"
  attn predict --checkpoint logreg --file reviews.csv --text-column review --id-column id --out predicted.csv
  cat lines.txt | attn predict --checkpoint logreg --out predicted.jsonl")]
pub struct Args {
    /// Directory that `attn train classify` wrote
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Texts [default: the lines of standard input]
    #[arg(value_name = "TEXT", conflicts_with = "file")]
    texts: Vec<String>,
    /// Table of texts, with or without labels: comma-separated where the name ends in .csv, else tab-separated
    #[arg(long, value_name = "FILE", requires = "text_column")]
    file: Option<PathBuf>,
    /// Column of the texts: a name in the first row, or a number from 1
    #[arg(long, value_name = "NAME|N", requires = "file")]
    text_column: Option<Column>,
    /// Column of what rows are called; it is passed on
    #[arg(long, value_name = "NAME|N", requires = "file")]
    id_column: Option<Column>,
    /// Whether the first row names the columns [default: auto: where a column is given by name]
    #[arg(long, value_name = "yes|no|auto", hide_possible_values = true, requires = "file")]
    header: Option<Header>,
    /// What stands between columns [default: as the file's name says]
    #[arg(long, value_name = "tab|comma", hide_possible_values = true, requires = "file")]
    separator: Option<Separator>,
    /// Write ids, labels and all probabilities here, and nothing to standard output; .csv or .jsonl
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What `--out`'s name asks for.
#[derive(Debug, Clone, Copy)]
enum Format {
    Csv,
    Jsonl,
}

/// Texts that are predicted and printed at a time.
const AT_ONCE: usize = 1024;

/// Runs the command.
///
/// # Errors
/// If the checkpoint, the texts or a flag will not do, or a file cannot be written.
pub fn main(args: Args) -> Result<Status> {
    let out = args.out.as_deref().map(|path| Ok((format(path)?, Target::new(path)?))).transpose()?;
    let mut classifier = Classifier::open(&args.checkpoint, args.device.open(Precision::F32)?)?;
    let mut written = match &out {
        Some((format, _)) => head(*format, &classifier, args.id_column.is_some()),
        None => Vec::new(),
    };
    let mut doubtful = 0;
    let mut each = |examples: &[Example]| -> Result<()> {
        let texts: Vec<&str> = examples.iter().map(|e| e.text.as_str()).collect();
        for (example, found) in examples.iter().zip(classifier.predict(&texts)?) {
            doubtful += found.encoded.rows.is_empty() as usize;
            let label = &classifier.labels()[found.class];
            match &out {
                Some((format, _)) => {
                    written.extend(row(*format, example, &found, classifier.labels(), args.id_column.is_some()))
                }
                None => print_line(format_args!("{label}\t{:.4}\t{}", found.probabilities[found.class], example.text))?,
            }
        }
        Ok(())
    };
    let mut n = 0;
    match (&args.file, &args.text_column) {
        (Some(file), Some(text)) => {
            let columns = Columns {
                header: args.header.unwrap_or_default(),
                separator: args.separator,
                ..Columns::new(text.clone(), None, args.id_column.clone())
            };
            let table = labelled::read(file, &columns, None)?;
            table.remarks.iter().for_each(|remark| eprintln!("{}: {remark}", file.display()));
            n = table.examples.len();
            table.examples.chunks(AT_ONCE).try_for_each(&mut each)?;
        }
        _ if !args.texts.is_empty() => {
            n = args.texts.len();
            each(&args.texts.iter().enumerate().map(example).collect::<Vec<_>>())?;
        }
        _ => {
            if std::io::stdin().is_terminal() {
                eprintln!("reading texts, a line each; end with Ctrl-D");
            }
            for (i, line) in std::io::stdin().lock().lines().enumerate() {
                let line = line.map_err(|e| {
                    Error::file("<stdin>", format!("cannot be read in line {}: {e}", i + 1), "give text in UTF-8")
                })?;
                n += 1;
                each(&[example((i, &line))])?;
            }
        }
    }
    if doubtful > 0 {
        eprintln!("{doubtful} of {n} texts have no word that the model knows; it guesses");
    }
    if let Some((_, target)) = out {
        target.write(|w| w.write_all(&written))?;
    }
    Ok(Status::Done)
}

fn example((i, text): (usize, &String)) -> Example {
    Example { id: None, label: None, text: text.clone(), line: i + 1 }
}

fn format(path: &Path) -> Result<Format> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("csv") => Ok(Format::Csv),
        Some("jsonl") => Ok(Format::Jsonl),
        _ => Err(Error::file(path, "ends neither in .csv nor in .jsonl", "give --out such a name")),
    }
}

fn csv_line<'a>(cells: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(cells).expect("memory takes it");
    writer.into_inner().expect("memory takes it")
}

fn head(format: Format, classifier: &Classifier, ids: bool) -> Vec<u8> {
    if matches!(format, Format::Jsonl) {
        return Vec::new();
    }
    let probabilities: Vec<String> = classifier.labels().iter().map(|l| format!("probability_{l}")).collect();
    let id = ids.then_some("id");
    csv_line(id.into_iter().chain(["label"]).chain(probabilities.iter().map(String::as_str)))
}

fn row(format: Format, example: &Example, found: &Predicted, labels: &[String], ids: bool) -> Vec<u8> {
    let label = labels[found.class].as_str();
    match format {
        Format::Csv => {
            let probabilities: Vec<String> = found.probabilities.iter().map(f64::to_string).collect();
            let id = ids.then(|| example.id.as_deref().unwrap_or_default());
            csv_line(id.into_iter().chain([label]).chain(probabilities.iter().map(String::as_str)))
        }
        Format::Jsonl => {
            let of = labels.iter().zip(&found.probabilities).map(|(l, p)| (l.clone(), Value::from(*p)));
            let mut json = json!({ "label": label, "probabilities": of.collect::<serde_json::Map<_, _>>() });
            match &example.id {
                Some(id) => json["id"] = id.as_str().into(),
                None => json["text"] = example.text.as_str().into(),
            }
            format!("{json}\n").into_bytes()
        }
    }
}
