//! Text as words: how it is split, and which row of a table belongs to which word.
//!
//! Splitting knows no vocabulary, and a vocabulary does not split, so that any goes with any. Lower case is made after
//! splitting, as rules for sentences look at capitals.

mod index;
mod treebank;

pub use index::{SpecialTokens, WordIndex, rows_of};
pub use treebank::{sentences, treebank_words};

use regex::Regex;
use std::sync::LazyLock;
use unicode_segmentation::UnicodeSegmentation;

/// How text becomes words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Splitter {
    /// Unicode words and punctuation: every piece between word boundaries (Unicode Standard Annex #29) that is no white
    /// space. `don't` and `3.14` are one word each, every mark of punctuation is one.
    #[default]
    Words,
    /// Runs of letters, digits and underscores, as `re.findall(r"\w+", text)` in Python; all else is left out.
    Regexp,
    /// Sentences, and each as the Penn Treebank writes words: `do n't`, `film 's`, a final full stop apart; as NLTK's
    /// `word_tokenize`, but for simpler sentences.
    Treebank,
    /// What stands between white space.
    Whitespace,
}

impl Splitter {
    /// The words of a text, in order.
    pub fn split(self, text: &str, lowercase: bool) -> Vec<String> {
        let mut words = Vec::new();
        self.each(text, lowercase, |word| words.push(word.to_string()));
        words
    }

    /// Hands out the words of a text, in order.
    pub fn each(self, text: &str, lowercase: bool, mut take: impl FnMut(&str)) {
        let mut lower = String::new();
        let mut give = |word: &str| {
            if !lowercase {
                take(word);
            } else if word.is_ascii() {
                lower.clear();
                lower.push_str(word);
                lower.make_ascii_lowercase();
                take(&lower);
            } else {
                take(&word.to_lowercase());
            }
        };
        match self {
            Splitter::Words => {
                text.split_word_bounds().filter(|w| !w.chars().all(char::is_whitespace)).for_each(&mut give);
            }
            Splitter::Regexp => {
                // What Python's `str.isalnum` is true of, and the underscore: unlike the crate's own `\w`, no marks.
                static WORD: LazyLock<Regex> =
                    LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]+").expect("a fixed expression"));
                WORD.find_iter(text).for_each(|found| give(found.as_str()));
            }
            Splitter::Treebank => {
                for sentence in sentences(text) {
                    treebank_words(sentence).split_whitespace().for_each(&mut give);
                }
            }
            Splitter::Whitespace => text.split_whitespace().for_each(&mut give),
        }
    }

    /// As the command line says it.
    pub fn name(self) -> &'static str {
        match self {
            Splitter::Words => "words",
            Splitter::Regexp => "regexp",
            Splitter::Treebank => "treebank",
            Splitter::Whitespace => "whitespace",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_splitter_splits_as_it_says() {
        let text = "Don't PAY $3.14 — \"naïve\"\tx_1!\n";
        for (splitter, expected) in [
            (Splitter::Words, vec!["Don't", "PAY", "$", "3.14", "—", "\"", "naïve", "\"", "x_1", "!"]),
            (Splitter::Regexp, vec!["Don", "t", "PAY", "3", "14", "naïve", "x_1"]),
            (Splitter::Treebank, vec!["Do", "n't", "PAY", "$", "3.14", "—", "``", "naïve", "''", "x_1", "!"]),
            (Splitter::Whitespace, vec!["Don't", "PAY", "$3.14", "—", "\"naïve\"", "x_1!"]),
        ] {
            assert_eq!(splitter.split(text, false), expected);
            assert_eq!(splitter.split(text, true), expected.iter().map(|w| w.to_lowercase()).collect::<Vec<_>>());
            assert_eq!(splitter.split(" \n", true), Vec::<String>::new());
            let name = clap::ValueEnum::to_possible_value(&splitter).unwrap();
            assert_eq!(name.get_name(), splitter.name());
        }
        assert_eq!(Splitter::Words.split("ΟΔΟΣ İ", true), ["οδος", "i\u{307}"]);
    }

    /// Expected: Python 3.11, `re.findall(r"\w+", text)`.
    #[test]
    fn regexp_words_are_pythons() {
        let text = "naïve ② ४२ ⅷ हिन्दी Ⓐb x_1 don't é e\u{301}t";
        let expected = ["naïve", "②", "४२", "ⅷ", "ह", "न", "द", "b", "x_1", "don", "t", "é", "e", "t"];
        assert_eq!(Splitter::Regexp.split(text, false), expected);
    }
}
