//! Tasks with a right answer, generated without end: what attention variants can be told apart by in minutes.
//!
//! - `copy`: a random string, a separator, the string again: `qhdb|qhdb`. The second string is to be predicted.
//! - `recall`: multi-query associative recall (Arora et al., "Zoology: Measuring and Improving Recall in Efficient
//!   Language Models", 2023, section 3): pairs of a key and a value, then every key again in another order, each followed
//!   by its value: `aXcRbM` `cRaXbM`. The values of the second part are to be predicted. Which value a key has changes from
//!   row to row, so that it must be looked up. Attention over all pairs can do that; a state of fixed size must hold
//!   every pair at once, and with more pairs than it has room for it cannot. (Zoology hides the answers from the input; here they stand in it, so that
//!   a row is text like any other, which `attn generate` continues.)
//!
//! Rows to learn from are of every size up to the task's, each as likely, as Zoology mixes sizes too: from the largest
//! alone the look-up is found late, if at all, as nearly nothing points to it. Validation asks for one size.
//!
//! Only answers count: nobody can predict the rest. A row is a function of seed, step and its number in the batch;
//! training and validation draw from streams of their own.

use super::tokenizer::{Characters, Tokenizer};
use super::{Batch, IGNORE};
use crate::error::{Error, Result};
use crate::philox::Philox;

/// What is to be learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// A string of so many letters, and again.
    Copy {
        /// Letters of the string.
        length: usize,
    },
    /// So many pairs of key and value, and every key again.
    Recall {
        /// Pairs.
        pairs: usize,
    },
}

/// Letters that strings to be copied are drawn from.
const LETTERS: usize = 26;
/// Values that keys are given; guessing among them is right once in so many.
const VALUES: usize = 16;
/// The most pairs: there are keys for twice as many.
const MOST_PAIRS: usize = 256;
/// The longest string to be copied.
const LONGEST: usize = 1 << 16;
/// Between a string and its copy.
const SEPARATOR: char = '|';
/// Between questions, where a row has room.
const FILLER: char = '.';
/// The streams of random numbers that draw rows: to learn from, and to see how well it was learned.
const TRAINING: u32 = 0x7461_736b;
const VALIDATION: u32 = 0x7461_736c;

/// Lower-case letters in the order of their code points: a to z, then those of other scripts.
fn keys(n: usize) -> impl Iterator<Item = char> {
    ('a'..).filter(|c| c.is_lowercase()).take(n)
}

fn values() -> impl Iterator<Item = char> {
    ('A'..).take(VALUES)
}

impl Task {
    /// Checks that there are letters enough.
    ///
    /// # Errors
    /// If the string is empty or too long, or pairs are none or too many; the flag is named.
    pub fn check(self) -> Result<Task> {
        let (flag, n, most) = match self {
            Task::Copy { length } => ("--copy-length", length, LONGEST),
            Task::Recall { pairs } => ("--pairs", pairs, MOST_PAIRS),
        };
        if (1..=most).contains(&n) {
            return Ok(self);
        }
        Err(Error::argument(format!("{flag} {n}"), "is out of range", format!("give 1 to {most}")))
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Task::Copy { .. } => "copy",
            Task::Recall { .. } => "recall",
        }
    }

    /// Its size: letters of the string, or pairs.
    pub fn size(self) -> usize {
        match self {
            Task::Copy { length } => length,
            Task::Recall { pairs } => pairs,
        }
    }

    /// Tokens that the model must see at once: a row without its last token.
    pub fn block(self) -> usize {
        match self {
            Task::Copy { length } => 2 * length,
            Task::Recall { pairs } => 4 * pairs - 1,
        }
    }

    /// The share of answers that guessing among all possible ones gets right.
    pub fn chance(self) -> f64 {
        match self {
            Task::Copy { .. } => 1.0 / LETTERS as f64,
            Task::Recall { .. } => 1.0 / VALUES as f64,
        }
    }

    /// All characters that occur.
    pub fn tokenizer(self) -> Tokenizer {
        let characters: String = match self {
            Task::Copy { .. } => keys(LETTERS).chain([SEPARATOR]).collect(),
            Task::Recall { pairs } => keys(2 * pairs).chain(values()).chain([FILLER]).collect(),
        };
        Tokenizer::Characters(Characters::of(&characters))
    }
}

/// Batches of a task.
#[derive(Debug, Clone)]
pub struct TaskBatches {
    task: Task,
    rows: usize,
    block: usize,
    seed: u64,
    keys: Vec<i32>,
    values: Vec<i32>,
    /// The separator, or the filler.
    mark: i32,
}

/// Random numbers for one row.
struct Draws {
    random: Philox,
    next: u64,
}

impl Draws {
    /// Below n.
    fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        ((self.random.word(self.next - 1) as u64 * n as u64) >> 32) as usize
    }

    /// So many of 0, 1, …, n − 1, all different, in random order (the first steps of Fisher and Yates).
    fn some_of(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        (0..count).for_each(|i| all.swap(i, i + self.below(n - i)));
        all.truncate(count);
        all
    }
}

impl TaskBatches {
    /// Batches of `rows` rows of `block` tokens. More tokens than the task needs are fillers among the questions of
    /// `recall`, which then stand farther from what they ask for; and padding after `copy`.
    ///
    /// # Errors
    /// If the task's sizes are out of range, or a row does not fit the block.
    pub fn new(task: Task, rows: usize, block: usize, seed: u64) -> Result<TaskBatches> {
        let needed = task.check()?.block();
        if block < needed {
            let problem = format!("has no room for a row of {}, which takes {needed}", task.name());
            let remedy = format!("give {needed} or more, or leave it out");
            return Err(Error::argument(format!("--block-size {block}"), problem, remedy));
        }
        let tokenizer = task.tokenizer();
        let ids = |characters: String| tokenizer.encode(&characters, task.name());
        let (keys, mark) = match task {
            Task::Copy { .. } => (ids(keys(LETTERS).collect())?, SEPARATOR),
            Task::Recall { pairs } => (ids(keys(2 * pairs).collect())?, FILLER),
        };
        let values = if let Task::Recall { .. } = task { ids(values().collect())? } else { vec![] };
        let mark = ids(mark.to_string())?[0];
        Ok(TaskBatches { task, rows, block, seed, keys, values, mark })
    }

    /// The task.
    pub fn task(&self) -> Task {
        self.task
    }

    /// What a step, counted from 0, learns: rows of sizes from 1 to the task's.
    pub fn training(&self, step: u64) -> Batch {
        self.batch(TRAINING, step, |draws| 1 + draws.below(self.task.size()))
    }

    /// Batch number `index` of those to validate on, of rows of this size.
    ///
    /// # Panics
    /// If the size is above the task's.
    pub fn validation(&self, size: usize, index: u64) -> Batch {
        assert!(size <= self.task.size(), "rows of this size do not fit the block");
        self.batch(VALIDATION, index, |_| size)
    }

    fn batch(&self, stream: u32, step: u64, size: impl Fn(&mut Draws) -> usize) -> Batch {
        let mut batch = Batch::default();
        for row in 0..self.rows as u64 {
            // 2³² elements a row: more than it ever draws.
            let mut draws = Draws { random: Philox::new(self.seed, stream, step as u32), next: row << 32 };
            let size = size(&mut draws);
            let (tokens, counts) = match self.task {
                Task::Copy { .. } => self.copy(&mut draws, size),
                Task::Recall { .. } => self.recall(&mut draws, size),
            };
            let length = tokens.len() - 1;
            let padding = self.block - length;
            batch.tokens.extend(&tokens[..length]);
            batch.targets.extend((1..=length).map(|i| if counts(i) { tokens[i] } else { IGNORE }));
            batch.tokens.extend(std::iter::repeat_n(0, padding));
            batch.targets.extend(std::iter::repeat_n(IGNORE, padding));
            batch.lengths.push(length as i32);
        }
        batch
    }

    /// A row, and whether the token at a place is to be predicted.
    fn copy(&self, draws: &mut Draws, length: usize) -> (Vec<i32>, Box<dyn Fn(usize) -> bool>) {
        let string: Vec<i32> = (0..length).map(|_| self.keys[draws.below(LETTERS)]).collect();
        let row = [&string[..], &[self.mark], &string].concat();
        (row, Box::new(move |i| i > length))
    }

    fn recall(&self, draws: &mut Draws, pairs: usize) -> (Vec<i32>, Box<dyn Fn(usize) -> bool>) {
        let keys = draws.some_of(self.keys.len(), pairs);
        let pairs: Vec<[i32; 2]> = keys.iter().map(|&key| [self.keys[key], self.values[draws.below(VALUES)]]).collect();
        let mut fillers = vec![0; pairs.len()];
        (0..self.block - self.task.block()).for_each(|_| fillers[draws.below(pairs.len())] += 1);
        let mut row = pairs.concat();
        let mut answers = vec![false; row.len()];
        for (asked, fillers) in draws.some_of(pairs.len(), pairs.len()).into_iter().zip(fillers) {
            row.extend(std::iter::repeat_n(self.mark, fillers));
            row.extend(pairs[asked]);
            answers.resize(row.len() - 1, false);
            answers.push(true);
        }
        (row, Box::new(move |i| answers[i]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Rows as text, and what is asked of each.
    fn rows(task: Task, block: usize, batch: impl Fn(&TaskBatches) -> Batch) -> Vec<(String, String)> {
        let batches = TaskBatches::new(task, 3, block, 5).unwrap();
        let tokenizer = task.tokenizer();
        let Batch { tokens, targets, lengths } = batch(&batches);
        assert_eq!((tokens.len(), lengths.len()), (3 * block, 3));
        let shown = |targets: &[i32]| {
            let one = |&t: &i32| if t == IGNORE { "_".into() } else { tokenizer.decode(&[t]) };
            targets.iter().map(one).collect::<String>()
        };
        let text = |tokens: &[i32]| tokenizer.decode(tokens);
        tokens.chunks(block).zip(targets.chunks(block)).map(|(x, y)| (text(x), shown(y))).collect()
    }

    #[test]
    fn a_copy_is_asked_after_the_separator() {
        for (seen, asked) in rows(Task::Copy { length: 3 }, 8, |b| b.validation(3, 0)) {
            let string = &seen[..3];
            // After the separator the string; its last letter is only asked for. Then padding, which is token 0: a.
            assert_eq!(seen, format!("{string}|{}aa", &string[..2]));
            assert_eq!(asked, format!("___{string}__"));
        }
    }

    #[test]
    fn every_key_is_asked_once_and_has_the_value_of_its_pair() {
        for block in [15, 40] {
            for (seen, asked) in rows(Task::Recall { pairs: 4 }, block, |b| b.validation(4, 2)) {
                let (seen, asked): (Vec<char>, Vec<char>) = (seen.chars().collect(), asked.chars().collect());
                let pairs: BTreeMap<char, char> = seen[..8].chunks(2).map(|pair| (pair[0], pair[1])).collect();
                let asked_for = |i: usize| asked[i] != '_';
                let answers: BTreeMap<char, char> =
                    (0..block).filter(|&i| asked_for(i)).map(|i| (seen[i], asked[i])).collect();
                assert_eq!((pairs.len(), &answers), (4, &pairs));
                assert_eq!((0..block).filter(|&i| asked_for(i)).count(), 4);
                assert_eq!(seen.iter().filter(|&&c| c == '.').count(), block - 15);
            }
        }
    }

    #[test]
    fn rows_to_learn_from_have_every_size_and_come_again() {
        let rows = |batch: &dyn Fn(&TaskBatches) -> Batch| rows(Task::Recall { pairs: 3 }, 11, batch);
        assert_eq!(rows(&|b| b.training(7)), rows(&|b| b.training(7)));
        assert_ne!(rows(&|b| b.training(7)), rows(&|b| b.training(8)));
        let asked = |(_, asked): &(String, String)| asked.chars().filter(|&c| c != '_').count();
        let sizes: Vec<usize> = (0..20).flat_map(|step| rows(&|b| b.training(step))).map(|row| asked(&row)).collect();
        assert!((1..=3).all(|n| sizes.contains(&n)) && sizes.iter().all(|n| (1..=3).contains(n)), "{sizes:?}");
        // What is validated on is none of it.
        let seen: Vec<(String, String)> = (0..20).flat_map(|step| rows(&|b| b.training(step))).collect();
        assert!(rows(&|b| b.validation(3, 7)).iter().all(|row| asked(row) == 3 && !seen.contains(row)));
        assert!(rows(&|b| b.validation(2, 7)).iter().all(|row| asked(row) == 2));
    }

    #[test]
    fn sizes_out_of_range_name_their_flag() {
        let error = |task, block| TaskBatches::new(task, 1, block, 1).unwrap_err().to_string();
        assert!(error(Task::Recall { pairs: 0 }, 8).starts_with("--pairs 0: is out of range; give 1 to 256"));
        assert!(error(Task::Copy { length: 0 }, 8).starts_with("--copy-length 0"));
        assert!(error(Task::Recall { pairs: 4 }, 14).starts_with("--block-size 14: has no room"));
        // Every key is another letter, up to the most pairs.
        let most = Task::Recall { pairs: MOST_PAIRS };
        assert_eq!(most.tokenizer().len(), 2 * MOST_PAIRS + VALUES + 1);
    }
}
