//! Every other tokenizer: what Hugging Face's crate `tokenizers` reads and trains, byte-level BPE (Radford et al., 2019,
//! "Language models are unsupervised multitask learners", section 2.2) above all.

use super::Place;
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Model, ModelWrapper};

/// What GPT-2 writes between documents.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// A tokenizer of the crate.
#[derive(Debug, Clone)]
pub struct Library {
    tokenizer: Arc<tokenizers::Tokenizer>,
    /// Whether text that it does not know would vanish without an error.
    forgets: bool,
    size: usize,
}

/// Byte-level: any text is known, as bytes if not as more.
fn byte_level(bpe: BPE) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    tokenizer.add_special_tokens([AddedToken::from(END_OF_TEXT, true)])?;
    Ok(tokenizer)
}

impl Library {
    fn new(tokenizer: tokenizers::Tokenizer) -> Result<Library, String> {
        let vocabulary = tokenizer.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        if size == 0 || size > i32::MAX as usize {
            return Err(format!("has {size} tokens"));
        }
        let forgets = match tokenizer.get_model() {
            ModelWrapper::BPE(bpe) => {
                let bytes = ByteLevel::alphabet().into_iter().all(|c| bpe.token_to_id(&c.to_string()).is_some());
                bpe.unk_token.is_none() && !bpe.byte_fallback && !bytes
            }
            _ => false,
        };
        Ok(Library { tokenizer: Arc::new(tokenizer), forgets, size })
    }

    /// The tokenizer that a `tokenizer.json` describes.
    ///
    /// # Errors
    /// If the crate does not know it; in its words.
    pub fn from_json(json: &Value) -> Result<Library, String> {
        let mut tokenizer: tokenizers::Tokenizer = serde_json::from_value(json.clone()).map_err(|e| e.to_string())?;
        // Rows are cut and padded here, and counted.
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        Library::new(tokenizer)
    }

    /// GPT-2's, from `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// If a file cannot be read or does not fit the other.
    pub fn from_gpt2(directory: &Path) -> Result<Library> {
        let (vocab, merges) = (directory.join("vocab.json"), directory.join("merges.txt"));
        for path in [&vocab, &merges] {
            std::fs::File::open(path).map_err(|e| {
                let remedy = "give a directory with vocab.json and merges.txt, or with tokenizer.json";
                Error::file(path, format!("cannot be read: {e}"), remedy)
            })?;
        }
        let wrong = |e: tokenizers::Error| {
            let remedy = "give vocab.json and merges.txt of the same GPT-2 tokenizer";
            Error::file(directory, format!("holds no byte-level BPE: {e}"), remedy)
        };
        let bpe = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy()).build().map_err(wrong)?;
        Library::new(byte_level(bpe).map_err(wrong)?).map_err(|e| wrong(e.into()))
    }

    /// Learns a byte-level BPE of `size` tokens from texts: the 256 bytes, [`END_OF_TEXT`], and merges as long as a pair
    /// occurs twice.
    ///
    /// # Errors
    /// If `size` leaves no place for merges, or a text cannot be read.
    pub fn train(size: usize, texts: impl Iterator<Item = Result<String>> + Send) -> Result<Library> {
        if size <= 257 {
            let problem = "leaves no place for merges beside the 256 bytes and <|endoftext|>";
            return Err(Error::argument(format!("--vocab-size {size}"), problem, "give 258 or more"));
        }
        let failed = |e: tokenizers::Error| Error::argument("--tokenizer bpe", e.to_string(), "give another text");
        let mut trainer: tokenizers::models::TrainerWrapper = BpeTrainer::builder()
            .vocab_size(size)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .build()
            .into();
        let mut tokenizer = byte_level(BPE::default()).map_err(failed)?;
        let mut broken = None;
        let readable = texts.map_while(|text| text.map_err(|e| broken = Some(e)).ok());
        tokenizer.train(&mut trainer, readable).map_err(failed)?;
        match broken {
            Some(e) => Err(e),
            None => Library::new(tokenizer).map_err(|e| failed(e.into())),
        }
    }

    /// One more than its largest number.
    pub fn len(&self) -> usize {
        self.size
    }

    /// Whether it has no tokens, which no tokenizer here has.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// The number of a token.
    pub fn id(&self, token: &str) -> Option<i32> {
        self.tokenizer.token_to_id(token).map(|id| id as i32)
    }

    /// The token of a number, as the vocabulary spells it.
    pub fn token(&self, id: i32) -> String {
        self.tokenizer.id_to_token(id as u32).unwrap_or_default()
    }

    /// The number of its token for what it does not know.
    pub fn unknown(&self) -> Option<i32> {
        let json = serde_json::to_value(self.tokenizer.get_model()).ok()?;
        match &json["unk_token"] {
            Value::String(token) => self.id(token),
            _ => json["unk_id"].as_i64().map(|id| id as i32),
        }
    }

    /// Appends the tokens of a text that stands at `place` of `source`; special tokens that the tokenizer would add are
    /// left out.
    ///
    /// # Errors
    /// If a part of it is unknown and the tokenizer has no token for that.
    pub fn encode(&self, text: &str, source: &str, place: Place, tokens: &mut Vec<i32>) -> Result<()> {
        let unknown = |at: usize, what: &str, why: &str| {
            let remedy = format!("leave it out, or use a tokenizer that has a token for the unknown{why}");
            Err(place.after(text, text[..at].chars().count()).error(source, &format!("{what:?}"), remedy))
        };
        if self.forgets {
            let added: Vec<String> =
                self.tokenizer.get_added_tokens_decoder().into_values().map(|t| t.content).collect();
            let (mut known, mut after) = (HashSet::new(), 0);
            for (i, c) in text.char_indices().filter(|(_, c)| !c.is_whitespace()) {
                if let Some(token) = added.iter().find(|t| text[i..].starts_with(*t)) {
                    after = i + token.len();
                }
                let alone = |c: char| self.tokenizer.encode_fast(c.to_string(), false).map_or(0, |e| e.len());
                if i >= after && known.insert(c) && alone(c) == 0 {
                    return unknown(i, &c.to_string(), "");
                }
            }
            let Ok(encoding) = self.tokenizer.encode_fast(text, false) else { return unknown(0, text, "") };
            tokens.extend(encoding.get_ids().iter().map(|&id| id as i32));
            return Ok(());
        }
        match self.tokenizer.encode_fast(text, false) {
            Ok(encoding) => tokens.extend(encoding.get_ids().iter().map(|&id| id as i32)),
            Err(e) => {
                // The first word that fails on its own is the one at fault.
                let fails = |w: &&str| self.tokenizer.encode_fast(*w, false).is_err();
                let word = text.split_whitespace().find(fails).unwrap_or(text);
                let at = word.as_ptr() as usize - text.as_ptr() as usize;
                return unknown(at, word, &format!(" ({e})"));
            }
        }
        Ok(())
    }

    /// The text of tokens, special ones included; an incomplete character at the end is U+FFFD.
    pub fn decode(&self, tokens: &[i32]) -> String {
        let ids: Vec<u32> = tokens.iter().map(|&t| t as u32).collect();
        self.tokenizer.decode(&ids, false).unwrap_or_else(|_| char::REPLACEMENT_CHARACTER.into())
    }

    /// What `tokenizer.json` holds.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(&*self.tokenizer).expect("a tokenizer is plain data")
    }
}
