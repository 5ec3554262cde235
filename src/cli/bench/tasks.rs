//! `attn bench tasks`: attention variants learn one task side by side; how many answers are right, against its size.

use crate::cli::device::DeviceArgs;
use crate::cli::{Status, print_line};
use crate::data::tasks::{Task, TaskBatches};
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::io::Target;
use crate::model::gpt::attention_variants;
use crate::model::{Gpt, GptConfig, Positions};
use crate::optimizer::{OptimizerName, OptimizerSettings};
use crate::plan::Plan;
use crate::plot::chart::{Chart, Curve, Mark, Stroke};
use crate::plot::{Axis, Picture, Ticks};
use crate::train::{Answers, StepOptions, TrainingStep, interrupted_by_ctrl_c};
use clap::builder::PossibleValuesParser;
use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Batches that each size is validated on.
const VALIDATION: u64 = 4;
/// Steps between looks at the validation batches, at which a run that has solved the task ends.
const LOOK_EVERY: u64 = 250;
/// The share of right answers from which a task counts as solved.
const SOLVED: f64 = 0.99;

/// Let attention variants learn one task side by side: accuracy against its size
///
/// Each variant gets the same model but for its attention, the same initial weights, batches and steps. It learns rows of
/// every size up to the largest, and is then asked rows of each size that it has never seen. A run ends sooner where
/// every validation answer is right.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  attn bench tasks
  attn bench tasks --task copy --sizes 8,16,32 --out results
recall: pairs of a key and a value, then every key again, to be answered with its value. copy: a string again.")]
pub struct TasksArgs {
    /// What to learn
    #[arg(long, value_enum, default_value_t = TaskName::Recall, hide_possible_values = true)]
    #[arg(value_name = "copy|recall")]
    task: TaskName,
    /// Variants, by name [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 1)]
    #[arg(value_parser = PossibleValuesParser::new(attention_variants()))]
    variants: Vec<String>,
    /// Sizes that are asked: pairs of recall, letters of copy. The largest is what is learned
    #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 1, default_value = "2,4,8")]
    sizes: Vec<usize>,
    /// Steps of each run, at most
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=u32::MAX as u64))]
    steps: u64,
    /// Rows a step
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// AdamW's learning rate, constant
    #[arg(long, value_name = "X", default_value_t = 1e-3)]
    lr: f64,
    /// Blocks of the model
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    layers: u16,
    /// Attention heads a block
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    heads: u16,
    /// Width of the model, which heads share
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    width: u16,
    /// How the model knows where a token stands
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Positions::Rotary)]
    positions: Positions,
    /// Runs of each variant, with seeds 1, 2, …
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    seeds: u16,
    /// Folder for tasks.json, tasks.svg and tasks.png
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the rows as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A task by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TaskName {
    Copy,
    Recall,
}

impl TaskName {
    fn of(self, size: usize) -> Task {
        match self {
            TaskName::Copy => Task::Copy { length: size },
            TaskName::Recall => Task::Recall { pairs: size },
        }
    }

    fn unit(self) -> &'static str {
        match self {
            TaskName::Copy => "letters",
            TaskName::Recall => "pairs",
        }
    }
}

/// One variant, seed and size.
#[derive(Debug, Clone, Serialize)]
struct Row {
    task: &'static str,
    variant: String,
    seed: u64,
    size: usize,
    asked: usize,
    right: usize,
    accuracy: f64,
    loss: f64,
    steps: u64,
    seconds: f64,
}

/// Runs the command.
///
/// # Errors
/// If an option does not fit, the device fails, a file cannot be written, or the command was interrupted.
pub fn main(args: TasksArgs) -> Result<Status> {
    let mut sizes = args.sizes.clone();
    sizes.sort_unstable();
    sizes.dedup();
    for &size in &sizes {
        let bad = |_| Error::argument(format!("--sizes {size}"), "is out of range", "give sizes from 1 to 256");
        args.task.of(size).check().map_err(bad)?;
    }
    if !(args.lr > 0.0 && args.lr.is_finite()) {
        return Err(Error::argument(format!("--lr {}", args.lr), "is out of range", "give more than 0"));
    }
    let variants = match args.variants.is_empty() {
        true => attention_variants().into_iter().map(String::from).collect(),
        false => args.variants.clone(),
    };
    let device = args.device.open(Precision::F32)?;
    if let Some(folder) = &args.out {
        let refused = |e: std::io::Error| {
            Error::file(folder, format!("cannot be made: {}", e.kind()), "give --out a folder you may write to")
        };
        std::fs::create_dir_all(folder).map_err(refused)?;
    }
    let files = args.json.clone().into_iter().chain(args.out.iter().map(|d| d.join("tasks.json")));
    let files: Vec<Target> = files.map(|path| Target::new(&path)).collect::<Result<_>>()?;
    let task = args.task.of(*sizes.last().expect("clap asks for one"));
    let bench = Bench { args: &args, task, sizes: &sizes, device };
    let runs = variants.len() as u64 * args.seeds as u64;
    let bar = ProgressBar::new(runs * args.steps);
    let style = ProgressStyle::with_template("{msg:50} {wide_bar} {percent} %, {eta} left");
    bar.set_style(style.expect("a valid template"));
    let interrupted = interrupted_by_ctrl_c();
    let mut rows = Vec::new();
    let mut run = 0;
    for seed in 1..=args.seeds as u64 {
        for variant in &variants {
            run += 1;
            let new = bench.run(variant, seed, &bar)?;
            bar.set_position(run * args.steps);
            rows.extend(new);
            for file in &files {
                file.write(|w| writeln!(w, "{:#}", json!({ "chance": task.chance(), "rows": rows })))?;
            }
            if interrupted.load(Ordering::SeqCst) {
                let kept = if files.is_empty() { "use --out to keep what was found" } else { "the files hold them" };
                let problem = format!("was interrupted after {run} of {runs} runs, the last perhaps short");
                return Err(Error::argument("attn bench tasks", problem, kept));
            }
        }
    }
    bar.finish_and_clear();
    if let Some(folder) = &args.out {
        let drawing = chart(&args, &rows, &variants, &sizes, task).draw();
        Picture::both(folder, "tasks")?.iter().try_for_each(|picture| picture.write(&drawing))?;
    }
    print_line(table(&rows, &variants, &sizes, args.task))?;
    print_line(sentence(&rows, &variants, &sizes, task, args.task.unit()))?;
    Ok(Status::Done)
}

struct Bench<'a> {
    args: &'a TasksArgs,
    task: Task,
    sizes: &'a [usize],
    device: Arc<dyn Device>,
}

impl Bench<'_> {
    /// Trains one variant, and asks every size.
    fn run(&self, variant: &str, seed: u64, bar: &ProgressBar) -> Result<Vec<Row>> {
        let Bench { args, task, sizes, device } = self;
        let (rows, block) = (args.batch_size as usize, task.block());
        let [layers, heads, width] = [args.layers, args.heads, args.width].map(usize::from);
        let (vocabulary, positions) = (task.tokenizer().len(), args.positions);
        let attention = vec![variant.to_string()];
        let shape = GptConfig { layers, heads, width, block, vocabulary, ..Default::default() };
        let gpt = Gpt::new(GptConfig { attention, positions, ..shape })?;
        let batches = TaskBatches::new(*task, rows, block, seed)?;
        let optimizer = OptimizerSettings { lr: args.lr, ..OptimizerSettings::of(OptimizerName::AdamW) };
        let options = StepOptions::new(optimizer, seed);
        let mut training = TrainingStep::new(gpt.loss(rows, 0.0)?, device.clone(), options)?;
        initialize(&gpt, training.plan(), seed)?;
        let answers = Answers::new(&gpt, rows, device.clone())?;
        let ask = |training: &TrainingStep, size: usize| {
            answers.plan().copy_parameters(training.plan())?;
            answers.run((0..VALIDATION).map(|i| batches.validation(size, i)))
        };
        let (start, from) = (Instant::now(), bar.position());
        let interrupted = interrupted_by_ctrl_c();
        let mut done = 0;
        while done < args.steps && !interrupted.load(Ordering::SeqCst) {
            let loss = training.run(done, args.lr, &[batches.training(done)])?;
            if !loss.is_finite() {
                let what = format!("{variant}, seed {seed}");
                return Err(Error::argument(what, format!("the loss of step {done} is {loss}"), "give a smaller --lr"));
            }
            done += 1;
            bar.set_position(from + done);
            if done % LOOK_EVERY == 0 {
                let score = ask(&training, task.size())?;
                let right = 100.0 * score.accuracy();
                bar.set_message(format!(
                    "{variant}, seed {seed}: {right:.1} % of {} {}",
                    task.size(),
                    args.task.unit()
                ));
                let solved = score.right == score.asked;
                if solved
                    && sizes.iter().try_fold(true, |all, &s| ask(&training, s).map(|s| all & (s.right == s.asked)))?
                {
                    break;
                }
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let one = |&size: &usize| {
            let score = ask(&training, size)?;
            Ok(Row {
                task: task.name(),
                variant: variant.into(),
                seed,
                size,
                asked: score.asked,
                right: score.right,
                accuracy: score.accuracy(),
                loss: score.loss(),
                steps: done,
                seconds,
            })
        };
        sizes.iter().map(one).collect()
    }
}

/// GPT-2's initial weights have the standard deviation 0.02 at width 768: at another width, 0.02·√(768/width) makes
/// products with them as large. Without it, models as narrow as these find a look-up late, if at all.
fn initialize(gpt: &Gpt, plan: &Plan, seed: u64) -> Result<()> {
    let (graph, factor) = (plan.graph(), (768.0 / gpt.config().width as f64).sqrt());
    for t in graph.parameters() {
        let matrix = graph.shape(t).len() == 2;
        let values = gpt.initial(graph, t, seed).into_iter().map(|x| if matrix { factor * x } else { x });
        plan.write(t, &values.collect::<Vec<f64>>())?;
    }
    Ok(())
}

/// Accuracies of a variant at a size, one a seed.
fn accuracies(rows: &[Row], variant: &str, size: usize) -> Vec<f64> {
    rows.iter().filter(|r| r.variant == variant && r.size == size).map(|r| r.accuracy).collect()
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

fn least(x: &[f64]) -> f64 {
    x.iter().copied().fold(f64::INFINITY, f64::min)
}

fn chart(args: &TasksArgs, rows: &[Row], variants: &[String], sizes: &[usize], task: Task) -> Chart {
    let curve = |(i, variant): (usize, &String)| {
        let all = |size: usize| accuracies(rows, variant, size);
        let points = sizes.iter().map(|&size| (size as f64, mean(&all(size)))).collect();
        let most = |all: &[f64]| all.iter().copied().fold(0.0, f64::max);
        let bars = sizes.iter().map(|&size| (size as f64, [least(&all(size)), most(&all(size))])).collect();
        Curve { bars, ..Curve::new(variant, i, Stroke::Dotted, points) }
    };
    let (layers, heads, width, steps, seeds) = (args.layers, args.heads, args.width, args.steps, args.seeds);
    Chart {
        title: format!("Right answers of {}", task.name()),
        subtitle: format!(
            "{layers} layers · {heads} heads · width {width} · up to {steps} steps · {seeds} seeds: mean, least and most"
        ),
        x: Axis::logarithmic(args.task.unit(), Ticks::At(sizes.iter().map(|&size| size as f64).collect())),
        y: Axis::linear("answers that are right", Ticks::Shares),
        curves: variants.iter().enumerate().map(curve).collect(),
        marks: vec![Mark::Level(task.chance(), "guessing".into())],
    }
}

/// A line a variant, a column a size: the mean over seeds, and from least to most where they differ.
fn table(rows: &[Row], variants: &[String], sizes: &[usize], task: TaskName) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    let header = sizes.iter().map(|size| format!("{size} {}", task.unit()));
    table.set_header(["variant".to_string()].into_iter().chain(header).chain(["steps".into(), "seconds".into()]));
    for variant in variants {
        let cell = |&size: &usize| {
            let all = accuracies(rows, variant, size);
            let [low, high] = [least(&all), -least(&all.iter().map(|x| -x).collect::<Vec<_>>())].map(|x| 100.0 * x);
            let shown = format!("{:.1} %", 100.0 * mean(&all));
            if high - low < 0.05 { shown } else { format!("{shown} ({low:.1}–{high:.1})") }
        };
        let of = |value: &dyn Fn(&Row) -> f64| {
            let all: Vec<f64> =
                rows.iter().filter(|r| r.variant == *variant && r.size == sizes[0]).map(value).collect();
            format!("{:.0}", mean(&all))
        };
        let figures = [of(&|r| r.steps as f64), of(&|r| r.seconds)];
        table.add_row([variant.clone()].into_iter().chain(sizes.iter().map(cell)).chain(figures));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// The answer: up to which size each variant solves the task with every seed.
fn sentence(rows: &[Row], variants: &[String], sizes: &[usize], task: Task, unit: &str) -> String {
    let one = |variant: &String| {
        let solved = |&&size: &&usize| least(&accuracies(rows, variant, size)) >= SOLVED;
        let up_to = sizes.iter().take_while(solved).last();
        let size = task.size();
        match up_to {
            Some(&all) if all == size => format!("{variant} solves {} up to {size} {unit}", task.name()),
            found => {
                let right = 100.0 * mean(&accuracies(rows, variant, size));
                let far = found.map_or("no size".into(), |n| format!("{n} {unit} only"));
                format!("{variant} {far}, and gets {right:.0} % right at {size}")
            }
        }
    };
    let all: Vec<String> = variants.iter().map(one).collect();
    let chance = 100.0 * task.chance();
    format!("At least {:.0} % right with every seed: {} (guessing: {chance:.0} %).", 100.0 * SOLVED, all.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_who_solves_what() {
        let row = |variant: &str, seed, size, accuracy| Row {
            task: "recall",
            variant: variant.into(),
            seed,
            size,
            asked: 100,
            right: (100.0 * accuracy) as usize,
            accuracy,
            loss: 0.0,
            steps: 1000,
            seconds: 2.0,
        };
        let rows = vec![
            row("a", 1, 2, 1.0),
            row("a", 1, 4, 1.0),
            row("a", 2, 2, 1.0),
            row("a", 2, 4, 0.99),
            row("b", 1, 2, 1.0),
            row("b", 1, 4, 0.5),
            row("b", 2, 2, 1.0),
            row("b", 2, 4, 1.0),
        ];
        let variants = ["a".to_string(), "b".to_string()];
        let found = sentence(&rows, &variants, &[2, 4], Task::Recall { pairs: 4 }, "pairs");
        let expected = "a solves recall up to 4 pairs; b 2 pairs only, and gets 75 % right at 4 (guessing: 6 %).";
        assert!(found.ends_with(expected), "{found}");
        let table = table(&rows, &variants, &[2, 4], TaskName::Recall);
        assert!(table.contains("99.5 % (99.0–100.0)") && table.contains("75.0 % (50.0–100.0)"), "{table}");
    }
}
