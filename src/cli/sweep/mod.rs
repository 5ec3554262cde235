//! `attn train lm --sweep FILE.toml`: many runs side by side.
//!
//! Each run is turned into flags and parsed by clap, so that whatever `attn train lm` can do, a sweep can. Its folder is
//! named after what tells it from the others. What has been found is written after every run; a run that has ended is not
//! trained again, one that was cut short goes on from its checkpoint.

mod file;

use super::curves;
use super::settings::Settings;
use super::train::{LmArgs, Trained, train};
use super::{Status, eval, print_line};
use crate::error::{Error, Result};
use crate::io::Target;
use crate::plot::chart::{Curve, Stroke};
use crate::train::checkpoint::{self, Checkpoint, State};
use crate::train::{Evaluation, directory, interrupted_by_ctrl_c, log};
use comfy_table::Table as Printed;
use file::{Run, Sweep};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use toml::Table;

/// A run that has been tried.
struct Row<'a> {
    run: &'a Run,
    outcome: Result<Trained>,
}

/// Makes all runs of a file.
///
/// # Errors
/// If the file will not do, before anything is trained; if the sweep was interrupted; if a run failed, after the others.
pub(super) fn run(file: &Path, outer: &LmArgs) -> Result<Status> {
    let Sweep { runs, eval: evaluation } = file::read(file, outer)?;
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
    if let Some(evaluation) = evaluation.filter(|_| rows.iter().all(|row| row.outcome.is_ok())) {
        eval::main(evaluation)?;
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
    Ok(Trained { out, steps: step, found: Evaluation { tokens: 0, loss, accuracy: None }, watch })
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
    let mut drawn = Vec::new();
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
        drawn.push(Curve::new(&row.run.name, i, stroke, points));
    }
    let kind = if on_validation { "validation" } else { "training" };
    let subtitle = format!("{kind} loss (nats a token) over steps");
    curves::write(out, &curves::chart(&format!("{} runs", rows.len()), &subtitle, drawn))
}
