//! Word vectors: tables of numbers with a word for each row, as others' programs write them.
//!
//! What a file is, its content says: GloVe's text or word2vec's (the same with a first line of two counts), word2vec's
//! binary form, a PyTorch state dict, or safetensors. The last two have no words, which a JSON file gives.

mod binary;
pub mod near;
pub mod skip_gram;
mod table;
mod text;

use crate::data::WordIndex;
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Vectors of words.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WordVectors {
    /// Numbers in a vector.
    pub dim: usize,
    /// The words, each once.
    pub words: Vec<String>,
    /// Their vectors, one after another: `words.len()` × `dim`.
    pub table: Vec<f32>,
}

/// How a file is read.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// Read so many vectors at most: the first. Files mostly begin with the most frequent words.
    pub first: Option<usize>,
    /// The tensor of a file of several; none: `target_embeddings.weight`, or the only matrix.
    pub embedding_key: Option<String>,
    /// Which word has which row: JSON in either direction.
    pub word_index: Option<PathBuf>,
}

/// What part of a vocabulary has vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coverage {
    /// Words that have one.
    pub known: usize,
    /// Words asked about.
    pub words: usize,
}

impl Coverage {
    /// As a user should hear it.
    pub fn remark(&self, whose: &str) -> String {
        let share = 100.0 * self.known as f64 / self.words.max(1) as f64;
        format!("{} of {} {whose} have vectors ({share:.1} %)", self.known, self.words)
    }
}

impl WordVectors {
    /// The vector of row `row`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.table[row * self.dim..][..self.dim]
    }

    /// A table for the rows of `index` (`index.len()` × `dim`), zeros where a word has no vector, and how many have one;
    /// the padding and the unknown are not counted.
    pub fn table_for(&self, index: &WordIndex) -> (Vec<f32>, Coverage) {
        let mut table = vec![0.0; index.len() * self.dim];
        let special: HashSet<u32> = [index.pad(), index.unk()].into_iter().flatten().collect();
        let mut coverage = Coverage { known: 0, words: index.len() - special.len() };
        for (from, word) in self.words.iter().enumerate() {
            let Some(to) = index.get(word) else { continue };
            coverage.known += !special.contains(&to) as usize;
            table[to as usize * self.dim..][..self.dim].copy_from_slice(self.row(from));
        }
        (table, coverage)
    }
}

/// What `attn embed train` writes into its directory: a state dict, and JSON files of words in both directions.
pub const STATE_DICT: &str = "word2vec.pt";
/// Word → row.
pub const WORD_TO_INDEX: &str = "word_to_index.txt";
/// Row → word.
pub const INDEX_TO_WORD: &str = "index_to_word.txt";

/// Bytes that decide what a file is.
const HEAD: usize = 1 << 16;

/// Reads vectors, and what a user should hear of them: words that came twice, rows without a word. A directory is one that
/// `attn embed train` wrote.
///
/// # Errors
/// If the file cannot be read, is of no known kind, damaged, cut off or uneven, with the line, word or tensor at fault; if an
/// option does not go with the file.
pub fn read(path: &Path, options: &ReadOptions) -> Result<(WordVectors, Vec<String>)> {
    let unreadable = |e: std::io::Error| {
        Error::file(path, format!("cannot be read: {}", e.kind()), "give a file of word vectors that exists")
    };
    if options.first == Some(0) {
        return Err(Error::argument("--first 0", "leaves no vectors", "give a larger number"));
    }
    if path.is_dir() {
        crate::train::directory::settle(path)?;
        let inside = path.join(STATE_DICT);
        if !inside.is_file() {
            let remedy = "give a file of word vectors, or a directory that `attn embed train` wrote";
            return Err(Error::file(path, format!("is a folder without {STATE_DICT}"), remedy));
        }
        let word_index = options.word_index.clone().or_else(|| Some(path.join(WORD_TO_INDEX)));
        return read(&inside, &ReadOptions { word_index, ..options.clone() });
    }
    let file = File::open(path).map_err(unreadable)?;
    let mut reader = BufReader::with_capacity(HEAD, file);
    let head = reader.fill_buf().map_err(unreadable)?;
    if head.is_empty() {
        return Err(Error::file(path, "is empty", "give a file of word vectors"));
    }
    let mut remarks = Vec::new();
    let is_pytorch = head.starts_with(b"PK\x03\x04") || head.starts_with(b"\x80\x02");
    let vectors = if is_pytorch || is_safetensors(head) {
        drop(reader);
        table::read(path, is_pytorch, options, &mut remarks)?
    } else {
        for (flag, given) in [
            ("--embedding-key", options.embedding_key.clone()),
            ("--word-index", options.word_index.as_ref().map(|p| p.display().to_string())),
        ] {
            if let Some(given) = given {
                let problem = format!("is for tensors, and {} is a list of words with their vectors", path.display());
                return Err(Error::argument(format!("{flag} {given}"), problem, "leave it out"));
            }
        }
        match binary::header(head) {
            Some(header) => binary::read(path, reader, header, options.first)?,
            None => text::read(path, reader, options.first)?,
        }
    };
    Ok((unique(vectors, &mut remarks), remarks))
}

/// A header's length, then the header, which is JSON.
fn is_safetensors(head: &[u8]) -> bool {
    head.len() > 8 && head[8] == b'{' && head[5..8] == [0, 0, 0]
}

/// Each word's first vector.
fn unique(vectors: WordVectors, remarks: &mut Vec<String>) -> WordVectors {
    let mut seen = HashSet::with_capacity(vectors.words.len());
    let first: Vec<bool> = vectors.words.iter().map(|word| seen.insert(word.as_str())).collect();
    let twice: Vec<&String> = vectors.words.iter().zip(&first).filter(|(_, first)| !**first).map(|(w, _)| w).collect();
    if twice.is_empty() {
        return vectors;
    }
    let example = twice[0];
    remarks.push(format!("left out: {} vectors of words that had one already, such as {example:?}", twice.len()));
    let kept = |i: &usize| first[*i];
    let table = (0..first.len()).filter(kept).flat_map(|i| vectors.row(i).iter().copied()).collect();
    let words = (0..first.len()).filter(kept).map(|i| vectors.words[i].clone()).collect();
    WordVectors { dim: vectors.dim, words, table }
}

#[cfg(test)]
mod tests;
