//! A corpus: one stream of tokens, or documents, and how both are cut into the rows of batches.

use super::{Batch, IGNORE, Tokens};
use crate::error::{Error, Result};
use memmap2::Mmap;
use std::ops::Range;
use std::sync::Arc;

/// Tokens to be learned.
#[derive(Debug, Clone)]
pub struct Corpus {
    tokens: Tokens,
    kind: Kind,
    padding: i32,
}

#[derive(Debug, Clone)]
enum Kind {
    /// One text; random blocks start at multiples of `stride`, and the token at this position within a stride counts.
    Stream { stride: usize, counts: fn(usize) -> bool },
    /// Those of the documents in `range`, cut to `limit` tokens.
    Documents { ends: Arc<Ends>, range: Range<usize>, limit: usize },
}

/// Where each document ends in the tokens.
#[derive(Debug)]
pub enum Ends {
    /// In memory.
    Memory(Vec<u64>),
    /// In a mapped file, from this byte on, so many.
    Mapped(Arc<Mmap>, usize, usize),
}

impl Ends {
    fn len(&self) -> usize {
        match self {
            Ends::Memory(ends) => ends.len(),
            Ends::Mapped(_, _, count) => *count,
        }
    }

    fn get(&self, i: usize) -> usize {
        match self {
            Ends::Memory(ends) => ends[i] as usize,
            Ends::Mapped(map, at, _) => {
                let bytes = &map[at + 8 * i..at + 8 * (i + 1)];
                u64::from_le_bytes(bytes.try_into().expect("eight bytes")) as usize
            }
        }
    }
}

/// A row's share of a corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The document; 0 in a stream.
    pub document: usize,
    /// The tokens that the model sees.
    pub inputs: Range<usize>,
    /// From this input on, what follows counts; before it, another window has it.
    pub counted: usize,
}

impl Corpus {
    /// A stream of which every token is to be predicted.
    pub fn text(tokens: impl Into<Tokens>) -> Corpus {
        Corpus::problems(tokens, 1, |_| true)
    }

    /// Problems of `stride` tokens each, of which those at positions that `counts` names are to be predicted. Random
    /// blocks start with a problem.
    pub fn problems(tokens: impl Into<Tokens>, stride: usize, counts: fn(usize) -> bool) -> Corpus {
        Corpus { tokens: tokens.into(), kind: Kind::Stream { stride, counts }, padding: 0 }
    }

    /// Documents that end where `ends` says.
    pub fn documents(tokens: impl Into<Tokens>, ends: Ends) -> Corpus {
        let range = 0..ends.len();
        Corpus {
            tokens: tokens.into(),
            kind: Kind::Documents { ends: Arc::new(ends), range, limit: usize::MAX },
            padding: 0,
        }
    }

    /// The same with this token where rows are filled up, instead of 0.
    pub fn padded_with(self, padding: i32) -> Corpus {
        Corpus { padding, ..self }
    }

    /// The same with documents cut to so many tokens; a stream stays whole.
    pub fn limited(mut self, length: usize) -> Corpus {
        if let Kind::Documents { limit, .. } = &mut self.kind {
            *limit = length;
        }
        self
    }

    /// Its tokens. Those of a part of a corpus of documents are all that the whole has.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Whether it holds documents.
    pub fn has_documents(&self) -> bool {
        matches!(self.kind, Kind::Documents { .. })
    }

    /// How many documents; a stream is one.
    pub fn len(&self) -> usize {
        match &self.kind {
            Kind::Stream { .. } => 1,
            Kind::Documents { range, .. } => range.len(),
        }
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of a document.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn document(&self, i: usize) -> Range<usize> {
        assert!(i < self.len(), "document {i} of {}", self.len());
        match &self.kind {
            Kind::Stream { .. } => 0..self.tokens.len(),
            Kind::Documents { ends, range, limit } => {
                let i = range.start + i;
                let start = if i == 0 { 0 } else { ends.get(i - 1) };
                start..ends.get(i).min(start.saturating_add(*limit))
            }
        }
    }

    /// The first nine tenths for training, and the rest for validation: of the tokens, rounded down to whole strides, or
    /// of the documents.
    pub fn split(self) -> (Corpus, Corpus) {
        let n = self.tokens.len();
        match self.kind.clone() {
            Kind::Stream { stride, .. } => {
                let cut = n * 9 / 10 / stride * stride;
                let part = |range| Corpus { tokens: self.tokens.slice(range), ..self.clone() };
                (part(0..cut), part(cut..n))
            }
            Kind::Documents { ends, range, limit } => {
                let cut = range.start + range.len() * 9 / 10;
                let part =
                    |range| Corpus { kind: Kind::Documents { ends: ends.clone(), range, limit }, ..self.clone() };
                (part(range.start..cut), part(cut..range.end))
            }
        }
    }

    /// How many whole blocks of a stream follow each other, each with a token after it to predict.
    pub fn whole_blocks(&self, block: usize) -> usize {
        self.tokens.len().saturating_sub(1) / block
    }

    /// An error where there is no whole block, or no document; `what` names the corpus in it.
    ///
    /// # Errors
    /// With fewer than a block's tokens and one more.
    pub fn check_length(&self, what: &str, block: usize) -> Result<()> {
        if self.is_empty() {
            return Err(Error::argument(what, "has no document", "give a text with more lines, or --validation-text"));
        }
        if !self.has_documents() && self.whole_blocks(block) == 0 {
            let problem = format!("has {} tokens, fewer than a block and one more ({})", self.tokens.len(), block + 1);
            return Err(Error::argument(what, problem, "give a longer --text or a smaller --block-size"));
        }
        Ok(())
    }

    /// How many documents have more than `length` tokens, and how many tokens go beyond.
    pub fn beyond(&self, length: usize) -> (usize, usize) {
        let beyond = (0..self.len()).map(|i| self.document(i).len().saturating_sub(length));
        beyond.filter(|&n| n > 0).fold((0, 0), |(documents, tokens), n| (documents + 1, tokens + n))
    }

    /// Where random blocks of a stream may start: at 0, stride, 2·stride … below.
    pub(super) fn starts(&self, block: usize) -> (usize, usize) {
        let Kind::Stream { stride, .. } = self.kind else { return (0, 1) };
        ((self.tokens.len() - 1 - block) / stride + 1, stride)
    }

    /// The block of a stream that starts there; it ends early where the stream does.
    pub fn block(&self, start: usize, length: usize) -> Window {
        let end = (start + length).min(self.tokens.len().saturating_sub(1)).max(start);
        Window { document: 0, inputs: start..end, counted: start }
    }

    /// A document's first `length` tokens and one to predict.
    pub fn head(&self, document: usize, length: usize) -> Window {
        let range = self.document(document);
        let end = (range.start + length).min(range.end.saturating_sub(1)).max(range.start);
        Window { document, inputs: range.start..end, counted: range.start }
    }

    /// What training is validated on: all whole blocks of a stream; the head of each document.
    pub fn validation(&self, length: usize) -> impl Iterator<Item = Window> + '_ {
        let rows = if self.has_documents() { self.len() } else { self.whole_blocks(length) };
        let row = move |i| if self.has_documents() { self.head(i, length) } else { self.block(i * length, length) };
        (0..rows).map(row)
    }

    /// Windows of at most `length` inputs that predict every token but the first of each document once. The next window
    /// starts `stride` later and counts what the one before has not seen: with a stride of `length`, windows lie side by
    /// side; with a smaller one each prediction but a document's first has at least `length − stride` tokens before it.
    pub fn windows(&self, length: usize, stride: usize) -> impl Iterator<Item = Window> + '_ {
        let of_document = move |document: usize| {
            let range = self.document(document);
            let predictions = range.len().saturating_sub(1);
            let windows = if predictions == 0 { 0 } else { 1 + predictions.saturating_sub(length).div_ceil(stride) };
            (0..windows).map(move |k| {
                let start = range.start + k * stride;
                let end = (start + length).min(range.end - 1);
                let counted = if k == 0 { start } else { start - stride + length };
                Window { document, inputs: start..end, counted }
            })
        };
        (0..self.len()).flat_map(of_document)
    }

    /// Appends a window to a batch, filled up to `length` with padding, whose targets are [`IGNORE`].
    pub fn append(&self, window: &Window, length: usize, batch: &mut Batch) {
        let Window { inputs, counted, .. } = window;
        let counts = |i: usize| match self.kind {
            Kind::Stream { stride, counts } => counts(i % stride),
            Kind::Documents { .. } => true,
        };
        let padding = length - inputs.len();
        let target = |i: usize| if i >= *counted && counts(i + 1) { self.tokens.get(i + 1) } else { IGNORE };
        batch.tokens.extend(inputs.clone().map(|i| self.tokens.get(i)));
        batch.targets.extend(inputs.clone().map(target));
        batch.tokens.extend(std::iter::repeat_n(self.padding, padding));
        batch.targets.extend(std::iter::repeat_n(IGNORE, padding));
        batch.lengths.push(inputs.len() as i32);
    }

    /// Appends a row of nothing but padding.
    pub fn append_nothing(&self, length: usize, batch: &mut Batch) {
        self.append(&Window { document: 0, inputs: 0..0, counted: 0 }, length, batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(lengths: &[usize]) -> Corpus {
        let ends: Vec<u64> = lengths.iter().scan(0, |end, &n| (*end += n as u64, Some(*end)).1).collect();
        Corpus::documents((0..lengths.iter().sum::<usize>() as i32).collect::<Vec<_>>(), Ends::Memory(ends))
    }

    #[test]
    fn the_last_tenth_is_for_validation() {
        let (train, validation) = Corpus::text((0..115).collect::<Vec<_>>()).split();
        assert_eq!((train.tokens().len(), validation.tokens().len()), (103, 12));
        assert_eq!(validation.tokens().get(0), 103);
        let (train, validation) = documents(&[2; 15]).split();
        assert_eq!((train.len(), validation.len()), (13, 2));
        assert_eq!((train.document(12), validation.document(1)), (24..26, 28..30));
    }

    #[test]
    fn windows_cover_every_prediction_once() {
        let corpus = Corpus::text((0..11).collect::<Vec<_>>());
        let mut batch = Batch::default();
        corpus.windows(4, 4).for_each(|w| corpus.append(&w, 4, &mut batch));
        corpus.append_nothing(4, &mut batch);
        assert_eq!(batch.lengths, [4, 4, 2, 0]);
        assert_eq!(batch.tokens[..12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0]);
        assert_eq!(batch.targets[..12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, IGNORE, IGNORE]);
        assert_eq!(corpus.validation(4).count(), 2);
        for (lengths, length, stride) in [(vec![11], 4, 3), (vec![5, 1, 2, 9, 4], 4, 1), (vec![30, 3], 7, 5)] {
            let corpus = documents(&lengths);
            let mut batch = Batch::default();
            corpus.windows(length, stride).for_each(|w| corpus.append(&w, length, &mut batch));
            let mut targets: Vec<i32> = batch.targets.iter().copied().filter(|&t| t != IGNORE).collect();
            targets.sort();
            let firsts: Vec<i32> = (0..corpus.len()).map(|d| corpus.document(d).start as i32).collect();
            let all = 0..corpus.tokens().len() as i32;
            assert_eq!(targets, all.filter(|t| !firsts.contains(t)).collect::<Vec<_>>(), "{lengths:?}");
        }
    }

    #[test]
    fn a_sliding_window_counts_what_is_new() {
        let corpus = Corpus::text((0..8).collect::<Vec<_>>());
        let windows: Vec<Window> = corpus.windows(4, 2).collect();
        assert_eq!(windows[1], Window { document: 0, inputs: 2..6, counted: 4 });
        let mut batch = Batch::default();
        corpus.append(&windows[1], 4, &mut batch);
        assert_eq!(batch.targets, [IGNORE, IGNORE, 5, 6]);
        assert_eq!(windows.len(), 3);
    }

    #[test]
    fn heads_of_documents_are_cut_and_filled_up() {
        let corpus = documents(&[2, 5, 3]).padded_with(77);
        let mut batch = Batch::default();
        corpus.validation(3).for_each(|w| corpus.append(&w, 3, &mut batch));
        assert_eq!(batch.tokens, [0, 77, 77, 2, 3, 4, 7, 8, 77]);
        assert_eq!(batch.targets, [1, IGNORE, IGNORE, 3, 4, 5, 8, 9, IGNORE]);
        assert_eq!(batch.lengths, [1, 3, 2]);
        assert_eq!((corpus.beyond(4), corpus.beyond(2)), ((1, 1), (2, 4)));
        let windows: Vec<Window> = corpus.limited(3).windows(9, 9).collect();
        assert_eq!(windows[1], Window { document: 1, inputs: 2..4, counted: 2 });
    }
}
