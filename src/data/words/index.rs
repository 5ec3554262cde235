//! Which row of a table of vectors belongs to which word.

use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Words that stand for none: for padding and for what is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SpecialTokens {
    /// What fills rows up, such as `<PAD>`.
    pub pad: Option<String>,
    /// What stands for unknown words, such as `<UNK>`.
    pub unk: Option<String>,
}

impl SpecialTokens {
    fn all(&self) -> impl Iterator<Item = &String> {
        [&self.pad, &self.unk].into_iter().flatten()
    }
}

/// Words by row and rows by word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WordIndex {
    words: Vec<String>,
    rows: HashMap<String, u32>,
    pad: Option<u32>,
    unk: Option<u32>,
}

impl WordIndex {
    /// Of a list in which no word comes twice.
    fn of(words: Vec<String>, special: &SpecialTokens) -> WordIndex {
        let rows: HashMap<String, u32> = words.iter().enumerate().map(|(i, w)| (w.clone(), i as u32)).collect();
        let row = |token: &Option<String>| token.as_ref().and_then(|t| rows.get(t).copied());
        WordIndex { pad: row(&special.pad), unk: row(&special.unk), words, rows }
    }

    /// The special tokens, then the words that occur at least `min_count` times, by falling count, equal counts in the
    /// order of their bytes.
    pub fn from_counts(counts: HashMap<String, u64>, min_count: u64, special: &SpecialTokens) -> WordIndex {
        let mut counted: Vec<(String, u64)> = counts.into_iter().filter(|(_, n)| *n >= min_count).collect();
        counted.sort_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
        let words: Vec<String> = counted.into_iter().map(|(word, _)| word).collect();
        WordIndex::from_vectors(&words, special)
    }

    /// The words of vectors in their order, behind those special tokens that are not among them (the padding first). A
    /// word that comes twice keeps its first place.
    pub fn from_vectors(words: &[String], special: &SpecialTokens) -> WordIndex {
        let own: std::collections::HashSet<&String> = words.iter().collect();
        let mut all: Vec<String> = special.all().filter(|token| !own.contains(token)).cloned().collect();
        all.dedup();
        let mut seen = std::collections::HashSet::new();
        all.extend(words.iter().filter(|word| seen.insert(*word)).cloned());
        WordIndex::of(all, special)
    }

    /// A JSON file of words: word → row, row → word (keys are numbers in quotation marks), or a list. Which, its content
    /// says: rows are numbers, words text. Special tokens that it lacks are not added.
    ///
    /// # Errors
    /// If the file cannot be read or is none of these, or a row is missing or named twice.
    pub fn read(path: &Path, special: &SpecialTokens) -> Result<WordIndex> {
        let mut words = Vec::new();
        for (expected, (row, word)) in rows_of(path)?.into_iter().enumerate() {
            if row as usize != expected {
                let problem = format!("has no word for row {expected}");
                return Err(Error::file(path, problem, "number words from 0, without gaps"));
            }
            words.push(word);
        }
        Ok(WordIndex::of(words, special))
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// A word's row.
    pub fn get(&self, word: &str) -> Option<u32> {
        self.rows.get(word).copied()
    }

    /// A word's row, or that of the unknown.
    pub fn get_or_unk(&self, word: &str) -> Option<u32> {
        self.get(word).or(self.unk)
    }

    /// A row's word.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn word(&self, row: u32) -> &str {
        &self.words[row as usize]
    }

    /// All words, by row.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// The row that fills up.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The row of unknown words.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// Word → row, in the order of rows: what `word_to_index` files hold.
    pub fn to_json(&self) -> String {
        self.written(|row, word| format!("{word}: {row}"))
    }

    /// Row → word, in the order of rows: what `index_to_word` files hold.
    pub fn to_json_by_row(&self) -> String {
        self.written(|row, word| format!("\"{row}\": {word}"))
    }

    fn written(&self, pair: impl Fn(usize, Value) -> String) -> String {
        let pairs: Vec<String> = self.words.iter().enumerate().map(|(i, w)| pair(i, w.as_str().into())).collect();
        format!("{{{}}}\n", pairs.join(", "))
    }
}

/// Rows and words of a JSON file, in the order of rows; each word and each row once. As [`WordIndex::read`] takes it.
pub fn rows_of(path: &Path) -> Result<Vec<(u32, String)>> {
    const REMEDY: &str = "give JSON such as {\"word\": 0, …}, {\"0\": \"word\", …} or [\"word\", …]";
    let bytes = std::fs::read(path)
        .map_err(|e| Error::file(path, format!("cannot be read: {}", e.kind()), "give a word index that exists"))?;
    let json: Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::file(path, format!("is no JSON: {e}"), REMEDY))?;
    let bad = |what: String| Error::file(path, format!("is no word index: {what}"), REMEDY);
    let row_of = |word: &str, row: Option<u64>| {
        row.and_then(|row| u32::try_from(row).ok()).ok_or_else(|| bad(format!("{word:?} has no row, a number from 0")))
    };
    let text_of = |row: &str, word: &Value| {
        word.as_str().map(String::from).ok_or_else(|| bad(format!("row {row} is no text, as others are")))
    };
    let mut found: Vec<(u32, String)> = match &json {
        Value::Array(words) => {
            words.iter().enumerate().map(|(i, word)| Ok((i as u32, text_of(&i.to_string(), word)?))).collect()
        }
        // The first value decides.
        Value::Object(map) if map.values().next().is_some_and(Value::is_string) => {
            map.iter().map(|(row, word)| Ok((row_of(row, row.parse().ok())?, text_of(row, word)?))).collect()
        }
        Value::Object(map) => map.iter().map(|(word, row)| Ok((row_of(word, row.as_u64())?, word.clone()))).collect(),
        _ => Err(bad("it is neither an object nor a list".into())),
    }?;
    found.sort();
    if let Some(pair) = found.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(bad(format!("row {} has two words, {:?} and {:?}", pair[0].0, pair[0].1, pair[1].1)));
    }
    let mut rows: HashMap<&str, u32> = HashMap::new();
    for (row, word) in &found {
        if let Some(first) = rows.insert(word, *row) {
            return Err(bad(format!("{word:?} has two rows, {first} and {row}")));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special(pad: &str, unk: &str) -> SpecialTokens {
        let token = |t: &str| (!t.is_empty()).then(|| t.to_string());
        SpecialTokens { pad: token(pad), unk: token(unk) }
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&w| w.into()).collect()
    }

    #[test]
    fn rows_follow_counts_behind_special_tokens() {
        let counts = [("b", 3), ("a", 3), ("c", 9), ("d", 1), ("<UNK>", 2)].map(|(w, n)| (w.to_string(), n));
        let index = WordIndex::from_counts(counts.into(), 2, &special("<PAD>", ""));
        assert_eq!(index.words(), strings(&["<PAD>", "c", "a", "b", "<UNK>"]));
        assert_eq!((index.pad(), index.unk(), index.get("b"), index.get("d")), (Some(0), None, Some(3), None));

        // What vectors have already is not added.
        let index = WordIndex::from_vectors(&strings(&["x", "<UNK>", "x", "y"]), &special("<PAD>", "<UNK>"));
        assert_eq!(index.words(), strings(&["<PAD>", "x", "<UNK>", "y"]));
        assert_eq!((index.unk(), index.get_or_unk("z"), index.word(3)), (Some(2), Some(2), "y"));
        let one = WordIndex::from_vectors(&strings(&["x"]), &special("<S>", "<S>"));
        assert_eq!((one.len(), one.pad(), one.unk()), (2, Some(0), Some(0)));
    }

    #[test]
    fn files_of_either_direction_are_read_by_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index.txt");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            WordIndex::read(&path, &special("", "2"))
        };
        let words = strings(&["a\"b", "é", "2"]);
        let index = WordIndex::from_vectors(&words, &special("", "2"));
        for text in [index.to_json(), index.to_json_by_row(), serde_json::to_string(&words).unwrap()] {
            assert_eq!(read(&text).unwrap(), index);
        }
        for (text, expected) in [
            ("{\"a\": 0, \"b\": 2}", "has no word for row 1"),
            ("{\"a\": 0, \"b\": 0}", "row 0 has two words, \"a\" and \"b\""),
            ("[\"a\", \"a\"]", "\"a\" has two rows, 0 and 1"),
            ("{\"a\": -1}", "\"a\" has no row"),
            ("{\"a\": 0, \"b\": \"c\"}", "\"b\" has no row"),
            ("{\"0\": \"a\", \"1\": 1}", "row 1 is no text"),
            ("{\"x\": \"a\"}", "\"x\" has no row"),
            ("7", "neither an object nor a list"),
            ("{", "is no JSON"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("index.txt"), "{error}");
        }
    }
}
