//! The loop.

use super::{Evaluation, Log, Progress, TrainingStep};
use crate::data::Batch;
use crate::error::{Error, Result};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// When what happens; steps are counted as done.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Steps that an earlier run has done.
    pub from: u64,
    /// Steps in all.
    pub steps: u64,
    /// Evaluate after every so many; 0: only at the end.
    pub eval_every: u64,
    /// Write a checkpoint after every so many; 0: only at the end.
    pub save_every: u64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ended {
    /// All steps are done; what the last evaluation found.
    Done(Evaluation),
    /// Stopped after so many steps.
    Interrupted(u64),
}

/// Trains by the schedule. `batch` gives what a step (counted from 0) learns, `evaluate` the validation
/// loss, `save` writes a checkpoint after so many steps; `stop` asks whether to stop after the present step.
///
/// # Errors
/// If a loss is not finite, or a callback fails.
pub fn run(
    training: &mut TrainingStep,
    schedule: Schedule,
    log: &mut Log,
    batch: impl Fn(u64) -> Batch,
    mut evaluate: impl FnMut(&TrainingStep) -> Result<Evaluation>,
    mut save: impl FnMut(&TrainingStep, u64) -> Result<()>,
    stop: impl Fn() -> bool,
) -> Result<Ended> {
    let Schedule { from, steps, eval_every, save_every } = schedule;
    let mut progress = Progress::new("training", from, steps);
    for step in from..steps {
        let start = Instant::now();
        let batch = batch(step);
        let loss = training.run(step, &batch)?;
        let tokens_per_s = batch.tokens.len() as f64 / start.elapsed().as_secs_f64();
        let done = step + 1;
        if !loss.is_finite() {
            let remedy = "resume from the last checkpoint with a smaller --lr, or check the weights given by --init";
            return Err(Error::argument("training", format!("the loss of step {done} is {loss}"), remedy));
        }
        log.step(done, loss, training.settings().lr, tokens_per_s)?;
        progress.step(done, loss, tokens_per_s);
        let last = done == steps;
        let due = |every: u64| every > 0 && done.is_multiple_of(every);
        if last || due(eval_every) {
            let found = evaluate(training)?;
            log.validation(done, found)?;
            if last {
                progress.finish();
                save(training, done)?;
                return Ok(Ended::Done(found));
            }
        }
        let stopped = stop();
        if stopped || due(save_every) {
            save(training, done)?;
        }
        if stopped {
            progress.finish();
            return Ok(Ended::Interrupted(done));
        }
    }
    Err(Error::argument("--steps", format!("{steps} have been done already"), "give a larger number to go on"))
}

/// Catches Ctrl-C: the first asks the loop to stop after its step, a second ends the process. Says whether the first has
/// come.
pub fn interrupted_by_ctrl_c() -> &'static AtomicBool {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    static HANDLER: OnceLock<()> = OnceLock::new();
    HANDLER.get_or_init(|| {
        let asked = || {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(2);
            }
        };
        // Where a handler is set already (by a program that uses this crate), that one decides.
        let _ = ctrlc::set_handler(asked);
    });
    &INTERRUPTED
}
