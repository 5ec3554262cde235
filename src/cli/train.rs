//! `attn train`: models from text, on any device.

use super::device::DeviceArgs;
use super::prepare::{Origin, Prepared, Rows, prepare};
use super::settings::{DataSettings, Settings, SettingsArgs, TrainingSettings};
use super::{Status, curves, print_line};
use crate::data::Batches;
use crate::data::Tokenizer;
use crate::data::tasks::TaskBatches;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Choice, Sampler};
use crate::model::{Gpt, GptConfig};
use crate::train::checkpoint::{self, BEST, Checkpoint, Initial, State};
use crate::train::{
    Answers, Ended, Evaluation, Evaluator, Hooks, Kept, Log, StepOptions, Timing, TrainingStep, Watch, directory,
    interrupted_by_ctrl_c, log, run,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Train a model
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    model: Model,
}

#[derive(Debug, clap::Subcommand)]
enum Model {
    Lm(Box<LmArgs>),
    Classify(Box<super::classify::Args>),
}

/// Train a language model on a text
///
/// The model is minGPT's. The last 10 % of the text is for validation. The directory given by --out receives log.jsonl
/// and a checkpoint in Hugging Face's GPT-2 layout, at the end, after every --save-every steps, and on Ctrl-C; with
/// --eval-every, its folder best/ receives the checkpoint of the lowest validation loss. TensorBoard reads the directory,
/// and at the end curves.svg and curves.png are drawn there.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  attn train lm --out adder                                learns two-digit addition
  attn train lm --task recall --pairs 4 --out recall       learns to look values up
  attn train lm --text input.txt --steps 5000 --out run    learns a text
  attn train lm --resume run --steps 10000                 goes on where that stopped
  attn train lm --text input.txt --out run --schedule cosine --warmup 100 --eval-every 250 --early-stop 4
                                                           warms up, cools down, stops when it no longer helps")]
pub(super) struct LmArgs {
    #[command(flatten)]
    pub(super) settings: SettingsArgs,
    /// Directory for the log and the checkpoint
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    pub(super) out: Option<PathBuf>,
    /// Write over what --out holds
    #[arg(long)]
    pub(super) overwrite: bool,
    /// Train every run that this file describes, each in a folder of --out, and compare them. [base] holds flags of all
    /// runs by their long names, [grid] lists whose every combination is a run, [[run]] named runs with flags of their own.
    /// The same command again goes on where it stopped
    #[arg(long, value_name = "FILE.toml",
        conflicts_with_all = ["DataArgs", "ModelArgs", "TrainingArgs", "overwrite", "init", "resume"])]
    sweep: Option<PathBuf>,
    /// Start from these weights: a directory in Hugging Face's GPT-2 layout (model.safetensors or an index of several), or
    /// a file, also minGPT's state dict (.pt). A directory's config.json decides the model where flags do not, and its
    /// tokenizer is used where --tokenizer names no other
    #[arg(long, value_name = "DIR|FILE", conflicts_with = "resume")]
    init: Option<PathBuf>,
    /// Go on, bit for bit, with the run in this directory [default: the one given by --out]. Its settings hold;
    /// only --steps, --eval-every (but with --schedule plateau), --early-stop, --save-every, --out and the device may change
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with = "overwrite")]
    pub(super) resume: Option<Option<PathBuf>>,
    /// Launch every kernel of every step anew, even where the device could replay them as one; the numbers are the same
    #[arg(long)]
    pub(super) eager: bool,
    #[command(flatten)]
    pub(super) device: DeviceArgs,
}

/// Runs the command.
///
/// # Errors
/// If a flag, the text, the weights or the device will not do; if the run was interrupted, with how to resume it.
pub fn main(args: Args) -> Result<Status> {
    match args.model {
        Model::Lm(args) => lm(*args),
        Model::Classify(args) => super::classify::main(*args),
    }
}

fn lm(args: LmArgs) -> Result<Status> {
    if let Some(file) = &args.sweep {
        return super::sweep::run(file, &args);
    }
    let Trained { out, steps, found, watch } = train(args)?;
    let (loss, perplexity, shown) = (found.loss, found.perplexity(), out.display());
    let accuracy = found.accuracy.map_or(String::new(), |x| format!(", val_accuracy {:.2} %", 100.0 * x));
    print_line(format_args!(
        "{steps} steps: val_loss {loss:.4}, val_perplexity {perplexity:.3}{accuracy}; in {shown}"
    ))?;
    if let Some(best) = watch.best {
        let (step, folder) = (watch.best_step, out.join(BEST));
        print_line(format_args!("best val_loss {best:.4} after {step} steps; in {}", folder.display()))?;
    }
    Ok(Status::Done)
}

/// What a run that has ended leaves.
pub(super) struct Trained {
    /// Where its checkpoint is.
    pub out: PathBuf,
    /// Steps done.
    pub steps: u64,
    /// The last evaluation.
    pub found: Evaluation,
    /// What all have shown.
    pub watch: Watch,
}

/// Trains a model.
///
/// # Errors
/// If a flag, the text, the weights or the device will not do; if the run was interrupted, with how to resume it.
pub(super) fn train(args: LmArgs) -> Result<Trained> {
    let (out, from) = places(&args)?;
    let resumed = from.as_deref().map(Checkpoint::open).transpose()?;
    let initial = args.init.as_deref().map(Initial::open).transpose()?;
    let (state, mut settings) = match &resumed {
        Some(checkpoint) => {
            let (state, stored): (State, Settings) = checkpoint.training()?;
            (state, args.settings.resume(stored)?)
        }
        None => {
            let model = initial.as_ref().and_then(|i| i.config.as_ref());
            (State::default(), args.settings.start(model)?)
        }
    };
    let State { step: done, mut watch } = state;
    let given = match (&resumed, &initial) {
        (Some(checkpoint), _) => Some(checkpoint.tokenizer()),
        // A tokenizer that is asked for is made, and must fit the weights.
        (None, Some(initial)) if settings.data.tokenizer.is_none() => initial.tokenizer.as_ref(),
        _ => None,
    };
    let directories: Vec<&Path> = [Some(&out), from.as_ref()].into_iter().flatten().map(|d| d.as_path()).collect();
    let Prepared { tokenizer, origin, name, caches } =
        prepare(&mut settings.data, settings.training.seed, given, &directories)?;
    let DataSettings { batch_size, block_size, data_order, .. } = settings.data;
    let length = settings.data.row_length();
    let TrainingSettings { seed, optimizer, accumulate, .. } = settings.training;
    let dropout = settings.model.dropout_rates();
    let addition = settings.data.text.is_none();
    let (corpora, tasks) = match origin {
        Origin::Corpora { train, validation, names } => {
            validation.check_length(&names[1], block_size)?;
            let batches = Batches::new(train, &names[0], data_order, batch_size, length, seed)?;
            if let Some(steps) = settings.data.steps(batches.rows_an_epoch(), (batch_size * accumulate) as u64)? {
                settings.training.steps = steps;
            }
            (Some((batches, validation)), None)
        }
        Origin::Task(task) => (None, Some(TaskBatches::new(task, batch_size, block_size, seed)?)),
    };
    settings.training.settle()?;
    check_unfinished(state, &settings.training)?;

    let gpt = Gpt::new(settings.model.config(block_size, tokenizer.len())?)?;
    let precision = settings.training.dtype.precision();
    let device = args.device.open(precision)?;
    if device.precision() != precision {
        let remedy = "add --device cuda or --device emulator, or use --dtype f32";
        return Err(Error::argument(format!("--dtype {precision}"), "needs a GPU or the emulator", remedy));
    }
    let mut training = TrainingStep::new(
        gpt.loss_of_length(batch_size, length, dropout)?,
        device.clone(),
        StepOptions { optimizer, accumulate, seed, eager: args.eager },
    )?;
    let answers = || Answers::new(&gpt, batch_size, device.clone());
    let rows = match (corpora, tasks) {
        (Some((batches, validation)), _) => {
            let evaluator = Box::new(Evaluator::new(gpt.loss_of_length(batch_size, length, 0.0)?, device.clone())?);
            let answers = addition.then(answers).transpose()?;
            Rows::Corpora { batches, validation, evaluator, answers }
        }
        (None, Some(batches)) => Rows::Task { batches, answers: answers()? },
        (None, None) => unreachable!("rows come from somewhere"),
    };
    let plan = training.plan();
    match (&resumed, &initial) {
        (Some(checkpoint), _) => {
            checkpoint.load_parameters(plan)?;
            checkpoint.load_optimizer(&training)?;
        }
        (None, Some(initial)) => initial.load(plan)?,
        _ => gpt.initialize(plan, seed)?,
    }

    // Nothing is written before everything above has been found good.
    directory::create(&out)?;
    if from.as_ref() != Some(&out) {
        checkpoint::remove(&out)?;
        from.as_deref().map_or(Ok(()), |from| checkpoint::copy_best(from, &out))?;
    }
    caches.into_iter().try_for_each(|cache| cache.keep(&out))?;
    let mut log = Log::open(&out, from.as_deref(), done)?;
    announce(&gpt, &training, &tokenizer, &name, &device.name());
    let mut evaluate = |training: &TrainingStep, _: u64| rows.evaluate(training.plan(), batch_size, length);
    let mut writer = Writer::new(&gpt, &device, rows.first(length), &tokenizer);
    let mut sample = |training: &TrainingStep| writer.write(training);
    let mut save = |training: &TrainingStep, step: u64, watch: &Watch, kept: Kept| {
        let state = State { step, watch: *watch };
        let best = out.join(BEST);
        let directory = if kept == Kept::Best { &best } else { &out };
        directory::create(directory)?;
        checkpoint::write(directory, training, gpt.config(), &tokenizer, dropout, state, &settings)
    };
    let interrupted = interrupted_by_ctrl_c();
    let stop = || interrupted.load(Ordering::SeqCst);
    let TrainingSettings { steps, eval_every, save_every, early_stop, schedule, .. } = settings.training;
    let timing = Timing { from: done, steps, eval_every, save_every, early_stop };
    let hooks =
        Hooks { batch: &|i| rows.batch(i), evaluate: &mut evaluate, sample: &mut sample, save: &mut save, stop: &stop };
    let ended = run(&mut training, timing, (optimizer.lr, schedule), &mut watch, &mut log, hooks)?;
    let title = format!("{name}, {}", gpt.config().attention.join(","));
    curves::write(&out, &curves::of_run(&log::rows(&out)?, &title))?;
    let (steps, found) = match ended {
        Ended::Done(found) => (steps, found),
        Ended::Early(step, found) => {
            eprintln!("stopped early: {early_stop} evaluations in a row without a lower validation loss");
            (step, found)
        }
        Ended::Interrupted(step) => {
            let shown = out.display();
            let problem = format!("interrupted after step {step} of {steps}, with a checkpoint in {shown}");
            return Err(Error::argument("training", problem, format!("go on with `attn train lm --resume {shown}`")));
        }
    };
    Ok(Trained { out, steps, found, watch })
}

/// Lets the model go on from the beginning of the validation split, for TensorBoard.
struct Writer<'a> {
    gpt: &'a Gpt,
    device: &'a Arc<dyn Device>,
    prompt: Vec<i32>,
    tokenizer: &'a Tokenizer,
    /// Planned when first asked for.
    sampler: Option<Sampler>,
}

impl<'a> Writer<'a> {
    /// Tokens that are given, and that the model adds.
    const GIVEN: usize = 8;
    const ADDED: usize = 40;

    fn new(gpt: &'a Gpt, device: &'a Arc<dyn Device>, mut row: Vec<i32>, tokenizer: &'a Tokenizer) -> Writer<'a> {
        row.truncate(Self::GIVEN);
        Writer { gpt, device, prompt: row, tokenizer, sampler: None }
    }

    fn write(&mut self, training: &TrainingStep) -> Result<String> {
        let sampler = match &mut self.sampler {
            Some(sampler) => sampler,
            none => none.insert(Sampler::new(self.gpt, self.device.clone())?),
        };
        let (from, to) = (training.plan(), sampler.plan());
        for t in to.graph().parameters() {
            let name = to.graph().name(t);
            let same = from.graph().parameters().into_iter().find(|&s| from.graph().name(s) == name);
            to.write(t, &from.read(same.expect("two plans of one model"))?)?;
        }
        let choice = Choice { temperature: 1.0, top_k: None, top_p: 1.0, seed: 1 };
        let mut tokens = self.prompt.clone();
        for _ in 0..Self::ADDED {
            if tokens.is_empty() {
                break;
            }
            tokens.push(choice.draw(&sampler.logits(&tokens)?, tokens.len())?);
        }
        Ok(self.tokenizer.decode(&tokens))
    }
}

/// An error where there is nothing left to do for a run.
fn check_unfinished(State { step, watch }: State, settings: &TrainingSettings) -> Result<()> {
    let TrainingSettings { steps, early_stop, .. } = *settings;
    if step >= steps {
        let problem = format!("{step} have been done already");
        return Err(Error::argument(format!("--steps {steps}"), problem, "give a larger number to go on"));
    }
    if early_stop > 0 && watch.since_best >= early_stop {
        let problem = format!("the run has stopped early after {step} steps");
        let remedy = "give a larger number, or 0, to go on";
        return Err(Error::argument(format!("--early-stop {early_stop}"), problem, remedy));
    }
    Ok(())
}

/// Where to write, and from where to resume.
fn places(args: &LmArgs) -> Result<(PathBuf, Option<PathBuf>)> {
    let from = match &args.resume {
        None => None,
        Some(named) => Some(named.clone().or(args.out.clone()).ok_or_else(|| {
            Error::argument("--resume", "names no directory", "give one: --resume DIR, or --resume --out DIR")
        })?),
    };
    if let Some(from) = from.as_ref().filter(|d| !checkpoint::is_there(d)) {
        return Err(Error::file(from, "holds no run to resume", "give a directory that `attn train lm --out` wrote"));
    }
    let out = args.out.clone().or(from.clone()).expect("clap asks for one of them");
    if out.exists() && !out.is_dir() {
        return Err(Error::file(out, "is no directory", "give --out a directory"));
    }
    let same = from.as_deref().is_some_and(|f| is_same(f, &out));
    if !same && !args.overwrite && !directory::is_vacant(&out) {
        let remedy = "give another --out, go on with --resume, or start over with --overwrite";
        return Err(Error::file(out, "is not empty", remedy));
    }
    Ok(if same { (out.clone(), Some(out)) } else { (out, from) })
}

fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn announce(gpt: &Gpt, training: &TrainingStep, tokenizer: &Tokenizer, data: &str, device: &str) {
    let GptConfig { layers, heads, width, block, .. } = gpt.config();
    let attention = gpt.config().attention.join(",");
    let graph = training.plan().graph();
    let parameters: usize = graph.parameters().iter().map(|&t| graph.spec(t).numel()).sum();
    let megabytes = training.plan().peak_bytes() as f64 / 1e6;
    eprintln!(
        "{layers} layers, {heads} heads, width {width}, block {block}, {attention}: {parameters} parameters; \
         {} {} of {data}; {megabytes:.1} MB on {device} in {}",
        tokenizer.len(),
        tokenizer.unit(),
        training.plan().device().precision()
    );
}
