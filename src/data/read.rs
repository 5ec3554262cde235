//! From a text to tokens: pieces are encoded on all cores and come out in their order.

use super::tokenizer::{Specials, Tokenizer};
use super::{Corpus, Documents, Ends, Format, Piece, Text};
use crate::error::Result;
use rayon::prelude::*;

/// Bytes of text that are encoded at a time, on all cores.
const GROUP: usize = 1 << 21;
/// Documents that are, where they are short.
const PIECES: usize = 1 << 14;

/// What a text turned out to hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Found {
    /// Documents; 1 for a stream.
    pub documents: u64,
    /// Tokens.
    pub tokens: u64,
    /// Of these, the ones that stand for something unknown.
    pub unknown: u64,
    /// Documents left out because they hold nothing but white space.
    pub empty: u64,
    /// Documents left out because they have a single token, after which there is nothing to predict.
    pub single: u64,
}

impl Found {
    /// What a user should hear of it: what was left out, and what is unknown.
    pub fn remarks(&self, tokenizer: &Tokenizer) -> Vec<String> {
        let mut remarks = Vec::new();
        for (count, kind) in [(self.empty, "empty documents"), (self.single, "documents of a single token")] {
            if count > 0 {
                remarks.push(format!("left out: {count} {kind}"));
            }
        }
        if self.unknown > 0 {
            let share = 100.0 * self.unknown as f64 / self.tokens as f64;
            let (unknown, all, unit) = (self.unknown, self.tokens, tokenizer.unit());
            remarks.push(format!("{unknown} of {all} {unit} unknown ({share:.1} %)"));
        }
        remarks
    }
}

/// Encodes a text, document by document or, where it is a stream, piece by piece, into `sink`; documents are wrapped in
/// the tokenizer's start and stop. `progress` hears of every share of the text's bytes.
///
/// # Errors
/// If the text cannot be read or encoded, or the sink fails.
pub fn encode(
    text: &Text,
    format: &Format,
    tokenizer: &Tokenizer,
    mut sink: impl FnMut(&[i32]) -> Result<()>,
    mut progress: impl FnMut(u64),
) -> Result<Found> {
    let source = text.name();
    let stream = format.documents == Documents::Stream;
    let Specials { start, stop, unknown, .. } = tokenizer.specials();
    let encoded = |piece: &Piece| -> Result<Vec<i32>> {
        if stream {
            let mut tokens = Vec::new();
            tokenizer.encode_at(&piece.text, &source, piece.place, &mut tokens)?;
            return Ok(tokens);
        }
        if piece.text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let mut tokens = Vec::from_iter(start);
        tokenizer.encode_at(&piece.text, &source, piece.place, &mut tokens)?;
        tokens.extend(stop);
        Ok(tokens)
    };
    let mut found = Found { documents: stream as u64, ..Default::default() };
    let mut pieces = text.pieces(format)?;
    loop {
        let (mut group, mut bytes) = (Vec::new(), 0);
        while bytes < GROUP && group.len() < PIECES {
            let Some(piece) = pieces.next().transpose()? else { break };
            bytes += piece.text.len() + !stream as usize;
            group.push(piece);
        }
        if group.is_empty() {
            return Ok(found);
        }
        let encoded: Vec<Result<Vec<i32>>> = group.par_iter().map(encoded).collect();
        for tokens in encoded {
            let tokens = tokens?;
            match tokens.len() {
                _ if stream => {}
                0 => found.empty += 1,
                1 => found.single += 1,
                _ => found.documents += 1,
            }
            if stream || tokens.len() > 1 {
                found.tokens += tokens.len() as u64;
                found.unknown += tokens.iter().filter(|&&t| Some(t) == unknown).count() as u64;
                sink(&tokens)?;
            }
        }
        progress(bytes as u64);
    }
}

/// Encodes a text into a corpus in memory.
///
/// # Errors
/// If the text cannot be read, or holds what the tokenizer does not know.
pub fn read(text: &Text, format: &Format, tokenizer: &Tokenizer, progress: impl FnMut(u64)) -> Result<(Corpus, Found)> {
    let (mut all, mut ends) = (Vec::new(), Vec::new());
    let sink = |tokens: &[i32]| {
        all.extend_from_slice(tokens);
        ends.push(all.len() as u64);
        Ok(())
    };
    let found = encode(text, format, tokenizer, sink, progress)?;
    let corpus = match format.documents {
        Documents::Stream => Corpus::text(all),
        Documents::Lines => Corpus::documents(all, Ends::Memory(ends)),
    };
    Ok((corpus.padded_with(tokenizer.specials().padding.unwrap_or(0)), found))
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::Choice;
    use super::*;

    fn tokenizer(choice: Choice, text: &str) -> Tokenizer {
        Tokenizer::new(&choice, 1, 300, "text", [Ok(text.to_string())].into_iter()).unwrap()
    }

    #[test]
    fn documents_are_wrapped_and_nothing_is_dropped_in_silence() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.txt");
        std::fs::write(&path, "a b\n\n  \nb new\nc").unwrap();
        let text = Text::open(&path).unwrap();
        let format = Format { documents: Documents::Lines, text_column: None };
        let words = tokenizer(Choice::Words, "a b c a b a");
        let (corpus, found) = read(&text, &format, &words, |_| ()).unwrap();
        // <START> a b <STOP>, <START> b <UNK> <STOP>, <START> c <STOP>
        assert_eq!(corpus.tokens().iter().collect::<Vec<_>>(), [0, 4, 5, 1, 0, 5, 2, 1, 0, 6, 1]);
        assert_eq!((corpus.len(), corpus.document(1)), (3, 4..8));
        assert_eq!(found, Found { documents: 3, tokens: 11, unknown: 1, empty: 2, single: 0 });
        let remarks = found.remarks(&words).join("; ");
        assert_eq!(remarks, "left out: 2 empty documents; 1 of 11 words unknown (9.1 %)");
        let mut batch = super::super::Batch::default();
        corpus.append(&corpus.head(2, 4), 4, &mut batch);
        assert_eq!(batch.tokens, [0, 6, 3, 3], "filled up with <PAD>");

        // Characters have neither start nor stop, and so "c" leaves nothing to predict.
        let characters = tokenizer(Choice::Characters, "a bcnew\n");
        let (corpus, found) = read(&text, &format, &characters, |_| ()).unwrap();
        assert_eq!((corpus.len(), found.single, found.unknown), (2, 1, 0));
    }

    /// Cut into many pieces, a stream has the tokens of the whole.
    #[test]
    fn a_stream_is_encoded_as_a_whole() {
        let whole: String = (0..150_000).map(|i| ["low ", "lower", "'s\n\n", "  new", ",\n"][i * i % 11 % 5]).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.txt");
        std::fs::write(&path, &whole).unwrap();
        let text = Text::open(&path).unwrap();
        assert!(text.pieces(&Format::default()).unwrap().count() > 1);
        for choice in [Choice::Characters, Choice::Words, Choice::Bpe] {
            let tokenizer = tokenizer(choice, &whole[..10_000]);
            let mut seen = 0;
            let (corpus, found) = read(&text, &Format::default(), &tokenizer, |bytes| seen += bytes).unwrap();
            assert_eq!((seen, found.tokens), (text.bytes(), corpus.tokens().len() as u64));
            assert!(corpus.tokens().iter().eq(tokenizer.encode(&whole, "text").unwrap()), "{}", tokenizer.unit());
        }
    }
}
