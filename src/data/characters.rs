//! Text as characters. The vocabulary is the sorted characters that occur; it is stored as a `tokenizer.json` that
//! Hugging Face's `tokenizers` loads: a word-level model whose words are single characters.

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Numbers for characters: the n-th character of the vocabulary is token n.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    characters: Vec<char>,
    ids: HashMap<char, i32>,
}

/// A text file, as it is: nothing is stripped, added or translated.
///
/// # Errors
/// If it cannot be read, is empty, or is not UTF-8 (with the position of the first bad byte).
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path)
        .map_err(|e| Error::file(path, format!("cannot be read: {e}"), "give a text file that exists"))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::file(path, format!("is not UTF-8 at byte {at}"), "convert it, for example with `iconv -t UTF-8`")
    })?;
    if text.is_empty() {
        return Err(Error::file(path, "is empty", "give a text with at least two characters"));
    }
    Ok(text)
}

impl Vocabulary {
    /// The characters of a text, sorted by code point.
    pub fn of(text: &str) -> Vocabulary {
        Self::from_sorted(text.chars().collect::<BTreeSet<char>>().into_iter().collect())
    }

    fn from_sorted(characters: Vec<char>) -> Vocabulary {
        let ids = characters.iter().enumerate().map(|(i, &c)| (c, i as i32)).collect();
        Vocabulary { characters, ids }
    }

    /// How many characters it has.
    pub fn len(&self) -> usize {
        self.characters.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.characters.is_empty()
    }

    /// Tokens of a text that came from `source`.
    ///
    /// # Errors
    /// At the first character outside the vocabulary, with its position.
    pub fn encode(&self, text: &str, source: &str) -> Result<Vec<i32>> {
        let mut tokens = Vec::with_capacity(text.len());
        let mut line = 1;
        for (position, c) in text.chars().enumerate() {
            let Some(&id) = self.ids.get(&c) else {
                let problem = format!("character {c:?} at position {position} (line {line}) is not in the vocabulary");
                let remedy = format!("use only the {} characters that the model was trained on", self.len());
                return Err(Error::argument(source, problem, remedy));
            };
            line += (c == '\n') as usize;
            tokens.push(id);
        }
        Ok(tokens)
    }

    /// The text of tokens.
    ///
    /// # Panics
    /// If a token is not below [`Vocabulary::len`].
    pub fn decode(&self, tokens: &[i32]) -> String {
        tokens.iter().map(|&t| self.characters[t as usize]).collect()
    }

    /// What `tokenizer.json` holds.
    pub fn to_tokenizer(&self) -> Value {
        let vocab: BTreeMap<String, i32> = self.ids.iter().map(|(c, &i)| (c.to_string(), i)).collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": {
                "type": "Split", "pattern": { "Regex": "[\\s\\S]" }, "behavior": "Isolated", "invert": false
            },
            "post_processor": null,
            "decoder": { "type": "Fuse" },
            // No such token exists, so that an unknown character is an error there too.
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
        })
    }

    /// The vocabulary of a `tokenizer.json` whose words are single characters.
    ///
    /// # Errors
    /// If the file cannot be read, or describes another kind of tokenizer.
    pub fn from_tokenizer(path: &Path) -> Result<Vocabulary> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::file(path, format!("cannot be read: {e}"), "give a directory that `attn train lm` wrote")
        })?;
        let parsed: Value = serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("is not JSON: {e}"), "restore it, or train again"))?;
        let unlike = |problem: String| Error::file(path, problem, "give a tokenizer of single characters");
        let model = &parsed["model"];
        let Some(vocab) = model["vocab"].as_object().filter(|_| model["type"] == "WordLevel") else {
            return Err(unlike("is no word-level tokenizer".into()));
        };
        let mut characters = vec![None; vocab.len()];
        for (word, id) in vocab {
            let mut letters = word.chars();
            let (Some(c), None) = (letters.next(), letters.next()) else {
                return Err(unlike(format!("word {word:?} is no single character")));
            };
            match id.as_u64().and_then(|i| characters.get_mut(i as usize)) {
                Some(place @ None) => *place = Some(c),
                _ => return Err(unlike(format!("{word:?} has the number {id}, but numbers must be 0, 1, 2, …"))),
            }
        }
        // Every place is filled: as many different numbers as places were given.
        Ok(Self::from_sorted(characters.into_iter().flatten().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_by_code_point_and_back() {
        let vocabulary = Vocabulary::of("hé\nllo");
        let tokens = vocabulary.encode("olé\n", "text").unwrap();
        assert_eq!(tokens, [3, 2, 4, 0]);
        assert_eq!(vocabulary.decode(&tokens), "olé\n");
    }

    #[test]
    fn an_unknown_character_is_named_with_its_place() {
        let error = Vocabulary::of("ab\n").encode("a\néb", "--prompt").unwrap_err().to_string();
        assert!(error.contains("--prompt: character 'é' at position 2 (line 2)"), "{error}");
    }

    #[test]
    fn survives_its_tokenizer_file() {
        let path = tempfile::tempdir().unwrap();
        let path = path.path().join("tokenizer.json");
        let vocabulary = Vocabulary::of("\"\\ \n\u{1f600}az");
        std::fs::write(&path, vocabulary.to_tokenizer().to_string()).unwrap();
        assert_eq!(Vocabulary::from_tokenizer(&path).unwrap(), vocabulary);
        std::fs::write(&path, r#"{"model":{"type":"WordLevel","vocab":{"a":0,"b":0}}}"#).unwrap();
        assert!(Vocabulary::from_tokenizer(&path).unwrap_err().to_string().contains("numbers must be"));
        std::fs::write(&path, r#"{"model":{"type":"BPE","vocab":{"a":0}}}"#).unwrap();
        assert!(Vocabulary::from_tokenizer(&path).is_err());
    }

    #[test]
    fn bad_texts_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.txt");
        assert!(read_text(&path).unwrap_err().to_string().contains("t.txt: cannot be read"));
        std::fs::write(&path, b"ab\xff").unwrap();
        assert!(read_text(&path).unwrap_err().to_string().contains("not UTF-8 at byte 2"));
        std::fs::write(&path, b"").unwrap();
        assert!(read_text(&path).unwrap_err().to_string().contains("is empty"));
    }
}
