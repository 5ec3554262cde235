//! One run, from its first or last step on, to its end.

use super::flags::Flags;
use super::prepare::{self, Prepared, prepare};
use crate::cli::device::DeviceArgs;
use crate::cli::print_line;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::classifier::{ClassifierConfig, Encoder, Plans, Recorded};
use crate::precision::Precision;
use crate::train::classify::{ClassifierStep, Ended, Examples, Fit, Found, Hooks, Kept, Report, State, evaluate, fit};
use crate::train::classify_files as files;
use crate::train::metrics::Confusion;
use crate::train::{Log, directory, interrupted_by_ctrl_c};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a run writes.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// From the first step on.
    New {
        /// The directory.
        out: &'a Path,
        /// Whether what is there may go.
        overwrite: bool,
    },
    /// From where it stopped on; there must be something left to do.
    Resumed(&'a Path),
    /// The same, but a run that has ended is looked at again, not an error.
    Again(&'a Path),
}

/// A run that has ended.
pub struct Done {
    /// Its directory.
    pub out: PathBuf,
    /// Names of the classes.
    pub labels: Vec<String>,
    /// The best evaluation on the dev table.
    pub best: Found,
    /// Epochs until then.
    pub best_epoch: f64,
    /// Epochs in all.
    pub epochs: f64,
    /// Mean seconds of an epoch's steps.
    pub epoch_seconds: f64,
    /// Texts that were learned.
    pub texts: usize,
    flags: Flags,
    config: ClassifierConfig,
    device: Arc<dyn Device>,
}

impl Done {
    fn new(
        out: &Path,
        best: Found,
        state: &State,
        texts: usize,
        how: &Fit,
        (flags, config, device): (Flags, ClassifierConfig, Arc<dyn Device>),
    ) -> Done {
        let an_epoch = crate::train::classify::steps_an_epoch(texts, how.batch) as f64;
        let epochs = state.step as f64 / an_epoch;
        Done {
            out: out.to_path_buf(),
            labels: config.labels.clone(),
            best,
            best_epoch: state.watch.best_step as f64 / an_epoch,
            epochs,
            epoch_seconds: state.all_seconds / epochs.floor().max(1.0),
            texts,
            flags,
            config,
            device,
        }
    }

    /// Reads the test table with the best checkpoint, if there is one.
    ///
    /// # Errors
    /// If the table or the checkpoint cannot be read.
    pub fn test(&self) -> Result<Option<Found>> {
        let index = files::index(&self.out, &self.config)?;
        let encoder = Encoder::new(&self.config, index);
        let Some(examples) = prepare::test(&self.flags, &self.config, &encoder)? else { return Ok(None) };
        self.evaluated(&examples).map(Some)
    }

    /// The run's settings.
    pub fn flags(&self) -> &Flags {
        &self.flags
    }

    /// By what it is compared with other runs: the lower the better.
    pub fn score(&self) -> f64 {
        self.best.score(self.flags.best_by.unwrap_or_default())
    }

    fn evaluated(&self, examples: &Examples) -> Result<Found> {
        let mut plans = Plans::new(&self.config, 32, examples.longest(), None, self.device.clone())?;
        files::load_parameters(&self.out.join(files::BEST), &self.out, plans.plan())?;
        evaluate(&mut plans, examples)
    }
}

/// An evaluation's figures on a line.
pub fn figures(found: &Found) -> String {
    let of = |figure: fn(&Confusion, usize) -> f64| 100.0 * found.confusion.headline(figure);
    format!(
        "loss {:.4}, accuracy {:.2} %, precision {:.2} %, recall {:.2} %, F1 {:.2} %",
        found.loss,
        100.0 * found.confusion.accuracy(),
        of(Confusion::precision),
        of(Confusion::recall),
        of(Confusion::f1)
    )
}

/// Who was taken for what, as a table.
pub fn confusion(confusion: &Confusion, labels: &[String]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["is \\ taken for".to_string()].into_iter().chain(labels.iter().cloned()));
    for (truth, label) in labels.iter().enumerate() {
        let counts = (0..labels.len()).map(|predicted| confusion.count(truth, predicted).to_string());
        table.add_row([label.clone()].into_iter().chain(counts));
    }
    table
}

/// Makes a run.
///
/// # Errors
/// If a flag, a table, the vectors or the device will not do; if the run was interrupted, with how to resume it.
pub fn run(given: &Flags, place: Place, device: &DeviceArgs) -> Result<Done> {
    let (out, flags, mut state, stored) = match place {
        Place::New { out, overwrite } => {
            if out.exists() && !out.is_dir() {
                return Err(Error::file(out, "is no directory", "give --out a directory"));
            }
            if !overwrite && !directory::is_vacant(out) {
                let remedy = "give another --out, go on with --resume, or start over with --overwrite";
                return Err(Error::file(out, "is not empty", remedy));
            }
            (out, given.clone(), State::default(), None)
        }
        Place::Resumed(from) | Place::Again(from) => {
            let (state, stored) = files::training::<Flags>(from)?;
            let config = files::config(from)?;
            let index = files::index(from, &config)?;
            (from, given.resume(&stored)?, state, Some((config, index)))
        }
    };
    let resumed = stored.is_some();
    let Prepared { config, index, table, train, dev, remarks } = prepare(&flags, stored)?;
    let (settings, how) = (flags.optimizer()?, flags.fit(train.rows.len())?);
    let total = how.epochs * crate::train::classify::steps_an_epoch(train.rows.len(), how.batch);
    let ended = state.step >= total || (how.patience > 0 && state.watch.since_best >= how.patience);
    if ended && matches!(place, Place::Again(_)) {
        let device = device.open(Precision::F32)?;
        let Some(best) = files::best(out, &config, &dev, &device)? else {
            return Err(Error::file(out, "has no best checkpoint", "remove it, to train the run again"));
        };
        return Ok(Done::new(out, best, &state, train.rows.len(), &how, (flags, config, device)));
    }
    if state.step >= total {
        let problem = format!("have been done already: {} steps", state.step);
        return Err(Error::argument(format!("--epochs {}", how.epochs), problem, "give a larger number to go on"));
    }
    let device = device.open(Precision::F32)?;
    let slots = settings.optimizer(0).state().len();
    let plans = Plans::new(&config, how.batch, train.longest(), Some(slots), device.clone())?;
    if resumed {
        files::load_parameters(out, out, plans.plan())?;
        files::load_optimizer(out, plans.plan(), settings.optimizer(0).state())?;
    } else {
        Recorded::initialize(plans.initial(), plans.plan(), how.seed)?;
        write_table(&plans, &config, &index, table.as_deref())?;
    }
    let mut step = ClassifierStep::new(plans, settings, how.seed);
    let mut evaluator = step.plans().beside(32, dev.longest())?;

    // Nothing is written before everything above has been found good.
    remarks.iter().for_each(|remark| eprintln!("{remark}"));
    step.plans().plan().graph().remarks(&*device)?.iter().for_each(|remark| eprintln!("note: {remark}"));
    directory::create(out)?;
    if !resumed {
        files::start(out, &config, &index, step.plans().plan())?;
    }
    let mut log = Log::open(out, resumed.then_some(out), state.step)?;
    announce(&config, &step, &*device);
    let mut best: Option<(Found, f64)> = None;
    if resumed {
        best = files::best(out, &config, &dev, &device)?.map(|found| (found, 0.0));
    }
    let mut tell = |report: &Report| {
        let Report { epoch, loss, seconds, found, best: better } = report;
        let star = if *better { " *" } else { "" };
        eprintln!("epoch {}: loss {loss:.4}, {seconds:.3} s; dev {}{star}", short(*epoch), figures(found));
        if *better {
            best = Some(((*found).clone(), *epoch));
        }
    };
    let mut save = |step: &ClassifierStep, state: &State, kept: Kept| files::save(out, step, state, kept, &flags);
    let hooks = Hooks { save: &mut save, tell: &mut tell, stop: interrupted_by_ctrl_c() };
    let ended = fit(&mut step, &mut evaluator, (&train, &dev), &how, &mut state, &mut log, hooks)?;
    match ended {
        Ended::Interrupted => {
            let shown = out.display();
            let problem = format!("interrupted after step {} of {total}, with a checkpoint in {shown}", state.step);
            return Err(Error::argument(
                "training",
                problem,
                format!("go on with `attn train classify --resume {shown}`"),
            ));
        }
        Ended::Early => eprintln!("stopped early: {} evaluations in a row without a better one", how.patience),
        Ended::Done => {}
    }
    let Some((best, _)) = best else {
        return Err(Error::argument("training", "made no evaluation that is a number", "give a smaller --lr"));
    };
    let done = Done::new(out, best, &state, train.rows.len(), &how, (flags, config, device));
    print_line(format_args!(
        "{} texts, {} epochs of {:.3} s; best after {}: dev {}; in {}",
        done.texts,
        short(done.epochs),
        done.epoch_seconds,
        short(done.best_epoch),
        figures(&done.best),
        out.display()
    ))?;
    Ok(done)
}

/// Epochs, in as few digits as say it: 14, or 0.7225 in the middle of one.
fn short(epochs: f64) -> String {
    ((1e4 * epochs).round() / 1e4).to_string()
}

/// Writes the vectors that were given; without, those of padding and unknown words become zeros.
fn write_table(
    plans: &Plans,
    config: &ClassifierConfig,
    index: &crate::data::WordIndex,
    given: Option<&[f32]>,
) -> Result<()> {
    let plan = plans.plan();
    let Some(t) = plans.embedding() else { return Ok(()) };
    let values: Vec<f64> = match given {
        Some(table) => table.iter().map(|&x| x as f64).collect(),
        None => {
            let mut values = plan.read(t)?;
            for row in [index.pad(), index.unk()].into_iter().flatten() {
                values[row as usize * config.width..][..config.width].fill(0.0);
            }
            values
        }
    };
    plan.write(t, &values)
}

fn announce(config: &ClassifierConfig, step: &ClassifierStep, device: &dyn Device) {
    let graph = step.plans().plan().graph();
    let of = |all: Vec<crate::Tensor>| all.into_iter().map(|t| graph.spec(t).numel()).sum::<usize>();
    let (trained, frozen) = (of(graph.parameters()), of(graph.frozen_tensors()));
    eprintln!(
        "{}: {trained} parameters, {frozen} numbers frozen; classes {}; {} rows of width {}; on {}",
        config.model.name(),
        config.labels.join(", "),
        config.vocabulary,
        config.width,
        device.name()
    );
}
