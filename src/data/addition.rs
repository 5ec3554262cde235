//! Two-digit addition, so that a machine without any text has something to learn.
//!
//! Each of the 10,000 problems is a line of ten characters, `12+34=640\n`: the sum's digits come in reverse, as they are
//! computed, which is what minGPT's adder does too. Lines are shuffled by a seed, and so the last tenth holds problems
//! that training never sees. Only the sum and the end of the line are to be predicted; the problem itself is random.

use super::Corpus;
use super::tokenizer::{Characters, Tokenizer};
use crate::philox::Philox;

/// Characters of a line, and so the best block size.
pub const LINE: usize = 10;
/// Where the sum starts in a line.
const SUM: usize = 6;
/// The stream of random numbers that shuffles.
const STREAM: u32 = 0x6164_6400;

/// The lines, and their characters.
pub fn corpus(seed: u64) -> (Corpus, Tokenizer) {
    let random = Philox::new(seed, STREAM, 0);
    let mut problems: Vec<usize> = (0..10_000).collect();
    for i in (1..problems.len()).rev() {
        problems.swap(i, ((random.word(i as u64) as u64 * (i as u64 + 1)) >> 32) as usize);
    }
    let text: String = problems.iter().map(|p| line(p / 100, p % 100)).collect();
    let tokenizer = Tokenizer::Characters(Characters::of(&text));
    let tokens = tokenizer.encode(&text, "addition").expect("the characters are the text's own");
    (Corpus::problems(tokens, LINE, |i| i >= SUM), tokenizer)
}

fn line(a: usize, b: usize) -> String {
    let sum = a + b;
    format!("{a:02}+{b:02}={}{}{}\n", sum % 10, sum / 10 % 10, sum / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Batch, IGNORE};

    #[test]
    fn only_sums_are_predicted() {
        assert_eq!(line(87, 46), "87+46=331\n");
        let (corpus, tokenizer) = corpus(1);
        assert_eq!((corpus.tokens().len(), tokenizer.len()), (10_000 * LINE, 13));
        let text = tokenizer.decode(&corpus.tokens().iter().collect::<Vec<_>>());
        let different: std::collections::BTreeSet<&str> = text.lines().collect();
        assert_eq!(different.len(), 10_000);
        let mut batch = Batch::default();
        corpus.append(&corpus.block(LINE, LINE), LINE, &mut batch);
        let Batch { tokens, targets, .. } = batch;
        assert_eq!(tokenizer.decode(&targets[5..9]), tokenizer.decode(&tokens[6..]));
        assert_eq!((&targets[..5], targets[9]), (&[IGNORE; 5][..], IGNORE));
    }
}
