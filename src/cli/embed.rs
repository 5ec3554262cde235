//! `attn embed`: word vectors of one's own, and what they know.

use super::{Status, print, print_line};
use crate::data::{Column, Columns, Header, Separator, Splitter};
use crate::error::{Error, Result};
use crate::io::{Target, pytorch};
use crate::train::{Progress, directory, interrupted_by_ctrl_c};
use crate::vectors::near::{Directions, Neighbour};
use crate::vectors::skip_gram::{Corpus, Learned, Reached, Settings, Source, train};
use crate::vectors::{self, INDEX_TO_WORD, ReadOptions, STATE_DICT, WORD_TO_INDEX};
use comfy_table::{CellAlignment, Table};
use serde_json::json;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Make word vectors, and look at them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Train(TrainArgs),
    Nearest(NearestArgs),
    Analogy(AnalogyArgs),
}

/// Learn word vectors from texts: skip-gram with negative sampling
///
/// The directory given by --out receives word2vec.pt, a PyTorch state dict of target_embeddings.weight (what `attn` uses)
/// and context_embeddings.weight, with word_to_index.txt and index_to_word.txt, which are JSON. Lines of a text file, and
/// texts of a table, are sentences: windows do not reach from one into the next. One thread gives the same vectors each
/// time; several are faster.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  attn embed train --text input.txt --lowercase --out vectors
  attn embed train --text train.tsv dev.tsv --text-column 3 --dim 50 --epochs 20 --out vectors
  attn embed nearest good --vectors vectors")]
struct TrainArgs {
    /// Text files, or with --text-column tables
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    text: Vec<PathBuf>,
    /// The column of tables that holds the text: a name or a number from 1. Tables are comma-separated where their names end
    /// in .csv, else tab-separated
    #[arg(long, value_name = "NAME|N")]
    text_column: Option<Column>,
    /// Whether tables name their columns in the first row; auto: where a column is given by name
    #[arg(long, value_enum, default_value_t = Header::Auto, requires = "text_column")]
    header: Header,
    /// What stands between columns [default: as the file's name says]
    #[arg(long, value_enum, requires = "text_column")]
    separator: Option<Separator>,
    /// How text becomes words
    #[arg(long, value_enum, default_value_t = Splitter::Words)]
    tokenizer: Splitter,
    /// In lower case
    #[arg(long)]
    lowercase: bool,
    /// Numbers in a vector
    #[arg(long, value_name = "N", default_value_t = Settings::default().dim)]
    dim: usize,
    /// Words on either side at most
    #[arg(long, value_name = "N", default_value_t = Settings::default().window)]
    window: usize,
    /// Wrong answers for each right one
    #[arg(long, value_name = "N", default_value_t = Settings::default().negative)]
    negative: usize,
    /// Times that the text is gone through
    #[arg(long, value_name = "N", default_value_t = Settings::default().epochs)]
    epochs: u32,
    /// Leave out words that occur fewer times
    #[arg(long, value_name = "N", default_value_t = Settings::default().min_count)]
    min_count: u64,
    /// Leave out words with a larger share of the text now and then; 0: never
    #[arg(long, value_name = "X", default_value_t = Settings::default().subsample)]
    subsample: f64,
    /// Learning rate at the beginning; it falls in a straight line to a ten-thousandth
    #[arg(long, value_name = "X", default_value_t = Settings::default().lr)]
    lr: f64,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Seed of first vectors and draws
    #[arg(long, value_name = "N", default_value_t = Settings::default().seed)]
    seed: u64,
    /// Directory for the vectors
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write over what --out holds
    #[arg(long)]
    overwrite: bool,
}

/// Where vectors are.
#[derive(Debug, clap::Args)]
struct VectorsArgs {
    /// Word vectors: a directory that `attn embed train` wrote, or a file: GloVe's or word2vec's text, word2vec's binary
    /// form, a PyTorch state dict (.pt), safetensors
    #[arg(long, value_name = "DIR|FILE")]
    vectors: PathBuf,
    /// Which word has which row of a tensor: JSON, word to row or row to word
    #[arg(long, value_name = "FILE")]
    word_index: Option<PathBuf>,
    /// The tensor that holds the vectors [default: target_embeddings.weight, or the only matrix]
    #[arg(long, value_name = "NAME")]
    embedding_key: Option<String>,
    /// Read so many vectors at most: the first
    #[arg(long, value_name = "N")]
    first: Option<usize>,
    /// Words to show for each question
    #[arg(long, value_name = "N", default_value_t = 10)]
    count: usize,
    /// Also write what was found here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The words whose vectors have the most similar directions (cosine)
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  attn embed nearest good terrible --vectors glove.6B.100d.txt --first 40000")]
struct NearestArgs {
    /// Words, as they stand in the vectors
    #[arg(value_name = "WORD", required = true)]
    words: Vec<String>,
    #[command(flatten)]
    vectors: VectorsArgs,
}

/// The words that are to C as B is to A
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  attn embed analogy man king woman --vectors glove.6B.100d.txt")]
struct AnalogyArgs {
    /// What B belongs to
    a: String,
    /// What belongs to A
    b: String,
    /// What is asked about
    c: String,
    #[command(flatten)]
    vectors: VectorsArgs,
}

/// Runs the command.
///
/// # Errors
/// If a flag or file will not do, a word has no vector, or training was interrupted.
pub fn main(args: Args) -> Result<Status> {
    match args.command {
        Command::Train(args) => learn(args)?,
        Command::Nearest(NearestArgs { words, vectors }) => {
            let all = vectors.open()?;
            let found = words.iter().map(|word| Ok((word.clone(), all.nearest(place(&all, word)?, vectors.count))));
            vectors.show(found.collect::<Result<_>>()?)?;
        }
        Command::Analogy(AnalogyArgs { a, b, c, vectors }) => {
            let all = vectors.open()?;
            let places = [place(&all, &a)?, place(&all, &b)?, place(&all, &c)?];
            vectors.show(vec![(format!("{a} : {b} = {c} : ?"), all.analogy(places, vectors.count))])?;
        }
    }
    Ok(Status::Done)
}

fn learn(args: TrainArgs) -> Result<()> {
    let TrainArgs { dim, window, negative, epochs, min_count, subsample, lr, seed, .. } = args;
    let settings = Settings { dim, window, negative, epochs, min_count, subsample, lr, seed };
    settings.check()?;
    let out = &args.out;
    if out.exists() && !out.is_dir() {
        return Err(Error::file(out, "is no directory", "give --out a directory"));
    }
    if !args.overwrite && !directory::is_vacant(out) {
        return Err(Error::file(out, "is not empty", "give another --out, or start over with --overwrite"));
    }
    let columns = args.text_column.map(|text| Columns {
        header: args.header,
        separator: args.separator,
        ..Columns::new(text, None, None)
    });
    let source = Source { files: args.text, columns, splitter: args.tokenizer, lowercase: args.lowercase };
    let bytes = source.files.iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum();
    let mut progress = Progress::new("reading", 0, bytes);
    let mut done = 0;
    let read = Corpus::read(&source, min_count, |bytes| {
        done += bytes;
        progress.reached(done);
    });
    progress.finish();
    let corpus = read?;
    corpus.remarks.iter().for_each(|remark| eprintln!("{remark}"));
    eprintln!("{} words of text, {} different", corpus.tokens.len(), corpus.index.len());
    // Before time is spent, and after what is read has been found good.
    directory::create(out)?;
    let interrupted = interrupted_by_ctrl_c();
    let threads = args.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let total = corpus.tokens.len() as u64 * epochs as u64;
    let mut progress = Progress::new("training", 0, total);
    let (learned, reached) = train(&corpus, &settings, threads, |reached| {
        progress.step(reached.words, reached.loss, reached.words_per_s());
        !interrupted.load(Ordering::SeqCst)
    })?;
    progress.finish();
    let Reached { words, elapsed, loss, .. } = reached;
    write(out, &corpus, &learned, &settings, &source, loss)?;
    let shown = out.display();
    if words < total {
        let share = 100.0 * words as f64 / total as f64;
        let problem = format!("interrupted after {share:.0} %; {shown} has the vectors as they were then");
        return Err(Error::argument("training", problem, "run it again with --overwrite for all of it"));
    }
    let (rate, seconds, words) = (reached.words_per_s(), elapsed.as_secs_f64(), corpus.index.len());
    print_line(format_args!(
        "{words} vectors of {dim} numbers: loss {loss:.4}, {rate:.0} words/s, {seconds:.1} s; in {shown}"
    ))
}

/// Writes all files of a directory, together.
fn write(
    out: &Path,
    corpus: &Corpus,
    learned: &Learned,
    settings: &Settings,
    source: &Source,
    loss: f64,
) -> Result<()> {
    let shape = vec![corpus.index.len(), settings.dim];
    let tensor = |name: &str, table: &[f32]| {
        (format!("{name}_embeddings.weight"), shape.clone(), table.iter().map(|&x| x as f64).collect())
    };
    let tensors = [tensor("target", &learned.target.table), tensor("context", &learned.context)];
    let state_dict = pytorch::encode(&tensors)
        .map_err(|e| Error::file(out.join(STATE_DICT), format!("cannot be made: {e}"), "choose a smaller --dim"))?;
    let about = json!({
        "settings": settings,
        "tokenizer": source.splitter.name(),
        "lowercase": source.lowercase,
        "texts": source.files,
        "words": corpus.tokens.len(),
        "loss": loss,
    });
    let files = [
        (STATE_DICT, state_dict),
        (WORD_TO_INDEX, corpus.index.to_json().into_bytes()),
        (INDEX_TO_WORD, corpus.index.to_json_by_row().into_bytes()),
        ("embed.json", format!("{about:#}\n").into_bytes()),
    ];
    directory::replace(out, &files)
}

/// A word's place, or an error that names words spelled like it.
fn place(all: &Directions, word: &str) -> Result<usize> {
    all.place(word).ok_or_else(|| {
        let alike = all.spelled_like(word, 5);
        let remedy = match alike[..] {
            [] => "no word is spelled like it".to_string(),
            _ => format!("spelled like it: {}", alike.join(", ")),
        };
        Error::argument(format!("{word:?}"), "has no vector", remedy)
    })
}

impl VectorsArgs {
    fn open(&self) -> Result<Directions> {
        let options = ReadOptions {
            first: self.first,
            embedding_key: self.embedding_key.clone(),
            word_index: self.word_index.clone(),
        };
        let (vectors, remarks) = vectors::read(&self.vectors, &options)?;
        remarks.iter().for_each(|remark| eprintln!("{remark}"));
        Ok(Directions::new(vectors))
    }

    /// Prints what was found for each question.
    fn show(&self, found: Vec<(String, Vec<Neighbour>)>) -> Result<()> {
        if let Some(path) = &self.json {
            let rows: Vec<_> = found.iter().map(|(asked, found)| json!({ "asked": asked, "nearest": found })).collect();
            Target::new(path)?.write(|w| writeln!(w, "{:#}", json!({ "rows": rows })))?;
        }
        let mut text = String::new();
        for (asked, found) in &found {
            let mut table = Table::new();
            table.load_style(comfy_table::presets::NOTHING);
            for Neighbour { word, cosine } in found {
                table.add_row([word.clone(), format!("{cosine:.4}")]);
            }
            if let Some(column) = table.column_mut(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            let _ = writeln!(text, "{asked}\n{table}");
        }
        print(text)
    }
}
