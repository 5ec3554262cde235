//! The loop.

use super::{Evaluation, Log, Progress, Schedule, TrainingStep, Watch};
use crate::data::Batch;
use crate::error::{Error, Result};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// When what happens; steps are counted as done.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Steps that an earlier run has done.
    pub from: u64,
    /// Steps in all.
    pub steps: u64,
    /// Evaluate after every so many; 0: only at the end.
    pub eval_every: u64,
    /// Write a checkpoint after every so many; 0: only at the end.
    pub save_every: u64,
    /// Stop after so many evaluations in a row without a new best; 0: never. The one at the end does not count unless
    /// it is due anyway.
    pub early_stop: u64,
}

/// Which checkpoint is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// From which the run can go on.
    Last,
    /// That of the lowest validation loss so far.
    Best,
}

/// What the loop asks for.
pub struct Hooks<'a> {
    /// The batch of this number, counted from 0: a step takes as many as it accumulates.
    pub batch: &'a dyn Fn(u64) -> Batch,
    /// The validation loss after so many steps.
    pub evaluate: &'a mut dyn FnMut(&TrainingStep, u64) -> Result<Evaluation>,
    /// A text that the model writes after an evaluation of `--eval-every`.
    pub sample: &'a mut dyn FnMut(&TrainingStep) -> Result<String>,
    /// Writes a checkpoint after so many steps.
    pub save: &'a mut dyn FnMut(&TrainingStep, u64, &Watch, Kept) -> Result<()>,
    /// Whether to stop after the present step.
    pub stop: &'a dyn Fn() -> bool,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ended {
    /// All steps are done; what the last evaluation found.
    Done(Evaluation),
    /// Stopped after so many steps, as evaluations found no new best; what the last one found.
    Early(u64, Evaluation),
    /// Stopped after so many steps, as was asked for.
    Interrupted(u64),
}

/// Trains. `lr` is the highest learning rate, `watch` what evaluations have shown so far.
///
/// # Errors
/// If a loss is not finite, or a hook fails.
pub fn run(
    training: &mut TrainingStep,
    timing: Timing,
    (lr, schedule): (f64, Schedule),
    watch: &mut Watch,
    log: &mut Log,
    hooks: Hooks,
) -> Result<Ended> {
    let Timing { from, steps, eval_every, save_every, early_stop } = timing;
    let mut progress = Progress::new("training", from, steps);
    for step in from..steps {
        let start = Instant::now();
        let number = training.accumulate() as u64;
        let batches: Vec<Batch> = (0..number).map(|i| (hooks.batch)(step * number + i)).collect();
        let rate = schedule.rate(lr, step, watch);
        let loss = training.run(step, rate, &batches)?;
        let tokens: usize = batches.iter().map(|b| b.tokens.len()).sum();
        let tokens_per_s = tokens as f64 / start.elapsed().as_secs_f64();
        let done = step + 1;
        if !loss.is_finite() {
            let remedy = "resume from the last checkpoint with a smaller --lr, or check the weights given by --init";
            return Err(Error::argument("training", format!("the loss of step {done} is {loss}"), remedy));
        }
        log.step(done, loss, rate, tokens_per_s)?;
        progress.step(done, loss, tokens_per_s);
        let last = done == steps;
        let due = |every: u64| every > 0 && done.is_multiple_of(every);
        if last || due(eval_every) {
            let found = (hooks.evaluate)(training, done)?;
            log.validation(done, found)?;
            if due(eval_every) {
                log.sample(done, &(hooks.sample)(training)?)?;
            }
            if due(eval_every) && watch.see(done, found.loss, schedule.patience) {
                (hooks.save)(training, done, watch, Kept::Best)?;
            }
            let early = !last && early_stop > 0 && watch.since_best >= early_stop;
            if last || early {
                progress.finish();
                (hooks.save)(training, done, watch, Kept::Last)?;
                return Ok(if last { Ended::Done(found) } else { Ended::Early(done, found) });
            }
        }
        let stopped = (hooks.stop)();
        if stopped || due(save_every) {
            (hooks.save)(training, done, watch, Kept::Last)?;
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
