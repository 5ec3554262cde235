//! Runs side by side: a learning curve over the number of texts, or a sweep that a file describes.
//!
//! What has been found is written after every run. Given the same command again, a run that has ended is not trained again,
//! and one that was cut short goes on from its checkpoint.

use super::flags::{Flags, said};
use super::run::{self, Done, Place, figures};
use super::toml_file;
use crate::cli::curves;
use crate::cli::device::DeviceArgs;
use crate::cli::{Status, print_line};
use crate::error::{Error, Result};
use crate::io::Target;
use crate::plot::chart::{Chart, Curve, Stroke};
use crate::plot::{Axis, Ticks};
use crate::train::classify_files as files;
use crate::train::metrics::Confusion;
use crate::train::{directory, interrupted_by_ctrl_c};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use toml::{Table, Value};

/// A run to be made.
struct Run {
    name: String,
    flags: Flags,
}

/// What a sweep's file describes.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct File {
    base: Table,
    grid: BTreeMap<String, Vec<Value>>,
    run: Vec<Table>,
}

/// A run for each number of texts, and their curve.
pub fn learning_curve(flags: &Flags, out: &Path, overwrite: bool, device: &DeviceArgs) -> Result<Status> {
    let mut counts = flags.examples.clone().unwrap_or_default();
    counts.sort_unstable();
    counts.dedup();
    let run = |&n: &usize| {
        let flags = Flags { examples: Some(vec![n]), ..flags.clone() };
        Run { name: format!("examples={n}"), flags }
    };
    let done = all(&counts.iter().map(run).collect::<Vec<_>>(), out, overwrite, device)?;
    let name = flags.required_model()?.name();
    let curve = |label: &str, figure: fn(&Done) -> f64, color: usize| {
        let points = done.iter().map(|(_, d)| (d.texts as f64, figure(d))).collect();
        Curve::new(label, color, Stroke::Dotted, points)
    };
    let chart = Chart {
        title: format!("{name}: learning curve"),
        subtitle: "best dev accuracy and F1 (%)".into(),
        x: Axis::logarithmic("training texts", Ticks::At(done.iter().map(|(_, d)| d.texts as f64).collect())),
        y: Axis::linear("", Ticks::Round),
        curves: vec![
            curve("accuracy", |d| 100.0 * d.best.confusion.accuracy(), 0),
            curve("F1", |d| 100.0 * d.best.confusion.headline(Confusion::f1), 1),
        ],
        marks: Vec::new(),
    };
    curves::write(out, &chart)?;
    finish(&done)
}

/// Every run of a file.
pub fn sweep(file: &Path, flags: &Flags, out: &Path, overwrite: bool, device: &DeviceArgs) -> Result<Status> {
    let described: File = toml_file(file)?;
    let wrong = |problem: String| Error::file(file, problem, "give flags by their long names, as in `lr = 1e-3`");
    let parse = |what: String, table: Table| -> Result<Flags> {
        table.try_into().map_err(|e: toml::de::Error| wrong(format!("{what}: {}", e.message())))
    };
    let shared = parse("[base]".into(), described.base)?.over(flags);
    let parsed = |name: &str, table: Table| -> Result<Flags> {
        let own = parse(format!("run `{name}`"), table)?;
        let model = own.model.map_or_else(|| shared.required_model(), Ok)?;
        Ok(own.over(&shared.of_model(model)))
    };
    let mut combinations: Vec<Vec<(String, Value)>> = vec![Vec::new()];
    for (flag, values) in &described.grid {
        let longer = |c: &Vec<(String, Value)>| -> Vec<Vec<(String, Value)>> {
            values.iter().map(|v| c.iter().cloned().chain([(flag.clone(), v.clone())]).collect()).collect()
        };
        combinations = combinations.iter().flat_map(longer).collect();
    }
    let mut runs = Vec::new();
    if !described.grid.is_empty() || described.run.is_empty() {
        for combination in combinations {
            let shown = |v: &Value| v.as_str().map_or_else(|| v.to_string(), String::from);
            let named: Vec<String> =
                combination.iter().map(|(flag, value)| format!("{flag}={}", shown(value))).collect();
            let name = if named.is_empty() { "base".into() } else { named.join(",") };
            let flags = parsed(&name, combination.into_iter().collect())?;
            runs.push(Run { name, flags });
        }
    }
    for mut own in described.run {
        let Some(name) = own.remove("name").and_then(|n| n.as_str().map(String::from)) else {
            return Err(wrong("a [[run]] has no `name`".into()));
        };
        runs.push(Run { flags: parsed(&name, own)?, name });
    }
    let fits = |c: char| c.is_alphanumeric() || "._-+=,".contains(c);
    for (i, run) in runs.iter().enumerate() {
        let name = &run.name;
        if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
            return Err(wrong(format!("run `{name}` has a name that is no folder's")));
        }
        if runs[..i].iter().any(|other| other.name == *name) {
            return Err(wrong(format!("two runs are called `{name}`")));
        }
        run.flags.optimizer()?;
    }
    let done = all(&runs, out, overwrite, device)?;
    let curve = |(i, (name, done)): (usize, &(String, Done))| -> Result<Curve> {
        let points = curves::points(&crate::train::log::rows(&done.out)?, "dev_accuracy");
        let points = points.into_iter().map(|(x, y)| (x, 100.0 * y)).collect();
        Ok(Curve::new(name, i, Stroke::Dotted, points))
    };
    let drawn = done.iter().enumerate().map(curve).collect::<Result<_>>()?;
    curves::write(out, &curves::chart(&format!("{} runs", done.len()), "dev accuracy (%) over steps", drawn))?;
    finish(&done)
}

fn all(runs: &[Run], out: &Path, overwrite: bool, device: &DeviceArgs) -> Result<Vec<(String, Done)>> {
    if !overwrite && !directory::is_vacant(out) && !out.join(FIGURES).exists() {
        return Err(Error::file(out, "is not empty", "give another --out, or start over with --overwrite"));
    }
    directory::create(out)?;
    let mut done: Vec<(String, Done)> = Vec::new();
    // This file marks the directory as one to go on with.
    if overwrite || !out.join(FIGURES).exists() {
        write(&done, out)?;
    }
    for (i, Run { name, flags }) in runs.iter().enumerate() {
        eprintln!("run {} of {}: {name}", i + 1, runs.len());
        let own = out.join(name);
        // A run that was cut short before its first checkpoint has nothing to keep.
        let begun = !overwrite && files::is_begun(&own);
        let place = if begun { Place::Again(&own) } else { Place::New { out: &own, overwrite: true } };
        match run::run(flags, place, device) {
            Ok(one) => done.push((name.clone(), one)),
            Err(_) if interrupted_by_ctrl_c().load(Ordering::SeqCst) => {
                let problem = format!("interrupted in run {} of {}, `{name}`", i + 1, runs.len());
                return Err(Error::argument("the runs", problem, "go on with the same command"));
            }
            Err(e) => {
                let problem = format!("run {} of {}, `{name}`, failed: {e}", i + 1, runs.len());
                let remedy = "correct what it names, and give the same command again, or --overwrite to start over";
                return Err(Error::argument("the runs", problem, remedy));
            }
        }
        write(&done, out)?;
    }
    Ok(done)
}

/// What has been found, for programs.
const FIGURES: &str = "runs.json";

const COLUMNS: [&str; 8] = ["run", "texts", "epochs", "s/epoch", "best_epoch", "dev_loss", "dev_accuracy", "dev_f1"];

fn cells((name, done): &(String, Done)) -> [String; 8] {
    let found = &done.best;
    [
        name.clone(),
        done.texts.to_string(),
        format!("{:.2}", done.epochs),
        format!("{:.3}", done.epoch_seconds),
        format!("{:.2}", done.best_epoch),
        format!("{:.4}", found.loss),
        format!("{:.4}", found.confusion.accuracy()),
        format!("{:.4}", found.confusion.headline(Confusion::f1)),
    ]
}

/// Writes [`FIGURES`], and the table as `runs.csv`.
fn write(done: &[(String, Done)], out: &Path) -> Result<()> {
    let object = |row: &(String, Done)| {
        let flags = said(row.1.flags());
        let (found, d) = (&row.1.best, &row.1);
        json!({
            "run": row.0, "flags": flags, "texts": d.texts, "epochs": d.epochs, "epoch_seconds": d.epoch_seconds,
            "best_epoch": d.best_epoch, "dev_loss": found.loss, "dev_accuracy": found.confusion.accuracy(),
            "dev_f1": found.confusion.headline(Confusion::f1),
        })
    };
    let value = json!({ "runs": done.iter().map(object).collect::<Vec<_>>() });
    Target::new(&out.join(FIGURES))?.write(|w| writeln!(w, "{value:#}"))?;
    Target::new(&out.join("runs.csv"))?.write(|w| {
        writeln!(w, "{}", COLUMNS.join(","))?;
        done.iter().map(cells).try_for_each(|row| writeln!(w, "\"{}\",{}", row[0], row[1..].join(",")))
    })
}

/// Prints the table, names the best run, and reads the test table with it, once.
fn finish(done: &[(String, Done)]) -> Result<Status> {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(COLUMNS);
    done.iter().map(cells).for_each(|row| {
        table.add_row(row);
    });
    print_line(table)?;
    let score = |d: &Done| d.score();
    if let Some((name, best)) = done.iter().min_by(|a, b| score(&a.1).total_cmp(&score(&b.1))) {
        print_line(format_args!("best: {name}: dev {}; in {}", figures(&best.best), best.out.display()))?;
        if let Some(test) = best.test()? {
            print_line(format_args!("test: {}", figures(&test)))?;
        }
    }
    Ok(Status::Done)
}
