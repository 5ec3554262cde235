//! `attn eval classify`: how often classifiers are right, how sure that is, and whether one is better than another.

use crate::cli::device::DeviceArgs;
use crate::cli::{Status, print_line};
use crate::data::Column;
use crate::data::labelled::{self, Columns, Header, Labelled, Separator};
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::io::Target;
use crate::model::classifier::Classifier;
use crate::train::bootstrap::{Bootstrap, Difference, Interval, Metric};
use crate::train::metrics::Confusion;
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// How often classifiers are right on a table of texts with labels
///
/// Of each checkpoint: accuracy, precision, recall and F1 (of two classes those of the second, of more the means over
/// classes), with the interval that holds 95 % of --resamples bootstrap draws of the table, and the confusion matrix. Several
/// checkpoints are compared with the first on the same draws, so that a difference that may be chance is not called a win.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  attn eval classify --checkpoint logreg --test test.tsv --text-column 1 --label-column 2
  attn eval classify --checkpoint logreg --checkpoint attention --test test.csv --text-column text --label-column label")]
pub struct Args {
    /// Directory that `attn train classify` wrote; may be repeated
    #[arg(long, value_name = "DIR", required = true)]
    checkpoint: Vec<PathBuf>,
    /// Table of texts and labels: comma-separated where the name ends in .csv, else tab-separated
    #[arg(long, value_name = "FILE")]
    test: PathBuf,
    /// Column of the texts: a name in the first row, or a number from 1
    #[arg(long, value_name = "NAME|N")]
    text_column: Column,
    /// Column of the labels
    #[arg(long, value_name = "NAME|N")]
    label_column: Column,
    /// Whether the first row names the columns [default: auto: where a column is given by name]
    #[arg(long, value_name = "yes|no|auto", hide_possible_values = true)]
    header: Option<Header>,
    /// What stands between columns [default: as the file's name says]
    #[arg(long, value_name = "tab|comma", hide_possible_values = true)]
    separator: Option<Separator>,
    /// Bootstrap draws
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..))]
    resamples: u32,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Also write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A checkpoint on the table.
struct Row {
    name: String,
    labels: Vec<String>,
    predicted: Vec<u32>,
    counts: Confusion,
    accuracy: Interval,
    f1: Interval,
    /// From the first checkpoint, in accuracy; none of the first itself.
    beyond: Option<Difference>,
}

/// Runs the command.
///
/// # Errors
/// If a checkpoint, the table or a flag will not do, or a file cannot be written.
pub fn main(args: Args) -> Result<Status> {
    let json = args.json.as_deref().map(Target::new).transpose()?;
    let bootstrap = Bootstrap { resamples: args.resamples as usize, seed: args.seed, ..Default::default() };
    let columns = Columns {
        header: args.header.unwrap_or_default(),
        separator: args.separator,
        ..Columns::new(args.text_column.clone(), Some(args.label_column.clone()), None)
    };
    let device = args.device.open(Precision::F32)?;
    let mut rows: Vec<Row> = Vec::new();
    for path in &args.checkpoint {
        let mut classifier = Classifier::open(path, device.clone())?;
        let table = labelled::read(&args.test, &columns, Some(classifier.labels()))?;
        if rows.is_empty() {
            table.remarks.iter().for_each(|remark| eprintln!("{}: {remark}", args.test.display()));
        }
        if let Some(first) = rows.first().filter(|first| first.labels != classifier.labels()) {
            let problem = format!("has labels {}, {} has {}", classifier.labels().join(", "), first.name, {
                first.labels.join(", ")
            });
            return Err(Error::file(path, problem, "compare checkpoints whose labels are the same, in the same order"));
        }
        rows.push(evaluated(path, &mut classifier, &table, &bootstrap, rows.first())?);
    }
    print_line(table(&rows))?;
    for row in &rows {
        print_line(format_args!("\n{}: rows are true labels, columns predicted ones", row.name))?;
        print_line(confusion(row))?;
    }
    for row in &rows[1..] {
        print_line(verdict(&rows[0], row))?;
    }
    if let Some(target) = json {
        let value = json!({ "rows": rows.iter().map(to_json).collect::<Vec<_>>() });
        target.write(|w| writeln!(w, "{value:#}"))?;
    }
    Ok(Status::Done)
}

fn evaluated(
    path: &Path,
    classifier: &mut Classifier,
    table: &Labelled,
    bootstrap: &Bootstrap,
    first: Option<&Row>,
) -> Result<Row> {
    let texts: Vec<&str> = table.examples.iter().map(|e| e.text.as_str()).collect();
    let truth: Vec<u32> = table.examples.iter().map(|e| e.label.expect("a column of labels was read")).collect();
    let predicted: Vec<u32> = classifier.predict(&texts)?.iter().map(|p| p.class as u32).collect();
    let labels = classifier.labels().to_vec();
    let classes = labels.len();
    let mut counts = Confusion::new(classes);
    truth.iter().zip(&predicted).for_each(|(&truth, &predicted)| counts.add(truth as usize, predicted as usize));
    let f1 = if classes == 2 { Metric::BinaryF1 } else { Metric::MacroF1 };
    let beyond = first
        .map(|first| bootstrap.compare(Metric::Accuracy, classes, &truth, [&first.predicted, &predicted]))
        .transpose()?;
    Ok(Row {
        name: path.display().to_string(),
        accuracy: bootstrap.of(Metric::Accuracy, classes, &truth, &predicted)?,
        f1: bootstrap.of(f1, classes, &truth, &predicted)?,
        labels,
        predicted,
        counts,
        beyond,
    })
}

fn percent(x: f64) -> String {
    format!("{:.2}", 100.0 * x)
}

fn with_interval(x: &Interval) -> String {
    format!("{} ({}–{})", percent(x.value), percent(x.low), percent(x.high))
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table
}

fn right(table: &mut Table) {
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
}

/// A line a checkpoint.
fn table(rows: &[Row]) -> String {
    let mut table = plain();
    table.set_header(["checkpoint", "texts", "accuracy (95 %)", "precision", "recall", "F1 (95 %)"]);
    for row in rows {
        table.add_row([
            row.name.clone(),
            row.counts.total().to_string(),
            with_interval(&row.accuracy),
            percent(row.counts.headline(Confusion::precision)),
            percent(row.counts.headline(Confusion::recall)),
            with_interval(&row.f1),
        ]);
    }
    right(&mut table);
    table.trim_fmt()
}

fn confusion(row: &Row) -> String {
    let mut table = plain();
    table.set_header([""].into_iter().chain(row.labels.iter().map(String::as_str)));
    for (truth, label) in row.labels.iter().enumerate() {
        let counts = (0..row.labels.len()).map(|predicted| row.counts.count(truth, predicted).to_string());
        table.add_row([label.clone()].into_iter().chain(counts));
    }
    right(&mut table);
    table.trim_fmt()
}

/// Whether a checkpoint is better than the first, as far as this table can tell.
fn verdict(first: &Row, row: &Row) -> String {
    let Some(Difference { interval: Interval { value, low, high }, p }) = &row.beyond else { return String::new() };
    let points = format!("{:+.2} points ({:+.2} to {:+.2}, p = {p:.3})", 100.0 * value, 100.0 * low, 100.0 * high);
    let (name, other) = (&row.name, &first.name);
    match (*low > 0.0, *high < 0.0) {
        (true, _) => format!("\n{name} is more often right than {other}: {points}"),
        (_, true) => format!("\n{name} is less often right than {other}: {points}"),
        _ => format!("\n{name} and {other} cannot be told apart on this table: {points}"),
    }
}

fn to_json(row: &Row) -> Value {
    let classes = 0..row.labels.len();
    let of_class = |c: usize| {
        json!({
            "label": row.labels[c], "precision": row.counts.precision(c), "recall": row.counts.recall(c),
            "f1": row.counts.f1(c),
        })
    };
    let counts = |truth: usize| (0..row.labels.len()).map(|c| row.counts.count(truth, c)).collect::<Vec<_>>();
    json!({
        "checkpoint": row.name,
        "texts": row.counts.total(),
        "accuracy": row.accuracy,
        "precision": row.counts.headline(Confusion::precision),
        "recall": row.counts.headline(Confusion::recall),
        "f1": row.f1,
        "classes": classes.clone().map(of_class).collect::<Vec<_>>(),
        "confusion": classes.map(counts).collect::<Vec<_>>(),
        "difference_from_first": row.beyond,
    })
}
