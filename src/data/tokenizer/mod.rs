//! Tokenizers: text to numbers and back. Whatever the kind, its file is a `tokenizer.json` that Hugging Face's
//! `tokenizers` loads and encodes alike with.
//!
//! Characters and words are encoded here, some hundred megabytes a second; every other kind by the crate `tokenizers`.

mod characters;
mod library;
mod words;

pub use characters::Characters;
pub use library::{END_OF_TEXT, Library};
pub use words::{Counts, Words};

use crate::error::{Error, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a piece of text stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Characters before it.
    pub position: u64,
    /// Its line, from 1.
    pub line: u64,
}

impl Place {
    /// The beginning of a file.
    pub const START: Place = Place { position: 0, line: 1 };

    /// The place so many characters into a text that stands here.
    pub fn after(self, text: &str, characters: usize) -> Place {
        let lines = text.chars().take(characters).filter(|&c| c == '\n').count() as u64;
        Place { position: self.position + characters as u64, line: self.line + lines }
    }

    fn error(self, source: &str, what: &str, remedy: String) -> Error {
        let Place { position, line } = self;
        let problem = format!("{what} at position {position} (line {line}) is not in the vocabulary");
        Error::argument(source, problem, remedy)
    }
}

/// Which tokenizer a run learns or takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The text's characters.
    Characters,
    /// The text's words between white space.
    Words,
    /// A byte-level BPE learned from the text.
    Bpe,
    /// A `tokenizer.json`, or a directory that holds one, or GPT-2's `vocab.json` and `merges.txt`.
    At(PathBuf),
}

impl FromStr for Choice {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "characters" => Choice::Characters,
            "words" => Choice::Words,
            "bpe" => Choice::Bpe,
            path => Choice::At(path.into()),
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Choice::Characters => f.write_str("characters"),
            Choice::Words => f.write_str("words"),
            Choice::Bpe => f.write_str("bpe"),
            Choice::At(path) => write!(f, "{}", path.display()),
        }
    }
}

impl serde::Serialize for Choice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Choice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text: String = serde::Deserialize::deserialize(deserializer)?;
        Ok(text.parse().unwrap_or_else(|never: std::convert::Infallible| match never {}))
    }
}

/// Tokens with a meaning of their own, as far as a tokenizer has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Specials {
    /// What a document begins with.
    pub start: Option<i32>,
    /// What it ends with.
    pub stop: Option<i32>,
    /// What stands for the unknown.
    pub unknown: Option<i32>,
    /// What fills rows up.
    pub padding: Option<i32>,
}

/// Names under which tokenizers have a start, a stop and padding; the first that exists counts. GPT-2 has one token for
/// the start and the stop.
const STARTS: [&str; 4] = ["<START>", "<s>", "<bos>", END_OF_TEXT];
const STOPS: [&str; 4] = ["<STOP>", "</s>", "<eos>", END_OF_TEXT];
const PADDINGS: [&str; 3] = ["<PAD>", "<pad>", "[PAD]"];

/// Any tokenizer.
#[derive(Debug, Clone)]
pub enum Tokenizer {
    /// Characters.
    Characters(Characters),
    /// Words between white space.
    Words(Words),
    /// Any other kind.
    Library(Library),
}

/// Whether a `tokenizer.json` does no more than split and look up.
fn is_plain(json: &Value) -> bool {
    let no_tokens = json["added_tokens"].as_array().is_none_or(Vec::is_empty);
    no_tokens && json["normalizer"].is_null() && json["post_processor"].is_null()
}

impl Tokenizer {
    /// Learns a tokenizer from texts, or reads the one that `choice` names. Words that occur fewer than `min_count`
    /// times are unknown; a BPE gets `vocab_size` tokens.
    ///
    /// # Errors
    /// If a text or file cannot be read, or there is nothing to learn from.
    pub fn new(
        choice: &Choice,
        min_count: u64,
        vocab_size: usize,
        source: &str,
        texts: impl Iterator<Item = Result<String>> + Send,
    ) -> Result<Tokenizer> {
        match choice {
            Choice::Characters => {
                let mut seen = characters::Seen::default();
                for text in texts {
                    seen.add(&text?);
                }
                let characters = seen.characters();
                if characters.is_empty() {
                    return Err(characters::nothing_known(source));
                }
                Ok(Tokenizer::Characters(characters))
            }
            Choice::Words => {
                let mut counts = Counts::default();
                for text in texts {
                    counts.add(&text?);
                }
                let words = counts.words(min_count);
                if words.len() == words::SPECIALS.len() {
                    let problem = format!("no word of {source} occurs so often");
                    return Err(Error::argument(format!("--min-count {min_count}"), problem, "give a smaller number"));
                }
                Ok(Tokenizer::Words(words))
            }
            Choice::Bpe => Library::train(vocab_size, texts).map(Tokenizer::Library),
            Choice::At(path) => Tokenizer::at(path),
        }
    }

    /// Reads a `tokenizer.json`, or a directory that holds one, or `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// If there is none, or it cannot be understood.
    pub fn at(path: &Path) -> Result<Tokenizer> {
        if !path.exists() {
            let remedy = "give characters, words, bpe, a tokenizer.json, or a directory with tokenizer files";
            return Err(Error::file(path, "does not exist", remedy));
        }
        let inside = path.join("tokenizer.json");
        match (path.is_dir(), inside.exists()) {
            (false, _) => Tokenizer::read(path),
            (true, true) => Tokenizer::read(&inside),
            (true, false) => Library::from_gpt2(path).map(Tokenizer::Library),
        }
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// If the file cannot be read or understood.
    pub fn read(path: &Path) -> Result<Tokenizer> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::file(path, format!("cannot be read: {e}"), "give a directory that `attn train lm` wrote")
        })?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("is not JSON: {e}"), "restore it, or train again"))?;
        let unlike = |problem| Error::file(path, problem, "give a tokenizer.json of Hugging Face's `tokenizers`");
        if let Some(characters) = Characters::from_json(&json) {
            return characters.map(Tokenizer::Characters).map_err(unlike);
        }
        if let Some(words) = Words::from_json(&json) {
            return Ok(Tokenizer::Words(words));
        }
        let library = Library::from_json(&json).map_err(|e| unlike(format!("is no tokenizer: {e}")))?;
        Ok(Tokenizer::Library(library))
    }

    /// How many different tokens there are: one more than the largest number.
    pub fn len(&self) -> usize {
        match self {
            Tokenizer::Characters(t) => t.len(),
            Tokenizer::Words(t) => t.len(),
            Tokenizer::Library(t) => t.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What its tokens are, for messages: characters, words or tokens.
    pub fn unit(&self) -> &'static str {
        match self {
            Tokenizer::Characters(_) => "characters",
            Tokenizer::Words(_) => "words",
            Tokenizer::Library(_) => "tokens",
        }
    }

    fn id(&self, token: &str) -> Option<i32> {
        match self {
            Tokenizer::Characters(_) => None,
            Tokenizer::Words(t) => t.id(token),
            Tokenizer::Library(t) => t.id(token),
        }
    }

    /// Its tokens with a meaning of their own.
    pub fn specials(&self) -> Specials {
        let first = |names: &[&str]| names.iter().find_map(|name| self.id(name));
        let unknown = match self {
            Tokenizer::Characters(_) => None,
            Tokenizer::Words(t) => t.id("<UNK>"),
            Tokenizer::Library(t) => t.unknown(),
        };
        Specials { start: first(&STARTS), stop: first(&STOPS), unknown, padding: first(&PADDINGS) }
    }

    /// Tokens of a text that came from `source`, and no others.
    ///
    /// # Errors
    /// At the first part of it that is not in the vocabulary, with its position, where no token stands for the unknown.
    pub fn encode(&self, text: &str, source: &str) -> Result<Vec<i32>> {
        let mut tokens = Vec::new();
        self.encode_at(text, source, Place::START, &mut tokens)?;
        Ok(tokens)
    }

    /// Appends the tokens of a text that stands at `place` of `source`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_at(&self, text: &str, source: &str, place: Place, tokens: &mut Vec<i32>) -> Result<()> {
        match self {
            Tokenizer::Characters(t) => t.encode(text, source, place, tokens)?,
            Tokenizer::Words(t) => t.encode(text, tokens),
            Tokenizer::Library(t) => t.encode(text, source, place, tokens)?,
        }
        Ok(())
    }

    /// The text of tokens, special ones included. Words come with one space between, whatever stood there.
    pub fn decode(&self, tokens: &[i32]) -> String {
        match self {
            Tokenizer::Characters(t) => t.decode(tokens),
            Tokenizer::Words(t) => t.decode(tokens),
            Tokenizer::Library(t) => t.decode(tokens),
        }
    }

    /// Decodes tokens one after another, the first of which continue `tokens`.
    pub fn decoder(&self, tokens: &[i32]) -> Decoder<'_> {
        let tokens = tokens[tokens.len().saturating_sub(CONTEXT)..].to_vec();
        let shown = self.decode(&tokens).len();
        Decoder { tokenizer: self, tokens, shown }
    }

    /// What `tokenizer.json` holds.
    pub fn to_json(&self) -> Value {
        match self {
            Tokenizer::Characters(t) => t.to_json(),
            Tokenizer::Words(t) => t.to_json(),
            Tokenizer::Library(t) => t.to_json(),
        }
    }

    /// What `tokenizer_config.json` holds, for a model of this block size.
    pub fn to_config_json(&self, block: usize) -> Value {
        let mut json = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": block,
            "clean_up_tokenization_spaces": false,
        });
        let Specials { start, stop, unknown, padding } = self.specials();
        for (name, id) in [("bos_token", start), ("eos_token", stop), ("unk_token", unknown), ("pad_token", padding)] {
            if let Some(id) = id {
                json[name] = self.token(id).into();
            }
        }
        json
    }

    fn token(&self, id: i32) -> String {
        match self {
            Tokenizer::Library(t) => t.token(id),
            _ => self.decode(&[id]),
        }
    }

    /// A digest of all that decides its tokens.
    pub fn digest(&self) -> String {
        hex(&Sha256::digest(self.to_json().to_string()))
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl PartialEq for Tokenizer {
    /// Whether they encode alike, as far as their files say.
    fn eq(&self, other: &Tokenizer) -> bool {
        self.to_json() == other.to_json()
    }
}

/// How many tokens before the next one may decide how it looks.
const CONTEXT: usize = 8;

/// Text as its tokens come: a token's text may depend on those before it (a space between words), and a character may
/// need several tokens.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<i32>,
    /// Bytes of their text that have been given out.
    shown: usize,
}

impl Decoder<'_> {
    /// The text that a token adds; empty while it ends within a character.
    pub fn push(&mut self, token: i32) -> String {
        self.tokens.push(token);
        let text = self.tokenizer.decode(&self.tokens);
        if text.ends_with(char::REPLACEMENT_CHARACTER) && self.tokens.len() < 2 * CONTEXT {
            return String::new();
        }
        let new = text.get(self.shown..).unwrap_or_default().to_string();
        self.tokens.drain(..self.tokens.len().saturating_sub(CONTEXT));
        self.shown = self.tokenizer.decode(&self.tokens).len();
        new
    }

    /// What is left at the end: U+FFFD where a character is incomplete.
    pub fn finish(self) -> String {
        let text = self.tokenizer.decode(&self.tokens);
        text.get(self.shown..).unwrap_or_default().to_string()
    }
}

#[cfg(test)]
mod tests;
