//! A text's tokens in a file beside the run, encoded once and mapped into memory from then on.
//!
//! The file is a safetensors file: `tokens` (U16, or U32 where there are more than 65,536 different ones) and, of
//! documents, `ends` (U64), where each ends in them. Its metadata hold `contents`, which says of what text, in which
//! tokenizer, read how; and `sha256`, the digest of the tensors' bytes followed by `contents`. A file of another text or
//! tokenizer is replaced; one whose digest is wrong is said to be damaged, and replaced too.

use super::read::{Found, encode};
use super::tokenizer::hex;
use super::{Corpus, Documents, Ends, Format, Text, Tokenizer, Tokens};
use crate::error::{Error, Result};
use memmap2::Mmap;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::NamedTempFile;

/// Bytes before the tensors: eight that say how long the header is, and the header, filled up with spaces.
const HEADER: usize = 4096;
/// Bytes that are read or written at a time.
const BUFFER: usize = 1 << 20;

/// What a cache holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Contents {
    text_sha256: String,
    tokenizer_sha256: String,
    #[serde(flatten)]
    format: Format,
    found: Found,
}

/// The tokens of one text in one tokenizer.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The text.
    pub text: &'a Text,
    /// Its digest.
    pub text_sha256: &'a str,
    /// How it is read.
    pub format: &'a Format,
    /// What makes tokens.
    pub tokenizer: &'a Tokenizer,
}

/// What is found where a cache may be.
#[derive(Debug)]
pub enum Opened {
    /// The corpus.
    Good(Corpus, Found),
    /// Nothing, or the tokens of something else.
    Absent,
    /// A file that is no cache, or not as it was written; why.
    Damaged(String),
}

/// A cache that has been written, but not to its place: unless it is kept, it goes when it is dropped.
#[derive(Debug)]
pub struct Pending {
    file: NamedTempFile,
    name: &'static str,
}

fn unwritable(folder: &Path, e: &io::Error) -> Error {
    let remedy = "give an --out on a disk with space that you may write to";
    Error::file(folder, format!("tokens cannot be written there: {e}"), remedy)
}

impl Pending {
    /// Moves it into a directory, in place of an earlier one.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn keep(self, directory: &Path) -> Result<()> {
        let path = directory.join(self.name);
        self.file.persist(&path).map(drop).map_err(|e| unwritable(&path, &e.error))
    }
}

/// The nearest folder at or above `directory` that exists.
fn existing(directory: &Path) -> PathBuf {
    let above = directory.ancestors().filter(|d| !d.as_os_str().is_empty()).find(|d| d.is_dir());
    above.unwrap_or(Path::new(".")).to_path_buf()
}

impl Source<'_> {
    /// Opens a cache of this source at a path.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(&self, path: &Path) -> Result<Opened> {
        let failed = |e| Error::file(path, format!("cannot be read: {e}"), "remove it");
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Opened::Absent),
            file => file.map_err(failed)?,
        };
        let bytes = file.metadata().map_err(failed)?.len() as usize;
        let mut reader = BufReader::with_capacity(BUFFER, &file);
        let mut header = vec![0; HEADER];
        if bytes < HEADER || reader.read_exact(&mut header).is_err() {
            return Ok(Opened::Damaged(format!("has {bytes} bytes, fewer than its header")));
        }
        let json: Value = match serde_json::from_slice(&header[8..]) {
            Ok(json) => json,
            Err(e) => return Ok(Opened::Damaged(format!("has a header that is no JSON: {e}"))),
        };
        let (text, sha256) = (json["__metadata__"]["contents"].as_str(), json["__metadata__"]["sha256"].as_str());
        let (Some(text), Some(sha256)) = (text, sha256) else {
            return Ok(Opened::Damaged("has a header without its contents' description".into()));
        };
        let Ok(contents) = serde_json::from_str::<Contents>(text) else {
            return Ok(Opened::Damaged("has a header that describes no tokens".into()));
        };
        if !self.is(&contents) {
            return Ok(Opened::Absent);
        }
        let Contents { found, .. } = contents;
        let (count, wide, ends) = (found.tokens as usize, self.wide(), self.ends(&found));
        let expected = HEADER + count * if wide { 4 } else { 2 } + 8 * ends;
        if bytes != expected {
            return Ok(Opened::Damaged(format!("has {bytes} bytes, expected {expected}")));
        }
        let mut sha = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            match reader.read(&mut buffer).map_err(failed)? {
                0 => break,
                n => sha.update(&buffer[..n]),
            }
        }
        sha.update(text);
        if hex(&sha.finalize()) != sha256 {
            return Ok(Opened::Damaged("does not have the digest that its header names".into()));
        }
        Ok(Opened::Good(self.map(&file, &found).map_err(failed)?, found))
    }

    /// Whether a cache holds this source.
    fn is(&self, contents: &Contents) -> bool {
        contents.text_sha256 == self.text_sha256
            && contents.format == *self.format
            && contents.tokenizer_sha256 == self.tokenizer.digest()
    }

    fn wide(&self) -> bool {
        self.tokenizer.len() > 1 << 16
    }

    fn ends(&self, found: &Found) -> usize {
        if self.format.documents == Documents::Stream { 0 } else { found.documents as usize }
    }

    fn map(&self, file: &File, found: &Found) -> io::Result<Corpus> {
        // SAFETY: the mapping is only read. The file is ours, and is replaced by renaming, never written in place. Nobody
        // can keep another program from truncating it; that would end this process with SIGBUS, as for every program
        // that maps files.
        let map = Arc::new(unsafe { Mmap::map(file) }?);
        let (count, wide) = (found.tokens as usize, self.wide());
        let after = HEADER + count * if wide { 4 } else { 2 };
        let tokens = Tokens::mapped(map.clone(), HEADER, wide, count);
        let corpus = match self.format.documents {
            Documents::Stream => Corpus::text(tokens),
            Documents::Lines => Corpus::documents(tokens, Ends::Mapped(map, after, self.ends(found))),
        };
        Ok(corpus.padded_with(self.tokenizer.specials().padding.unwrap_or(0)))
    }

    /// Encodes the text into a new cache, to be kept as `name` in `directory`, which need not exist yet. `progress` hears
    /// of every share of the text's bytes.
    ///
    /// # Errors
    /// If the text cannot be encoded, or the cache not be written.
    pub fn write(
        &self,
        directory: &Path,
        name: &'static str,
        progress: impl FnMut(u64),
    ) -> Result<(Corpus, Found, Pending)> {
        let folder = existing(directory);
        let failed = |e: io::Error| unwritable(&folder, &e);
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tokens-").suffix(".tmp");
        #[cfg(unix)]
        {
            // What a plain create asks for; the umask still applies.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(&folder).map_err(failed)?;
        // The documents' ends come after the tokens, and wait in a file of their own.
        let mut ends = BufWriter::new(tempfile::tempfile_in(&folder).map_err(failed)?);
        let mut writer = BufWriter::with_capacity(BUFFER, file.as_file());
        writer.write_all(&[b' '; HEADER]).map_err(failed)?;
        let (mut sha, mut count, wide) = (Sha256::new(), 0u64, self.wide());
        let stream = self.format.documents == Documents::Stream;
        let mut bytes = Vec::new();
        let sink = |tokens: &[i32]| {
            bytes.clear();
            if wide {
                bytes.extend(tokens.iter().flat_map(|&t| (t as u32).to_le_bytes()));
            } else {
                bytes.extend(tokens.iter().flat_map(|&t| (t as u16).to_le_bytes()));
            }
            sha.update(&bytes);
            count += tokens.len() as u64;
            let written = writer.write_all(&bytes);
            let written = written.and_then(|()| if stream { Ok(()) } else { ends.write_all(&count.to_le_bytes()) });
            written.map_err(failed)
        };
        let found = encode(self.text, self.format, self.tokenizer, sink, progress)?;
        let finish = || -> io::Result<()> {
            let mut ends = ends.into_inner().map_err(|e| e.into_error())?;
            ends.rewind()?;
            let mut buffer = vec![0; BUFFER];
            loop {
                match ends.read(&mut buffer)? {
                    0 => break,
                    n => {
                        sha.update(&buffer[..n]);
                        writer.write_all(&buffer[..n])?;
                    }
                }
            }
            writer.rewind()?;
            writer.write_all(&self.header(found, sha.clone()))?;
            writer.flush()
        };
        finish().map_err(failed)?;
        drop(writer);
        let corpus = self.map(file.as_file(), &found).map_err(failed)?;
        Ok((corpus, found, Pending { file, name }))
    }

    /// The first bytes of the file, given the digest of what follows.
    fn header(&self, found: Found, mut sha: Sha256) -> Vec<u8> {
        let contents = Contents {
            text_sha256: self.text_sha256.into(),
            tokenizer_sha256: self.tokenizer.digest(),
            format: self.format.clone(),
            found,
        };
        let contents = serde_json::to_string(&contents).expect("contents are plain data");
        sha.update(&contents);
        let sha256 = hex(&sha.finalize());
        let (dtype, size) = if self.wide() { ("U32", 4) } else { ("U16", 2) };
        let end = found.tokens * size;
        let mut header = json!({
            "__metadata__": { "contents": contents, "sha256": sha256 },
            "tokens": { "dtype": dtype, "shape": [found.tokens], "data_offsets": [0, end] },
        });
        let ends = self.ends(&found) as u64;
        if ends > 0 {
            header["ends"] = json!({ "dtype": "U64", "shape": [ends], "data_offsets": [end, end + 8 * ends] });
        }
        let mut bytes = (HEADER as u64 - 8).to_le_bytes().to_vec();
        bytes.extend(header.to_string().bytes());
        assert!(bytes.len() <= HEADER, "a column's name is short, and so the header fits");
        bytes.resize(HEADER, b' ');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::Choice;
    use super::super::{Batch, read};
    use super::*;

    const NAME: &str = "tokens.safetensors";

    fn all(corpus: &Corpus) -> Batch {
        let mut batch = Batch::default();
        corpus.windows(3, 3).for_each(|w| corpus.append(&w, 3, &mut batch));
        batch
    }

    #[test]
    fn a_cache_holds_what_reading_gives_and_damage_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.txt");
        std::fs::write(&path, "a b c\n\nb a\nd é\n").unwrap();
        let text = Text::open(&path).unwrap();
        let digest = text.digest().unwrap();
        let out = directory.path().join("not/yet");
        let cache = out.join(NAME);
        for (documents, choice) in [(Documents::Stream, Choice::Characters), (Documents::Lines, Choice::Words)] {
            let format = Format { documents, text_column: None };
            let texts = text.pieces(&format).unwrap().map(|p| p.map(|p| p.text));
            let tokenizer = Tokenizer::new(&choice, 1, 0, "t", texts).unwrap();
            let (expected, found) = read(&text, &format, &tokenizer, |_| ()).unwrap();
            let source = Source { text: &text, text_sha256: &digest, format: &format, tokenizer: &tokenizer };
            let (corpus, written, pending) = source.write(&out, NAME, |_| ()).unwrap();
            assert_eq!((all(&corpus), written), (all(&expected), found));
            assert!(!out.exists());
            std::fs::create_dir_all(&out).unwrap();
            pending.keep(&out).unwrap();
            let Opened::Good(corpus, again) = source.open(&cache).unwrap() else { panic!("it is there") };
            assert_eq!((all(&corpus), again), (all(&expected), found));
            // Others read it too.
            let bytes = std::fs::read(&cache).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(tensors.tensor("tokens").unwrap().shape(), [found.tokens as usize]);

            let other = Source { text_sha256: "0", ..source };
            assert!(matches!(other.open(&cache).unwrap(), Opened::Absent));
            let damaged = |bytes: &[u8]| {
                std::fs::write(&cache, bytes).unwrap();
                matches!(source.open(&cache).unwrap(), Opened::Damaged(_))
            };
            for i in [HEADER, bytes.len() - 1] {
                let mut changed = bytes.clone();
                changed[i] ^= 1;
                assert!(damaged(&changed), "byte {i}");
            }
            assert!(damaged(&bytes[..bytes.len() - 1]) && damaged(&bytes[..100]) && damaged(&[b'x'; HEADER]));
            std::fs::remove_dir_all(&out).unwrap();
        }
        assert_eq!(
            std::fs::read_dir(directory.path()).unwrap().count(),
            2,
            "t.txt and not/: no temporary file is left"
        );
    }

    #[test]
    fn a_dropped_cache_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.txt");
        std::fs::write(&path, "ab").unwrap();
        let text = Text::open(&path).unwrap();
        let tokenizer = Tokenizer::new(&Choice::Characters, 1, 0, "t", [Ok("ab".into())].into_iter()).unwrap();
        let source = Source { text: &text, text_sha256: "", format: &Format::default(), tokenizer: &tokenizer };
        drop(source.write(&directory.path().join("out"), NAME, |_| ()).unwrap());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
