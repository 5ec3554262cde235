//! Text as words between white space. Words that are rare in the text that the vocabulary was made from are unknown.

use super::is_plain;
use serde_json::{Value, json};
use std::collections::HashMap;

/// The tokens that stand for no word, with the first numbers, in this order.
pub const SPECIALS: [&str; 4] = ["<START>", "<STOP>", "<UNK>", "<PAD>"];
const UNKNOWN: i32 = 2;

/// Numbers for words: the special tokens, then words by falling count, equal counts in alphabetical order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    words: Vec<String>,
    ids: HashMap<String, i32>,
}

/// How often each word occurs.
#[derive(Debug, Clone, Default)]
pub struct Counts(HashMap<String, u64>);

impl Counts {
    /// Counts the words of a text.
    pub fn add(&mut self, text: &str) {
        for word in text.split_whitespace() {
            // Most words are known: no string is made for them.
            match self.0.get_mut(word) {
                Some(count) => *count += 1,
                None => drop(self.0.insert(word.into(), 1)),
            }
        }
    }

    /// The words that occur at least `minimum` times.
    pub fn words(self, minimum: u64) -> Words {
        let mut counted: Vec<(String, u64)> = self.0.into_iter().filter(|(_, n)| *n >= minimum).collect();
        counted.sort_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
        let words = counted.into_iter().map(|(word, _)| word).filter(|w| !SPECIALS.contains(&w.as_str()));
        Words::from_list(SPECIALS.map(String::from).into_iter().chain(words).collect())
    }
}

impl Words {
    fn from_list(words: Vec<String>) -> Words {
        let ids = words.iter().enumerate().map(|(i, w)| (w.clone(), i as i32)).collect();
        Words { words, ids }
    }

    /// How many it has, special tokens included.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The number of a word or special token.
    pub fn id(&self, word: &str) -> Option<i32> {
        self.ids.get(word).copied()
    }

    /// Appends the tokens of a text.
    pub fn encode(&self, text: &str, tokens: &mut Vec<i32>) {
        tokens.extend(text.split_whitespace().map(|w| self.ids.get(w).copied().unwrap_or(UNKNOWN)));
    }

    /// The words of tokens, with a space between; those that are none of its numbers become `<UNK>`.
    pub fn decode(&self, tokens: &[i32]) -> String {
        let word = |&t: &i32| self.words.get(t as usize).map_or(SPECIALS[UNKNOWN as usize], String::as_str);
        tokens.iter().map(word).collect::<Vec<&str>>().join(" ")
    }

    /// What `tokenizer.json` holds.
    pub fn to_json(&self) -> Value {
        let vocab: serde_json::Map<String, Value> = self.ids.iter().map(|(w, &i)| (w.clone(), i.into())).collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": { "type": "WhitespaceSplit" },
            "post_processor": null,
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": SPECIALS[UNKNOWN as usize] },
        })
    }

    /// The words of such a file; none where it is another kind of tokenizer, which the library may know.
    pub fn from_json(json: &Value) -> Option<Words> {
        let model = &json["model"];
        let splits = json["pre_tokenizer"]["type"] == "WhitespaceSplit" && json["decoder"].is_null();
        if !(is_plain(json) && splits && model["type"] == "WordLevel") {
            return None;
        }
        let vocab = model["vocab"].as_object()?;
        let mut words = vec![None; vocab.len()];
        for (word, id) in vocab {
            match words.get_mut(id.as_u64()? as usize)? {
                place @ None => *place = Some(word.clone()),
                Some(_) => return None,
            }
        }
        let words: Vec<String> = words.into_iter().flatten().collect();
        let same = SPECIALS.iter().zip(&words).all(|(s, w)| s == w) && words.len() >= SPECIALS.len();
        same.then(|| Words::from_list(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str, minimum: u64) -> Words {
        let mut counts = Counts::default();
        counts.add(text);
        counts.words(minimum)
    }

    #[test]
    fn rare_words_are_unknown() {
        let words = words("b a\tb\nc  a <PAD> b d <PAD>", 2);
        assert_eq!(words.len(), 6);
        let mut tokens = Vec::new();
        words.encode(" a b\u{a0}c <STOP>", &mut tokens);
        assert_eq!(tokens, [5, 4, 2, 1]);
        assert_eq!(words.decode(&tokens), "a b <UNK> <STOP>");
    }

    #[test]
    fn survives_its_file() {
        let words = words("to be or not to be \"é\" \\", 1);
        assert_eq!(Words::from_json(&words.to_json()).unwrap(), words);
        let mut other = words.to_json();
        other["normalizer"] = json!({ "type": "Lowercase" });
        assert!(Words::from_json(&other).is_none());
    }
}
