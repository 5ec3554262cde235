//! Tables, words and vectors become rows.

use super::flags::Flags;
use crate::data::Permutation;
use crate::data::WordIndex;
use crate::data::labelled::{self, Labelled};
use crate::error::{Error, Result};
use crate::model::classifier::{ClassifierConfig, Encoder, ModelName};
use crate::philox::Philox;
use crate::train::classify::Examples;
use crate::vectors::{self, ReadOptions, WordVectors};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The stream that draws the examples of a learning curve.
const EXAMPLES: u32 = 0x636c_6578;

/// What a run learns from.
pub struct Prepared {
    /// The model.
    pub config: ClassifierConfig,
    /// Which row is which word's.
    pub index: WordIndex,
    /// The table of vectors, where they were given.
    pub table: Option<Vec<f32>>,
    pub train: Examples,
    pub dev: Examples,
    /// What has been remarked, for the user.
    pub remarks: Vec<String>,
}

fn table(flags: &Flags, flag: &str, path: &Option<PathBuf>, labels: Option<&[String]>) -> Result<Labelled> {
    let Some(path) = path else {
        return Err(Error::argument(flag, "is missing", "give a table of texts and labels"));
    };
    let read = labelled::read(path, &flags.columns()?, labels)?;
    Ok(Labelled { remarks: read.remarks.iter().map(|r| format!("{}: {r}", path.display())).collect(), ..read })
}

/// Texts to rows; what was cut off or unknown is remarked.
pub fn encode(encoder: &Encoder, table: &Labelled, name: &str, remarks: &mut Vec<String>) -> Examples {
    let mut examples = Examples::default();
    let (mut found, mut unknown, mut cut, mut cut_texts, mut empty) = (0, 0, 0, 0, 0);
    for example in &table.examples {
        let encoded = encoder.encode(&example.text);
        found += encoded.found;
        unknown += encoded.unknown;
        cut += encoded.cut;
        cut_texts += (encoded.cut > 0) as usize;
        empty += encoded.rows.is_empty() as usize;
        examples.rows.push(encoded.rows);
        examples.classes.push(example.label.expect("a label column was asked for"));
    }
    let percent = 100.0 * unknown as f64 / found.max(1) as f64;
    remarks.push(format!(
        "{name}: {} texts, {found} words, {unknown} of them ({percent:.1} %) without a row; the longest has {} rows",
        examples.rows.len(),
        examples.longest()
    ));
    if cut > 0 {
        remarks.push(format!("{name}: {cut} words of {cut_texts} texts are past --max-length"));
    }
    if empty > 0 {
        remarks.push(format!("{name}: {empty} texts have no known word: their vector is zero"));
    }
    examples
}

/// The test table as rows.
///
/// # Errors
/// If it cannot be read, or has labels that the model does not know.
pub fn test(flags: &Flags, config: &ClassifierConfig, encoder: &Encoder) -> Result<Option<Examples>> {
    if flags.test.is_none() {
        return Ok(None);
    }
    let labelled = table(flags, "--test", &flags.test, Some(&config.labels))?;
    let mut remarks = labelled.remarks.clone();
    let examples = encode(encoder, &labelled, "test", &mut remarks);
    remarks.iter().for_each(|remark| eprintln!("{remark}"));
    Ok(Some(examples))
}

fn read_vectors(path: &Path, flags: &Flags, remarks: &mut Vec<String>) -> Result<WordVectors> {
    let options = ReadOptions {
        first: flags.first_vectors,
        embedding_key: flags.embedding_key.clone(),
        word_index: flags.word_index.clone(),
    };
    let (vectors, heard) = vectors::read(path, &options)?;
    remarks.extend(heard.into_iter().map(|remark| format!("{}: {remark}", path.display())));
    Ok(vectors)
}

/// How often each word occurs.
fn counts(flags: &Flags, table: &Labelled) -> HashMap<String, u64> {
    let (splitter, lowercase) =
        (flags.tokenizer.unwrap_or(crate::data::Splitter::Words), flags.lowercase == Some(true));
    let mut counts: HashMap<String, u64> = HashMap::new();
    for example in &table.examples {
        splitter.each(&example.text, lowercase, |word| match counts.get_mut(word) {
            Some(count) => *count += 1,
            None => {
                counts.insert(word.into(), 1);
            }
        });
    }
    counts
}

/// Draws some of the texts.
fn drawn(mut table: Labelled, count: usize, seed: u64) -> Result<Labelled> {
    let all = table.examples.len();
    if count == 0 || count > all {
        let problem = format!("is not between 1 and {all}, the texts that there are");
        return Err(Error::argument(format!("--examples {count}"), problem, "give fewer"));
    }
    let order = Permutation::new(all as u64, Philox::new(seed, EXAMPLES, 0));
    table.examples = (0..count).map(|i| table.examples[order.at(i as u64) as usize].clone()).collect();
    Ok(table)
}

/// Reads all that the flags name. With `stored`, model and words are a checkpoint's.
///
/// # Errors
/// If a table or vectors cannot be read, or a flag will not do.
pub fn prepare(flags: &Flags, stored: Option<(ClassifierConfig, WordIndex)>) -> Result<Prepared> {
    let mut remarks = Vec::new();
    let model = flags.required_model()?;
    let labels = stored.as_ref().map(|(config, _)| config.labels.clone()).or(flags.labels.clone());
    let mut train = table(flags, "--train", &flags.train, labels.as_deref())?;
    let dev = table(flags, "--dev", &flags.dev, Some(&train.labels))?;
    remarks.extend(train.remarks.iter().chain(&dev.remarks).cloned());
    if let Some([count]) = flags.examples.as_deref() {
        train = drawn(train, *count, flags.seed.unwrap_or(1))?;
    }
    let mut table = None;
    let (mut config, index) = match stored {
        Some(stored) => stored,
        None => {
            let special = flags.special();
            let (index, width) = match &flags.vectors {
                Some(path) if model != ModelName::BowLogreg => {
                    let vectors = read_vectors(path, flags, &mut remarks)?;
                    if let Some(dim) = flags.dim.filter(|&dim| dim != vectors.dim) {
                        let problem = format!("is not the vectors' {}", vectors.dim);
                        return Err(Error::argument(format!("--dim {dim}"), problem, "leave it out"));
                    }
                    let index = WordIndex::from_vectors(&vectors.words, &special);
                    table = Some(vectors.table_for(&index).0);
                    (index, vectors.dim)
                }
                _ => {
                    if model != ModelName::BowLogreg && flags.freeze_embeddings == Some(true) {
                        remarks.push("the vectors are random and stay so: there are no --vectors".into());
                    }
                    let index = WordIndex::from_counts(counts(flags, &train), flags.min_count.unwrap_or(1), &special);
                    (index, flags.dim.unwrap_or(100))
                }
            };
            (flags.config(train.labels.clone(), &index, width)?, index)
        }
    };
    let mut encoder = Encoder::new(&config, index);
    let mut first = Vec::new();
    let mut examples = encode(&encoder, &train, "train", &mut first);
    if config.needs_length() && config.max_length == 0 {
        config.max_length = examples.longest().max(1);
        remarks.push(format!("--max-length {}: the longest text of the training set", config.max_length));
        encoder = Encoder::new(&config, encoder.index().clone());
        first.clear();
        examples = encode(&encoder, &train, "train", &mut first);
    }
    remarks.extend(first);
    let dev = encode(&encoder, &dev, "dev", &mut remarks);
    let absent: Vec<&str> = (config.labels.iter().enumerate())
        .filter(|(class, _)| !examples.classes.contains(&(*class as u32)))
        .map(|(_, label)| label.as_str())
        .collect();
    if !absent.is_empty() {
        remarks.push(format!("train: no text has the label {}", absent.join(", ")));
    }
    Ok(Prepared { config, index: encoder.index().clone(), table, train: examples, dev, remarks })
}
