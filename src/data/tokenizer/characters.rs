//! Text as characters. The vocabulary is the sorted characters that occur; its file is a word-level model whose words
//! are single characters.

use super::{Place, is_plain};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Numbers for characters: the n-th character of the vocabulary is token n.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Characters {
    characters: Vec<char>,
    /// By code point, as far as they are needed; −1: unknown.
    ids: Vec<i32>,
}

/// Which characters have occurred, by code point.
#[derive(Debug, Clone, Default)]
pub struct Seen(Vec<bool>);

impl Seen {
    /// Those of a text.
    pub fn add(&mut self, text: &str) {
        for c in text.chars() {
            if c as usize >= self.0.len() {
                self.0.resize(c as usize + 1, false);
            }
            self.0[c as usize] = true;
        }
    }

    /// All so far, sorted by code point.
    pub fn characters(&self) -> Characters {
        let seen = (0u32..).zip(&self.0).filter(|(_, seen)| **seen);
        Characters::from_list(seen.filter_map(|(code, _)| char::from_u32(code)).collect())
    }
}

impl Characters {
    /// The characters of a text, sorted by code point.
    pub fn of(text: &str) -> Characters {
        let mut seen = Seen::default();
        seen.add(text);
        seen.characters()
    }

    fn from_list(characters: Vec<char>) -> Characters {
        let mut ids = vec![-1; characters.iter().max().map_or(0, |&c| c as usize + 1)];
        characters.iter().enumerate().for_each(|(i, &c)| ids[c as usize] = i as i32);
        Characters { characters, ids }
    }

    /// How many characters it has.
    pub fn len(&self) -> usize {
        self.characters.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.characters.is_empty()
    }

    /// Appends the tokens of a text that stands at `place` of `source`.
    ///
    /// # Errors
    /// At the first character outside the vocabulary, with its position.
    pub fn encode(&self, text: &str, source: &str, place: Place, tokens: &mut Vec<i32>) -> Result<()> {
        tokens.reserve(text.len());
        for (i, c) in text.chars().enumerate() {
            let Some(&id) = self.ids.get(c as usize).filter(|&&id| id >= 0) else {
                let known = self.len();
                let remedy = format!("use only the {known} characters that the model was trained on");
                return Err(place.after(text, i).error(source, &format!("character {c:?}"), remedy));
            };
            tokens.push(id);
        }
        Ok(())
    }

    /// The text of tokens; those that are none of its numbers become U+FFFD.
    pub fn decode(&self, tokens: &[i32]) -> String {
        let character = |&t: &i32| self.characters.get(t as usize).copied().unwrap_or(char::REPLACEMENT_CHARACTER);
        tokens.iter().map(character).collect()
    }

    /// What `tokenizer.json` holds.
    pub fn to_json(&self) -> Value {
        let vocab: BTreeMap<String, i32> = (0..).zip(&self.characters).map(|(i, c)| (c.to_string(), i)).collect();
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

    /// The characters of such a file; none where it is another kind of tokenizer.
    pub fn from_json(json: &Value) -> Option<Result<Characters, String>> {
        let model = &json["model"];
        let split = &json["pre_tokenizer"];
        let isolates = split["type"] == "Split" && split["pattern"]["Regex"] == "[\\s\\S]";
        let vocab = model["vocab"].as_object()?;
        if !(is_plain(json) && model["type"] == "WordLevel" && isolates) {
            return None;
        }
        let mut characters = vec![None; vocab.len()];
        for (word, id) in vocab {
            let mut letters = word.chars();
            let (Some(c), None) = (letters.next(), letters.next()) else {
                return Some(Err(format!("word {word:?} is no single character")));
            };
            match id.as_u64().and_then(|i| characters.get_mut(i as usize)) {
                Some(place @ None) => *place = Some(c),
                _ => return Some(Err(format!("{word:?} has the number {id}, but numbers must be 0, 1, 2, …"))),
            }
        }
        // Every place is filled: as many different numbers as places were given.
        Some(Ok(Self::from_list(characters.into_iter().flatten().collect())))
    }
}

/// An error for what no tokenizer can be made from.
pub(super) fn nothing_known(source: &str) -> Error {
    Error::argument(source, "holds no character", "give a text with at least two characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_by_code_point_and_back() {
        let characters = Characters::of("hé\nllo");
        let mut tokens = vec![9];
        characters.encode("olé\n", "text", Place::START, &mut tokens).unwrap();
        assert_eq!(tokens, [9, 3, 2, 4, 0]);
        assert_eq!(characters.decode(&tokens[1..]), "olé\n");
    }

    #[test]
    fn an_unknown_character_is_named_with_its_place() {
        let characters = Characters::of("ab\n");
        let place = Place { position: 10, line: 5 };
        let error = characters.encode("a\néb", "--prompt", place, &mut vec![]).unwrap_err().to_string();
        assert!(error.contains("--prompt: character 'é' at position 12 (line 6)"), "{error}");
    }

    #[test]
    fn survives_its_file() {
        let characters = Characters::of("\"\\ \n\u{1f600}az");
        let json = characters.to_json();
        assert_eq!(Characters::from_json(&json).unwrap().unwrap(), characters);
        let mut twice = json.clone();
        twice["model"]["vocab"] = json!({ "a": 0, "b": 0 });
        assert!(Characters::from_json(&twice).unwrap().unwrap_err().contains("numbers must be"));
        twice["model"]["type"] = "BPE".into();
        assert!(Characters::from_json(&twice).is_none());
    }
}
