//! Texts as rows of words: read once, on all cores.

use crate::data::words::{SpecialTokens, Splitter, WordIndex};
use crate::data::{Columns, Documents, Format, Text, labelled};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;

/// Where texts come from, and how they become words. Windows do not reach from one line of a file, or one text of a
/// table, into the next.
#[derive(Debug, Clone)]
pub struct Source {
    /// Text files, or tables.
    pub files: Vec<PathBuf>,
    /// Where the tables have their texts; none: files are text.
    pub columns: Option<Columns>,
    /// How text becomes words.
    pub splitter: Splitter,
    /// In lower case.
    pub lowercase: bool,
}

/// Words of texts, as rows of a table.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    /// Which word has which row: the most frequent the first.
    pub index: WordIndex,
    /// How often each row's word occurs.
    pub counts: Vec<u64>,
    /// The text without rare words: rows.
    pub tokens: Vec<u32>,
    /// Where sentences end in `tokens`; each has at least one word and at most `LONGEST`.
    pub ends: Vec<usize>,
    /// What a user should hear.
    pub remarks: Vec<String>,
}

/// The longest sentence; longer lines are cut.
pub const LONGEST: usize = 10_000;
/// Bytes that one task splits.
const SHARE: usize = 1 << 17;
/// Bytes that are split at a time, on all cores.
const GROUP: usize = 1 << 24;

/// Words as they come: numbered in the order of their first place.
#[derive(Default)]
struct Words {
    numbers: HashMap<String, u32>,
    tokens: Vec<u32>,
    ends: Vec<usize>,
}

impl Words {
    fn number(&mut self, word: &str) -> u32 {
        // Most words are known: no string is made for them.
        if let Some(&number) = self.numbers.get(word) {
            return number;
        }
        let new = self.numbers.len() as u32;
        self.numbers.insert(word.into(), new);
        new
    }

    fn split(lines: &[String], source: &Source) -> Words {
        let mut words = Words::default();
        for line in lines {
            source.splitter.each(line, source.lowercase, |word| {
                let number = words.number(word);
                words.tokens.push(number);
            });
            words.ends.push(words.tokens.len());
        }
        words
    }

    fn append(&mut self, other: Words) {
        let mut numbers = vec![0; other.numbers.len()];
        // In the order in which they came, so that numbers do not depend on how text was shared out.
        let mut new: Vec<(u32, String)> = other.numbers.into_iter().map(|(word, number)| (number, word)).collect();
        new.sort_unstable();
        for (number, word) in new {
            numbers[number as usize] = self.number(&word);
        }
        let before = self.tokens.len();
        self.tokens.extend(other.tokens.iter().map(|&token| numbers[token as usize]));
        self.ends.extend(other.ends.iter().map(|end| before + end));
    }

    /// Splits lines on all cores.
    fn add(&mut self, lines: &mut Vec<String>, source: &Source) {
        let mut shares = vec![0];
        let mut bytes = 0;
        for (i, line) in lines.iter().enumerate() {
            bytes += line.len();
            if bytes >= SHARE {
                shares.push(i + 1);
                bytes = 0;
            }
        }
        shares.push(lines.len());
        let split: Vec<Words> =
            shares.par_windows(2).map(|share| Words::split(&lines[share[0]..share[1]], source)).collect();
        split.into_iter().for_each(|words| self.append(words));
        lines.clear();
    }
}

impl Corpus {
    /// Reads texts; words that occur fewer than `min_count` times are left out, as if they were not there. `progress`
    /// hears of bytes.
    ///
    /// # Errors
    /// If a file cannot be read, or no word occurs so often.
    pub fn read(source: &Source, min_count: u64, mut progress: impl FnMut(u64)) -> Result<Corpus> {
        let (mut words, mut lines, mut bytes, mut remarks) = (Words::default(), Vec::new(), 0, Vec::new());
        let mut take = |line: String, lines: &mut Vec<String>, words: &mut Words| {
            bytes += line.len();
            lines.push(line);
            if bytes >= GROUP {
                progress(bytes as u64);
                bytes = 0;
                words.add(lines, source);
            }
        };
        for path in &source.files {
            if let Some(columns) = &source.columns {
                let table = labelled::read(path, columns, None)?;
                remarks.extend(table.remarks.into_iter().map(|remark| format!("{}: {remark}", path.display())));
                table.examples.into_iter().for_each(|example| take(example.text, &mut lines, &mut words));
                continue;
            }
            let text = Text::open(path)?;
            for piece in text.pieces(&Format { documents: Documents::Lines, text_column: None })? {
                take(piece?.text, &mut lines, &mut words);
            }
        }
        words.add(&mut lines, source);
        Corpus::of(words, min_count, remarks)
    }

    /// A corpus of lines that are there already.
    ///
    /// # Errors
    /// If no word occurs so often.
    pub fn of_lines(mut lines: Vec<String>, splitter: Splitter, lowercase: bool, min_count: u64) -> Result<Corpus> {
        let mut words = Words::default();
        words.add(&mut lines, &Source { files: Vec::new(), columns: None, splitter, lowercase });
        Corpus::of(words, min_count, Vec::new())
    }

    fn of(words: Words, min_count: u64, mut remarks: Vec<String>) -> Result<Corpus> {
        let Words { numbers, mut tokens, ends } = words;
        let mut counts = vec![0u64; numbers.len()];
        tokens.iter().for_each(|&token| counts[token as usize] += 1);
        let counted = numbers.iter().map(|(word, &number)| (word.clone(), counts[number as usize])).collect();
        let index = WordIndex::from_counts(counted, min_count, &SpecialTokens::default());
        if index.is_empty() {
            let problem = format!("none of {} words occurs so often", numbers.len());
            return Err(Error::argument(
                format!("--min-count {min_count}"),
                problem,
                "give a smaller one, or more text",
            ));
        }
        let mut rows = vec![u32::MAX; numbers.len()];
        numbers.iter().for_each(|(word, &number)| rows[number as usize] = index.get(word).unwrap_or(u32::MAX));
        let all = tokens.len();
        let (mut kept, mut new_ends, mut from) = (0, Vec::with_capacity(ends.len()), 0);
        for end in ends {
            let begin = kept;
            for i in from..end {
                let row = rows[tokens[i] as usize];
                tokens[kept] = row;
                kept += (row != u32::MAX) as usize;
            }
            from = end;
            new_ends.extend((begin + 1..kept).filter(|at| (at - begin) % LONGEST == 0));
            new_ends.extend((kept > begin).then_some(kept));
        }
        tokens.truncate(kept);
        if kept < all {
            let (rare, left) = (numbers.len() - index.len(), all - kept);
            let share = 100.0 * left as f64 / all as f64;
            remarks.push(format!(
                "left out: {rare} words that occur fewer than {min_count} times ({share:.1} % of the text)"
            ));
        }
        let mut by_row = vec![0; index.len()];
        tokens.iter().for_each(|&row| by_row[row as usize] += 1);
        Ok(Corpus { index, counts: by_row, tokens, ends: new_ends, remarks })
    }
}
