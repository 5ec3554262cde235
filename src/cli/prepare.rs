//! From settings to what is learned: the tokenizer, the corpus to train on and the one to validate on.

use super::settings::DataSettings;
use crate::data::cache::{Opened, Pending, Source};
use crate::data::tasks::{Task, TaskBatches};
use crate::data::tokenizer::Choice;
use crate::data::{Batch, Batches, Corpus, Found, Text, Tokenizer, Window, addition};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::train::{Answers, Evaluation, Evaluator, Progress};
use std::path::Path;

/// What a run learns.
#[derive(Debug)]
pub struct Prepared {
    /// What makes tokens.
    pub tokenizer: Tokenizer,
    /// Where rows come from.
    pub origin: Origin,
    /// What messages call both.
    pub name: String,
    /// Tokens that were encoded anew, to be kept beside the run.
    pub caches: Vec<Pending>,
}

/// Where rows come from.
#[derive(Debug)]
pub enum Origin {
    /// A text, or addition's problems.
    Corpora {
        /// To train on.
        train: Corpus,
        /// To validate on.
        validation: Corpus,
        /// What messages call the two.
        names: [String; 2],
    },
    /// A task, without end.
    Task(Task),
}

/// Rows to learn, and those to validate on.
pub enum Rows {
    /// Of corpora.
    Corpora {
        /// What steps learn.
        batches: Batches,
        /// What is validated on.
        validation: Corpus,
        /// Its losses.
        evaluator: Box<Evaluator>,
        /// Where answers are right or wrong (addition): what finds which.
        answers: Option<Answers>,
    },
    /// Of a task.
    Task {
        /// What steps learn, and what is validated on.
        batches: TaskBatches,
        /// What finds which answers are right.
        answers: Answers,
    },
}

/// Batches that a generated task is validated on.
const VALIDATION: u64 = 8;

impl Rows {
    /// The batch of this number, counted from 0.
    pub fn batch(&self, index: u64) -> Batch {
        match self {
            Rows::Corpora { batches, .. } => batches.batch(index),
            Rows::Task { batches, .. } => batches.training(index),
        }
    }

    /// The tokens of the first row to validate on, of at most `length`.
    pub fn first(&self, length: usize) -> Vec<i32> {
        let mut batch = Batch::default();
        match self {
            Rows::Corpora { validation, .. } => {
                if let Some(window) = validation.validation(length).next() {
                    validation.append(&window, length, &mut batch);
                }
            }
            Rows::Task { batches, .. } => batch = batches.validation(batches.task().size(), 0),
        }
        batch.tokens.truncate(batch.lengths.first().map_or(0, |&n| n as usize));
        batch.tokens
    }

    /// Evaluates a plan's parameters on rows of `length` tokens, of which a batch has `rows`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn evaluate(&self, plan: &Plan, rows: usize, length: usize) -> Result<Evaluation> {
        match self {
            Rows::Corpora { validation, evaluator, answers, .. } => {
                evaluator.plan().copy_parameters(plan)?;
                let windows = || validation.validation(length);
                let mut progress = Progress::new("validation", 0, windows().count() as u64);
                let mut found = evaluator.run(validation, windows(), |done| progress.reached(done as u64))?;
                progress.finish();
                if let Some(answers) = answers {
                    answers.plan().copy_parameters(plan)?;
                    let windows: Vec<Window> = windows().collect();
                    let batch = |windows: &[Window]| {
                        let mut batch = Batch::default();
                        windows.iter().for_each(|window| validation.append(window, length, &mut batch));
                        (windows.len()..rows).for_each(|_| validation.append_nothing(length, &mut batch));
                        batch
                    };
                    found.accuracy = Some(answers.run(windows.chunks(rows).map(batch))?.accuracy());
                }
                Ok(found)
            }
            Rows::Task { batches, answers } => {
                answers.plan().copy_parameters(plan)?;
                let score = answers.run((0..VALIDATION).map(|i| batches.validation(batches.task().size(), i)))?;
                Ok(Evaluation { tokens: score.asked, loss: score.loss(), accuracy: Some(score.accuracy()) })
            }
        }
    }
}

/// The tokens of the text and of the one to validate on, beside the run.
const CACHES: [&str; 2] = ["tokens.safetensors", "validation-tokens.safetensors"];

/// Reads the texts that the settings name, with the given tokenizer or the settings' own; and lets the settings know the
/// texts' digests. Tokens are looked for in the directories, and where they are not found, encoded anew near the first.
///
/// # Errors
/// If a text cannot be read or encoded, or is not the one that the settings know.
pub fn prepare(
    settings: &mut DataSettings,
    seed: u64,
    given: Option<&Tokenizer>,
    directories: &[&Path],
) -> Result<Prepared> {
    let Some(path) = settings.text.clone() else {
        let (tokenizer, origin, task) = match settings.generated() {
            Some(task) => (task.check()?.tokenizer(), Origin::Task(task), task.name()),
            None => {
                let (corpus, tokenizer) = addition::corpus(seed);
                let (train, validation) = corpus.split();
                let names = splits("the addition problems");
                (tokenizer, Origin::Corpora { train, validation, names }, "addition")
            }
        };
        if let Some(given) = given.filter(|t| **t != tokenizer) {
            let problem = format!("the weights know {} {}, not those of {task}", given.len(), given.unit());
            return Err(Error::argument("--init", problem, "give a --text in those, or the same --task"));
        }
        let name = format!("the {task} problems");
        return Ok(Prepared { tokenizer, origin, name, caches: vec![] });
    };
    let text = Text::open(&path)?;
    let held_out = settings.validation_text.as_deref().map(Text::open).transpose()?;
    know(&path, &text, &mut settings.text_sha256)?;
    if let (Some(path), Some(text)) = (&settings.validation_text, &held_out) {
        know(path, text, &mut settings.validation_text_sha256)?;
    }
    let tokenizer = tokenizer(settings, &text, given)?;
    let mut caches = Vec::new();
    let mut load = |text: &Text, sha256: &Option<String>, name| {
        let text_sha256 = sha256.as_deref().unwrap_or_default();
        let source = Source { text, text_sha256, format: &settings.format, tokenizer: &tokenizer };
        load(source, name, directories, &mut caches)
    };
    let corpus = load(&text, &settings.text_sha256, CACHES[0])?;
    let name = path.display().to_string();
    let (train, validation, names) = match &held_out {
        Some(text) => {
            let validation = load(text, &settings.validation_text_sha256, CACHES[1])?;
            (corpus, validation, [name.clone(), text.name()])
        }
        None => {
            let (train, validation) = corpus.split();
            (train, validation, splits(&name))
        }
    };
    if train.has_documents() {
        let length = settings.row_length() + 1;
        for (corpus, name) in [&train, &validation].into_iter().zip(&names) {
            let (cut, tokens) = corpus.beyond(length);
            let were = if cut > 0 {
                format!(", {cut} of them cut to {length} tokens ({tokens} tokens left out)")
            } else {
                String::new()
            };
            eprintln!("{name}: {} documents{were}", corpus.len());
        }
    }
    let origin = Origin::Corpora { train, validation, names };
    Ok(Prepared { tokenizer, origin, name, caches })
}

fn splits(name: &str) -> [String; 2] {
    [format!("the training split (first 90 %) of {name}"), format!("the validation split (last 10 %) of {name}")]
}

/// Notes a text's digest, or compares it with the one noted before.
fn know(path: &Path, text: &Text, known: &mut Option<String>) -> Result<()> {
    let digest = text.digest()?;
    if known.as_ref().is_some_and(|known| *known != digest) {
        let remedy = "restore it, or start a new run from the weights with --init";
        return Err(Error::file(path, "has changed since the run began", remedy));
    }
    *known = Some(digest);
    Ok(())
}

/// The tokenizer that is given, unless the settings name another than the one that they themselves learned.
fn tokenizer(settings: &DataSettings, text: &Text, given: Option<&Tokenizer>) -> Result<Tokenizer> {
    if let Some(given) = given {
        return Ok(given.clone());
    }
    let choice = settings.tokenizer.as_ref().unwrap_or(&Choice::Characters);
    let mut progress = Progress::new("learning tokens", 0, text.bytes());
    let mut bytes = 0;
    let texts = text.pieces(&settings.format)?.map(|piece| {
        let piece = piece?;
        bytes += piece.text.len() as u64;
        progress.reached(bytes);
        Ok(piece.text)
    });
    let tokenizer = Tokenizer::new(choice, settings.min_count, settings.vocab_size, &text.name(), texts)?;
    progress.finish();
    Ok(tokenizer)
}

/// The corpus of a source, from a cache of this name in one of the directories, or encoded into a new one.
fn load(source: Source, name: &'static str, directories: &[&Path], caches: &mut Vec<Pending>) -> Result<Corpus> {
    let (mut corpus, mut found) = (None, Found::default());
    for path in directories.iter().map(|d| d.join(name)) {
        match source.open(&path)? {
            Opened::Good(cached, held) => {
                (corpus, found) = (Some(cached), held);
                break;
            }
            Opened::Damaged(problem) => eprintln!("{}: {problem}; encoding the text anew", path.display()),
            Opened::Absent => {}
        }
    }
    let corpus = match corpus {
        Some(corpus) => corpus,
        None => {
            let mut progress = Progress::new("encoding", 0, source.text.bytes());
            let mut done = 0;
            let advance = |bytes| {
                done += bytes;
                progress.reached(done);
            };
            let (corpus, held, pending) = source.write(directories[0], name, advance)?;
            progress.finish();
            found = held;
            caches.push(pending);
            corpus
        }
    };
    for remark in found.remarks(source.tokenizer) {
        eprintln!("{}: {remark}", source.text.name());
    }
    Ok(corpus)
}
