//! Training classifiers: epochs over texts of any length, evaluation on held-out ones, and the state that a resumed run needs.
//!
//! Which texts a step learns follows from the step alone, so that a run in parts does what it would do in one, bit for bit.
//! Steps between two events (a row of the log, an evaluation) run in one go on the device's threads: at batch 1 a step takes
//! a few microseconds, and changing threads would take longer.

use super::metrics::Confusion;
use super::{Log, Schedule, Watch};
use crate::data::{DataOrder, Permutation};
use crate::error::{Error, Result};
use crate::model::classifier::Plans;
use crate::optimizer::{ClipGradientNorm, Optimizer, OptimizerSettings};
use crate::philox::Philox;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The stream that orders texts, anew in each epoch.
const ORDER: u32 = 0x636c_6f72;

/// Texts as rows, with their classes.
#[derive(Debug, Clone, Default)]
pub struct Examples {
    /// Rows of the table.
    pub rows: Vec<Vec<i32>>,
    /// An index of the labels.
    pub classes: Vec<u32>,
}

impl Examples {
    /// Words of the longest text.
    pub fn longest(&self) -> usize {
        self.rows.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// Plans with an optimiser: one step at a time.
pub struct ClassifierStep {
    plans: Plans,
    optimizer: Box<dyn Optimizer>,
    /// `None` where nothing is clipped, whatever the norm.
    clip: Option<ClipGradientNorm>,
    seed: u64,
}

impl ClassifierStep {
    /// With plans that can train ([`Plans::new`]).
    pub fn new(plans: Plans, settings: OptimizerSettings, seed: u64) -> ClassifierStep {
        let optimizer = settings.optimizer(plans.plan().parameter_elements().1);
        let clip = settings.max_norm.is_finite().then_some(ClipGradientNorm { max_norm: settings.max_norm });
        ClassifierStep { plans, optimizer, clip, seed }
    }

    /// The plans, whose parameters are trained.
    pub fn plans(&self) -> &Plans {
        &self.plans
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &dyn Optimizer {
        &*self.optimizer
    }

    /// Learns these rows, at most a batch, and returns their mean loss before the update. `step` counts from 0.
    ///
    /// # Errors
    /// If the device fails.
    pub fn run(&mut self, step: u64, rate: f64, rows: &[(&[i32], Option<u32>)]) -> Result<f64> {
        // Into the device's threads once: with one short text a step, each way in and out would cost as much as its work.
        let device = self.plans.plan().device().clone();
        let mut loss = Ok(0.0);
        device.scope(&mut || loss = self.learn(step, rate, rows));
        loss
    }

    fn learn(&mut self, step: u64, rate: f64, rows: &[(&[i32], Option<u32>)]) -> Result<f64> {
        let plan = self.plans.write(rows, (self.seed, step))?;
        plan.write_hyper(&self.optimizer.hyper(rate, step + 1))?;
        plan.forward()?;
        plan.backward()?;
        if let Some(clip) = &self.clip {
            plan.update(clip)?;
        }
        plan.update(&*self.optimizer)?;
        self.plans.loss()
    }
}

/// By what the best checkpoint is chosen, and training stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// The highest accuracy.
    #[default]
    Accuracy,
    /// The highest F1: of two classes that of the second, else the mean over them.
    F1,
    /// The lowest loss.
    Loss,
}

/// What an evaluation has found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The mean loss.
    pub loss: f64,
    /// Who was taken for what.
    pub confusion: Confusion,
}

impl Found {
    /// The measure as something to be lowered, not negative.
    pub fn score(&self, by: Measure) -> f64 {
        match by {
            Measure::Accuracy => 1.0 - self.confusion.accuracy(),
            Measure::F1 => 1.0 - self.confusion.headline(Confusion::f1),
            Measure::Loss => self.loss,
        }
    }
}

/// Evaluates on texts, similar lengths together.
///
/// # Errors
/// If the device fails.
pub fn evaluate(plans: &mut Plans, examples: &Examples) -> Result<Found> {
    let classes = plans.config().labels.len();
    let mut order: Vec<usize> = (0..examples.rows.len()).collect();
    order.sort_by_key(|&i| examples.rows[i].len());
    let (mut confusion, mut total) = (Confusion::new(classes), 0.0);
    let device = plans.plan().device().clone();
    let mut all = || -> Result<()> {
        for chunk in order.chunks(plans.batch()) {
            let row = |&i: &usize| (&examples.rows[i][..], Some(examples.classes[i]));
            let rows: Vec<(&[i32], Option<u32>)> = chunk.iter().map(row).collect();
            plans.write(&rows, (0, 0))?.forward()?;
            total += plans.losses()?[..chunk.len()].iter().sum::<f64>();
            for (probabilities, &i) in plans.probabilities()?.chunks(classes).zip(chunk) {
                let class = (0..classes).rev().max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
                confusion.add(examples.classes[i] as usize, class.expect("at least two"));
            }
        }
        Ok(())
    };
    let mut result = Ok(());
    device.scope(&mut || result = all());
    result?;
    Ok(Found { loss: total / examples.rows.len().max(1) as f64, confusion })
}

/// How a run goes.
#[derive(Debug, Clone, Copy)]
pub struct Fit {
    /// Times that every text is learned.
    pub epochs: u64,
    /// Texts a step.
    pub batch: usize,
    /// Drawn anew in each epoch, or as they come.
    pub order: DataOrder,
    /// Decides the order.
    pub seed: u64,
    /// Steps between evaluations; 0: after each epoch.
    pub eval_every: u64,
    /// Evaluations without a better one after which training stops; 0: it does not.
    pub patience: u64,
    /// What better means.
    pub best_by: Measure,
    /// Steps whose mean loss is a row of the log.
    pub log_every: u64,
    /// The highest learning rate.
    pub lr: f64,
    /// How it changes.
    pub schedule: Schedule,
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// What evaluations have shown.
    pub watch: Watch,
    /// Losses since the last row of the log, and how many.
    pub running: (f64, u64),
    /// Losses of this epoch, and how many.
    pub of_epoch: (f64, u64),
    /// Seconds that this epoch's steps have taken.
    pub seconds: f64,
    /// Seconds that the steps of all whole epochs have taken.
    pub all_seconds: f64,
}

/// Which checkpoint is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// From which the run can go on.
    Last,
    /// The best so far.
    Best,
}

/// An evaluation as it is told.
#[derive(Debug, Clone)]
pub struct Report<'a> {
    /// Epochs done, the present one in part.
    pub epoch: f64,
    /// The mean training loss of this epoch so far.
    pub loss: f64,
    /// Seconds that the epoch's steps have taken.
    pub seconds: f64,
    /// What was found.
    pub found: &'a Found,
    /// Whether it is the best so far.
    pub best: bool,
}

/// What the loop asks for.
pub struct Hooks<'a> {
    /// Writes a checkpoint.
    pub save: &'a mut dyn FnMut(&ClassifierStep, &State, Kept) -> Result<()>,
    /// Tells of an evaluation.
    pub tell: &'a mut dyn FnMut(&Report),
    /// Whether to stop after the present step.
    pub stop: &'a AtomicBool,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All epochs are done.
    Done,
    /// Evaluations found nothing better.
    Early,
    /// As was asked for.
    Interrupted,
}

/// How often the last checkpoint is written at most, besides at the end.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// Steps of an epoch of so many texts.
pub fn steps_an_epoch(texts: usize, batch: usize) -> u64 {
    texts.div_ceil(batch) as u64
}

/// Trains.
///
/// # Errors
/// If a loss is not finite, or a hook fails.
pub fn fit(
    step: &mut ClassifierStep,
    evaluator: &mut Plans,
    (train, dev): (&Examples, &Examples),
    fit: &Fit,
    state: &mut State,
    log: &mut Log,
    hooks: Hooks,
) -> Result<Ended> {
    let texts = train.rows.len();
    let an_epoch = steps_an_epoch(texts, fit.batch);
    let total = an_epoch * fit.epochs;
    let device = step.plans.plan().device().clone();
    let mut saved = Instant::now();
    while state.step < total {
        let end_of_epoch = (state.step / an_epoch + 1) * an_epoch;
        let next = |every: u64| state.step.checked_div(every).map_or(u64::MAX, |times| (times + 1) * every);
        let until = end_of_epoch.min(next(fit.log_every)).min(next(fit.eval_every));
        let (start, before) = (Instant::now(), state.step);
        let mut result = Ok(());
        // Steps may be split over threads; which step comes next never is.
        device.scope(&mut || {
            result = (|| {
                while state.step < until && !hooks.stop.load(Ordering::Relaxed) {
                    let (epoch, place) = (state.step / an_epoch, (state.step % an_epoch) as usize * fit.batch);
                    let order = Permutation::new(texts as u64, Philox::new(fit.seed, ORDER, epoch as u32));
                    let row = |place: usize| {
                        let shuffled = fit.order == DataOrder::Random;
                        let i = if shuffled { order.at(place as u64) as usize } else { place };
                        (&train.rows[i][..], Some(train.classes[i]))
                    };
                    let rows: Vec<(&[i32], Option<u32>)> = (place..(place + fit.batch).min(texts)).map(row).collect();
                    let rate = fit.schedule.rate(fit.lr, state.step, &state.watch);
                    let loss = step.run(state.step, rate, &rows)?;
                    state.step += 1;
                    if !loss.is_finite() {
                        let problem = format!("the loss of step {} is {loss}", state.step);
                        return Err(Error::argument("training", problem, "give a smaller --lr, or --grad-clip 1"));
                    }
                    for (sum, count) in [&mut state.running, &mut state.of_epoch] {
                        (*sum, *count) = (*sum + loss, *count + 1);
                    }
                }
                Ok(())
            })();
        });
        result?;
        state.seconds += start.elapsed().as_secs_f64();
        if state.step > before && fit.log_every > 0 && state.step.is_multiple_of(fit.log_every) {
            let (sum, count) = std::mem::take(&mut state.running);
            let rate = fit.schedule.rate(fit.lr, state.step - 1, &state.watch);
            log.row(json!({ "step": state.step, "loss": sum / count as f64, "loss_sum": sum, "lr": rate }))?;
        }
        let epoch_done = state.step == end_of_epoch;
        let due = if fit.eval_every == 0 { epoch_done } else { state.step.is_multiple_of(fit.eval_every) };
        if state.step == until && (due || state.step == total) {
            let found = evaluate(evaluator, dev)?;
            let best = state.watch.see(state.step, found.score(fit.best_by), fit.schedule.patience);
            let (epoch, loss) = (state.step as f64 / an_epoch as f64, state.of_epoch.0 / state.of_epoch.1 as f64);
            let of = |figure: fn(&Confusion, usize) -> f64| found.confusion.headline(figure);
            log.row(json!({
                "step": state.step, "epoch": epoch, "epoch_loss": loss, "epoch_seconds": state.seconds,
                "dev_loss": found.loss, "dev_accuracy": found.confusion.accuracy(),
                "dev_precision": of(Confusion::precision), "dev_recall": of(Confusion::recall),
                "dev_f1": of(Confusion::f1),
            }))?;
            (hooks.tell)(&Report { epoch, loss, seconds: state.seconds, found: &found, best });
            if epoch_done {
                finish_epoch(state);
            }
            if best {
                (hooks.save)(step, state, Kept::Best)?;
            }
            if state.step < total && fit.patience > 0 && state.watch.since_best >= fit.patience {
                (hooks.save)(step, state, Kept::Last)?;
                return Ok(Ended::Early);
            }
        } else if epoch_done {
            finish_epoch(state);
        }
        let stopped = state.step < until;
        if stopped || state.step == total || saved.elapsed() > SAVE_EVERY {
            saved = Instant::now();
            (hooks.save)(step, state, Kept::Last)?;
        }
        if stopped {
            return Ok(Ended::Interrupted);
        }
    }
    Ok(Ended::Done)
}

fn finish_epoch(state: &mut State) {
    state.all_seconds += std::mem::take(&mut state.seconds);
    state.of_epoch = (0.0, 0);
}
