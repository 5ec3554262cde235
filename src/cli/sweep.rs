//! `attn train lm --sweep FILE.toml`: many runs side by side.
//!
//! Each run is turned into flags and parsed by clap, so that whatever `attn train lm` can do, a sweep can. Its folder is
//! named after what tells it from the others. What has been found is written after every run; a run that has ended is not
//! trained again, one that was cut short goes on from its checkpoint.

use super::curves::{self, Curve, Figure, Stroke};
use super::settings::Settings;
use super::train::{LmArgs, Trained, train};
use super::{Status, print_line};
use crate::error::{Error, Result};
use crate::io::Target;
use crate::train::checkpoint::{self, Checkpoint, State};
use crate::train::{Evaluation, directory, interrupted_by_ctrl_c, log};
use clap::{CommandFactory, Parser};
use comfy_table::Table as Printed;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use toml::{Table, Value};

/// Flags that the sweep itself decides.
const OWN: [&str; 6] = ["out", "resume", "overwrite", "sweep", "help", "version"];

/// The flags of `attn train lm` by themselves.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Flags {
    #[command(flatten)]
    lm: LmArgs,
}

/// A run to be made.
struct Run {
    name: String,
    /// What the file says, by the flags' long names.
    flags: Vec<(String, Value)>,
    args: LmArgs,
}

/// A run that has been tried.
struct Row<'a> {
    run: &'a Run,
    outcome: Result<Trained>,
}

/// Errors that name the file.
struct Source<'a>(&'a Path);

impl Source<'_> {
    fn wrong(&self, problem: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::file(self.0, problem, remedy)
    }

    fn table<'v>(&self, value: &'v Value, what: &str) -> Result<&'v Table> {
        value.as_table().ok_or_else(|| self.wrong(format!("`{what}` is no table"), "see `attn train lm --help`"))
    }

    /// The flags of a table, each known to `attn train lm`.
    fn flags(&self, table: &Table, what: &str, beside: &[&str]) -> Result<Vec<(String, Value)>> {
        let command = Flags::command();
        let known: BTreeSet<&str> = command.get_arguments().filter_map(|a| a.get_long()).collect();
        let mut flags = Vec::new();
        for (name, value) in table.iter().filter(|(name, _)| !beside.contains(&name.as_str())) {
            if OWN.contains(&name.as_str()) {
                let problem = format!("{what} has `{name}`, which the sweep decides");
                return Err(self.wrong(problem, "leave it out: runs go into folders of --out"));
            }
            if !known.contains(name.as_str()) {
                let problem = format!("{what} has `{name}`, which is no flag of `attn train lm`");
                return Err(self.wrong(problem, "give flags by their long names without dashes, as in `lr = 1e-3`"));
            }
            flags.push((name.clone(), value.clone()));
        }
        Ok(flags)
    }

    /// A value as it would stand on the command line; nothing for a switch that is off.
    fn argument(&self, (name, value): &(String, Value)) -> Result<Option<String>> {
        Ok(match value {
            Value::Boolean(false) => None,
            Value::Boolean(true) => Some(format!("--{name}")),
            Value::Array(_) | Value::Table(_) => {
                let problem = format!("`{name}` must be one value here");
                return Err(self.wrong(problem, "give several under [grid], as in `lr = [1e-3, 3e-4]`"));
            }
            one => Some(format!("--{name}={}", shown(one))),
        })
    }
}

/// A value as the command line takes it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Float(x) => x.to_string(),
        other => other.to_string(),
    }
}

/// The runs that a file describes.
fn runs(file: &Path, outer: &LmArgs) -> Result<Vec<Run>> {
    let source = Source(file);
    let text = std::fs::read_to_string(file)
        .map_err(|e| source.wrong(format!("cannot be read: {e}"), "give a sweep's description in TOML"))?;
    let table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        source.wrong(format!("is no TOML: line {line}: {}", e.message()), "correct the line")
    })?;
    let mut base = Vec::new();
    let mut grid: Vec<(String, Vec<Value>)> = Vec::new();
    let mut named: Vec<(String, Vec<(String, Value)>)> = Vec::new();
    for (key, value) in &table {
        match key.as_str() {
            "base" => base = source.flags(source.table(value, "base")?, "[base]", &[])?,
            "grid" => {
                for (name, values) in source.flags(source.table(value, "grid")?, "[grid]", &[])? {
                    let Some(values) = values.as_array().filter(|v| !v.is_empty()) else {
                        return Err(
                            source.wrong(format!("[grid] `{name}` is no list of values"), "as in `lr = [1e-3, 3e-4]`")
                        );
                    };
                    grid.push((name, values.clone()));
                }
            }
            "run" => {
                let Some(list) = value.as_array() else {
                    return Err(source.wrong("`run` is no list of tables", "write [[run]] above each"));
                };
                for (i, run) in list.iter().enumerate() {
                    let run = source.table(run, "run")?;
                    let Some(name) = run.get("name").and_then(Value::as_str).filter(|n| is_plain(n)) else {
                        let remedy = "give each [[run]] a `name` of letters, digits, `.`, `_` and `-`";
                        return Err(
                            source.wrong(format!("[[run]] number {} has no name for its folder", i + 1), remedy)
                        );
                    };
                    named.push((name.into(), source.flags(run, &format!("[[run]] `{name}`"), &["name"])?));
                }
            }
            other => {
                let problem = format!("has `{other}`, which is no part of a sweep");
                return Err(source.wrong(problem, "give [base], [grid] and [[run]]"));
            }
        }
    }
    if grid.is_empty() && named.is_empty() {
        return Err(source.wrong("describes no run", "give a [grid], or a [[run]]"));
    }
    if named.is_empty() {
        named.push((String::new(), Vec::new()));
    }
    // Every combination, the last list changing fastest.
    let mut points: Vec<Vec<(String, Value)>> = vec![Vec::new()];
    for (name, values) in &grid {
        let with = |point: &Vec<(String, Value)>, value: &Value| {
            point.iter().cloned().chain([(name.clone(), value.clone())]).collect()
        };
        points = points.iter().flat_map(|point| values.iter().map(move |value| with(point, value))).collect();
    }
    let mut runs: Vec<Run> = Vec::new();
    for (name, own) in &named {
        if let Some((flag, _)) = own.iter().find(|(flag, _)| grid.iter().any(|(g, _)| g == flag)) {
            let problem = format!("[[run]] `{name}` sets `{flag}`, and so does [grid]");
            return Err(source.wrong(problem, "leave it out of one of them"));
        }
        for point in &points {
            let varied = point.iter().map(|(flag, value)| format!("{flag}={}", file_name(&shown(value))));
            let parts: Vec<String> = Some(name.clone()).filter(|n| !n.is_empty()).into_iter().chain(varied).collect();
            let name = parts.join(",");
            if runs.iter().any(|run| run.name == name) {
                return Err(
                    source.wrong(format!("describes the run `{name}` twice"), "give every run its own name and values")
                );
            }
            let mut flags = base.clone();
            for (flag, value) in own.iter().chain(point) {
                flags.retain(|(name, _)| name != flag);
                flags.push((flag.clone(), value.clone()));
            }
            let args = parsed(&source, &name, &flags, outer)?;
            runs.push(Run { name, flags, args });
        }
    }
    Ok(runs)
}

fn is_plain(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(fits)
}

/// A value as part of a folder's name.
fn file_name(value: &str) -> String {
    value.chars().map(|c| if c.is_alphanumeric() || "._-+".contains(c) { c } else { '_' }).collect()
}

/// The flags of a run, parsed and found in range.
fn parsed(source: &Source, name: &str, flags: &[(String, Value)], outer: &LmArgs) -> Result<LmArgs> {
    let out = outer.out.as_ref().expect("clap asks for it").join(name);
    let mut line = vec![format!("--out={}", out.display())];
    for flag in flags {
        line.extend(source.argument(flag)?);
    }
    let mut args = match Flags::try_parse_from(line) {
        Ok(flags) => flags.lm,
        Err(e) => {
            let message = e.to_string();
            let first = message.lines().next().unwrap_or_default();
            let problem = format!("run `{name}`: {}", first.strip_prefix("error: ").unwrap_or(first));
            return Err(source.wrong(problem, "see `attn train lm --help`"));
        }
    };
    args.settings.start(None).map_err(|e| source.wrong(format!("run `{name}`: {e}"), "correct it in the file"))?;
    let given = |flag: &str| flags.iter().any(|(name, _)| name == flag);
    if !given("device") {
        args.device.device = outer.device.device;
    }
    if !given("threads") {
        args.device.threads = outer.device.threads;
    }
    args.eager |= outer.eager;
    Ok(args)
}

/// Makes all runs of a file.
///
/// # Errors
/// If the file will not do, before anything is trained; if the sweep was interrupted; if a run failed, after the others.
pub(super) fn run(file: &Path, outer: &LmArgs) -> Result<Status> {
    let runs = runs(file, outer)?;
    let out = outer.out.clone().expect("clap asks for it");
    directory::create(&out)?;
    let mut rows: Vec<Row> = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        eprintln!("run {} of {}: {}", i + 1, runs.len(), run.name);
        let outcome = one(run);
        if outcome.is_err() && interrupted_by_ctrl_c().load(Ordering::SeqCst) {
            let problem = format!("interrupted in run {} of {}, `{}`", i + 1, runs.len(), run.name);
            return Err(Error::argument("the sweep", problem, "go on with the same command"));
        }
        if let Err(e) = &outcome {
            eprintln!("run `{}` failed: {e}", run.name);
        }
        rows.push(Row { run, outcome });
        write(&out, &rows)?;
    }
    print_line(table(&rows))?;
    if let Some(best) = best(&rows) {
        let (loss, _) = best.lowest().expect("the best run has a loss");
        print_line(format_args!("best: {}, val_loss {loss:.4}; in {}", best.run.name, best.run.folder().display()))?;
    }
    match rows.iter().find_map(|row| Some((row, row.outcome.as_ref().err()?))) {
        None => Ok(Status::Done),
        Some((row, first)) => {
            let failed = rows.iter().filter(|r| r.outcome.is_err()).count();
            let problem = format!("{failed} of {} runs failed, first `{}`: {first}", rows.len(), row.run.name);
            Err(Error::argument("the sweep", problem, "correct what it names, and give the same command again"))
        }
    }
}

impl Run {
    fn folder(&self) -> &Path {
        self.args.out.as_deref().expect("every run has a folder")
    }
}

/// Makes a run, goes on with it, or finds it done.
fn one(run: &Run) -> Result<Trained> {
    let out: PathBuf = run.folder().into();
    let mut args = run.args.clone();
    if !checkpoint::is_there(&out) {
        // A run that was cut short before its first checkpoint has nothing to keep.
        args.overwrite = true;
        return train(args);
    }
    let (state, stored): (State, Settings) = Checkpoint::open(&out)?.training()?;
    let settings = args.settings.resume(stored)?;
    let State { step, watch } = state;
    let early = settings.training.early_stop;
    if step < settings.training.steps && !(early > 0 && watch.since_best >= early) {
        args.resume = Some(Some(out));
        return train(args);
    }
    let rows = log::rows(&out)?;
    let last = rows.iter().rev().find_map(|row| row["val_loss"].as_f64());
    let Some(loss) = last else {
        return Err(Error::file(
            out.join(log::LOG),
            "has no validation loss",
            "remove the run's folder to train it again",
        ));
    };
    Ok(Trained { out, steps: step, found: Evaluation { tokens: 0, loss }, watch })
}

impl Row<'_> {
    /// The median over the steps that were logged.
    fn tokens_per_s(&self) -> Option<f64> {
        let rows = log::rows(self.run.folder()).ok()?;
        let mut all: Vec<f64> = curves::points(&rows, "tokens_per_s").into_iter().map(|p| p.1).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }

    /// The lowest validation loss, and after how many steps.
    fn lowest(&self) -> Option<(f64, u64)> {
        let trained = self.outcome.as_ref().ok()?;
        let last = (trained.found.loss, trained.steps);
        let best = trained.watch.best.map(|best| (best, trained.watch.best_step));
        Some(best.filter(|b| b.0 <= last.0).unwrap_or(last))
    }
}

/// The run of the lowest validation loss.
fn best<'a>(rows: &'a [Row<'a>]) -> Option<&'a Row<'a>> {
    let finished = rows.iter().filter(|r| r.lowest().is_some_and(|l| l.0.is_finite()));
    finished.min_by(|a, b| a.lowest().unwrap().0.total_cmp(&b.lowest().unwrap().0))
}

const COLUMNS: [&str; 7] = ["run", "steps", "val_loss", "val_perplexity", "best_val_loss", "best_step", "tokens_per_s"];

/// A row's figures, as text.
fn cells(row: &Row) -> Vec<String> {
    let mut cells = vec![row.run.name.clone()];
    match &row.outcome {
        Ok(trained) => {
            let (lowest, step) = row.lowest().expect("it has one");
            let Evaluation { loss, .. } = trained.found;
            cells.extend([
                trained.steps.to_string(),
                format!("{loss:.4}"),
                format!("{:.3}", trained.found.perplexity()),
            ]);
            cells.extend([
                format!("{lowest:.4}"),
                step.to_string(),
                row.tokens_per_s().map_or("–".into(), |speed| format!("{speed:.0}")),
            ]);
        }
        Err(_) => cells.extend(["failed"].into_iter().chain(["–"; 5]).map(String::from)),
    }
    cells
}

fn table(rows: &[Row]) -> Printed {
    let mut table = Printed::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(COLUMNS);
    rows.iter().for_each(|row| {
        table.add_row(cells(row));
    });
    table
}

/// Writes `sweep.json`, `sweep.csv` and the plot of all curves.
fn write(out: &Path, rows: &[Row]) -> Result<()> {
    let object = |row: &Row| {
        let flags =
            serde_json::to_value(row.run.flags.iter().cloned().collect::<Table>()).expect("flags are plain data");
        let mut object = json!({ "run": row.run.name, "flags": flags });
        match &row.outcome {
            Ok(trained) => {
                let (lowest, step) = row.lowest().expect("it has one");
                object["steps"] = trained.steps.into();
                object["val_loss"] = trained.found.loss.into();
                object["val_perplexity"] = trained.found.perplexity().into();
                object["best_val_loss"] = lowest.into();
                object["best_step"] = step.into();
                object["tokens_per_s"] = row.tokens_per_s().into();
            }
            Err(e) => object["error"] = e.to_string().into(),
        }
        object
    };
    let all: Vec<serde_json::Value> = rows.iter().map(object).collect();
    let value = json!({ "runs": all, "best": best(rows).map(|row| row.run.name.clone()) });
    Target::new(&out.join("sweep.json"))?.write(|w| writeln!(w, "{value:#}"))?;
    Target::new(&out.join("sweep.csv"))?.write(|w| {
        writeln!(w, "{}", COLUMNS.join(","))?;
        // Runs' names hold commas.
        rows.iter().try_for_each(|row| {
            let cells = cells(row);
            writeln!(w, "\"{}\",{}", cells[0], cells[1..].join(","))
        })
    })?;
    let mut figure = Figure { title: String::new(), subtitle: String::new(), curves: Vec::new() };
    let mut on_validation = true;
    let mut logs = Vec::new();
    for row in rows {
        let log = log::rows(row.run.folder()).unwrap_or_default();
        on_validation &= curves::points(&log, "val_loss").len() > 1;
        logs.push(log);
    }
    for (i, (row, log)) in rows.iter().zip(&logs).enumerate() {
        let (points, stroke) = if on_validation {
            (curves::points(log, "val_loss"), Stroke::Dotted)
        } else {
            (curves::smoothed(&curves::points(log, "loss"), 60), Stroke::Plain)
        };
        figure.curves.push(Curve { name: row.run.name.clone(), color: i, stroke, points });
    }
    figure.title = format!("{} runs", rows.len());
    figure.subtitle =
        format!("{} loss (nats a token) over steps", if on_validation { "validation" } else { "training" });
    curves::write(out, &figure)
}
