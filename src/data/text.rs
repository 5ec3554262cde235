//! Text files, read in pieces: memory does not grow with the file.
//!
//! A file is one stream, cut into pieces that every tokenizer encodes as it would the whole, or documents: its lines, or
//! a column of its rows.

use super::tokenizer::{Place, hex};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Bytes of a piece of a stream.
const PIECE: usize = 1 << 18;

/// How a file holds documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Documents {
    /// It is one text.
    #[default]
    Stream,
    /// Each line is one.
    Lines,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Column {
    /// The n-th, from 1; there is no row of names.
    Number(usize),
    /// The one with this name in the first row.
    Name(String),
}

impl FromStr for Column {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(0) => Err("columns count from 1".into()),
            Ok(n) => Ok(Column::Number(n)),
            Err(_) if text.is_empty() || text.len() > 256 => Err("give a name of 1 to 256 bytes, or a number".into()),
            Err(_) => Ok(Column::Name(text.into())),
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Column::Number(n) => write!(f, "{n}"),
            Column::Name(name) => f.write_str(name),
        }
    }
}

impl serde::Serialize for Column {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Column {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How a file is read.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Format {
    /// One stream, or documents.
    #[serde(default)]
    pub documents: Documents,
    /// The column that holds the documents, in a table: comma-separated where the file's name ends in `.csv`, else
    /// tab-separated, in which quotation marks mean nothing.
    #[serde(default)]
    pub text_column: Option<Column>,
}

/// A piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text: of a document, the whole of it.
    pub text: String,
    /// Where it stands.
    pub place: Place,
}

/// Pieces of a file as they are read.
pub type Pieces<'a> = Box<dyn Iterator<Item = Result<Piece>> + Send + 'a>;

/// A text file, as it is: nothing is stripped, added or translated.
#[derive(Debug)]
pub struct Text {
    path: PathBuf,
    file: File,
    bytes: u64,
}

fn unreadable(path: &Path, e: std::io::Error) -> Error {
    Error::file(path, format!("cannot be read: {e}"), "give a text file that exists")
}

fn not_utf8(path: &Path, at: u64) -> Error {
    Error::file(path, format!("is not UTF-8 at byte {at}"), "convert it, for example with `iconv -t UTF-8`")
}

impl Text {
    /// Opens a file. A pipe is copied to a temporary file first, as it is read more than once.
    ///
    /// # Errors
    /// If it cannot be read or is empty.
    pub fn open(path: &Path) -> Result<Text> {
        let failed = |e| unreadable(path, e);
        let mut file = File::open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?;
        if kind.is_dir() {
            return Err(Error::file(path, "cannot be read: is a folder", "give a text file"));
        }
        if !kind.is_file() {
            let mut copy = tempfile::tempfile().map_err(failed)?;
            std::io::copy(&mut file, &mut copy).map_err(failed)?;
            file = copy;
        }
        let bytes = file.metadata().map_err(failed)?.len();
        if bytes == 0 {
            return Err(Error::file(path, "is empty", "give a text with at least two characters"));
        }
        Ok(Text { path: path.into(), file, bytes })
    }

    /// Its path, for messages.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn reader(&self) -> Result<BufReader<File>> {
        let failed = |e| unreadable(&self.path, e);
        let mut file = self.file.try_clone().map_err(failed)?;
        file.rewind().map_err(failed)?;
        Ok(BufReader::with_capacity(PIECE, file))
    }

    /// Its SHA-256, in hexadecimal digits.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn digest(&self) -> Result<String> {
        let (mut reader, mut sha) = (self.reader()?, Sha256::new());
        loop {
            let bytes = reader.fill_buf().map_err(|e| unreadable(&self.path, e))?;
            if bytes.is_empty() {
                return Ok(hex(&sha.finalize()));
            }
            sha.update(bytes);
            let n = bytes.len();
            reader.consume(n);
        }
    }

    /// Its pieces in order: of a stream, some hundred kilobytes each; else its documents, one each, the empty ones too.
    /// Only one iterator at a time may be used.
    ///
    /// # Errors
    /// If it cannot be read, or a table lacks the column.
    pub fn pieces(&self, format: &Format) -> Result<Pieces<'_>> {
        let reader = self.reader()?;
        Ok(match (format.documents, &format.text_column) {
            (Documents::Stream, _) => {
                Box::new(Stream { text: self, reader, rest: Vec::new(), at: 0, place: Place::START })
            }
            (Documents::Lines, None) => Box::new(Lines { text: self, reader, at: 0, place: Place::START }),
            (Documents::Lines, Some(column)) => {
                let comma = self.path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
                return if comma { self.commas(reader, column) } else { self.tabs(reader, column) };
            }
        })
    }

    /// An error where a row lacks the column.
    fn lacks(&self, line: u64, columns: usize, column: &Column) -> Error {
        let problem = format!("line {line} has {columns} columns, --text-column is {column}");
        Error::file(&self.path, problem, "repair the line, or give another column")
    }

    /// The place of a column, given the first row.
    fn index(&self, column: &Column, first: &[&str]) -> Result<usize> {
        let name = match column {
            Column::Number(n) => return Ok(n - 1),
            Column::Name(name) => name,
        };
        first.iter().position(|n| n == name).ok_or_else(|| {
            let problem = format!("has no column {name:?} in its first line: {}", first.join(", "));
            Error::file(&self.path, problem, "give --text-column one of them, or a number")
        })
    }

    /// A column of lines that tabs separate; a blank line is an empty document.
    fn tabs(&self, reader: BufReader<File>, column: &Column) -> Result<Pieces<'_>> {
        let mut lines = Lines { text: self, reader, at: 0, place: Place::START };
        let mut index = 0;
        match column {
            Column::Number(n) => index = n - 1,
            Column::Name(_) => {
                if let Some(first) = lines.next().transpose()? {
                    index = self.index(column, &first.text.split('\t').collect::<Vec<_>>())?;
                }
            }
        }
        let column = column.clone();
        Ok(Box::new(lines.map(move |line| {
            let Piece { text, mut place } = line?;
            if text.trim().is_empty() {
                return Ok(Piece { text: String::new(), place });
            }
            let Some(field) = text.split('\t').nth(index) else {
                return Err(self.lacks(place.line, text.split('\t').count(), &column));
            };
            let before = field.as_ptr() as usize - text.as_ptr() as usize;
            place.position += text[..before].chars().count() as u64;
            Ok(Piece { text: field.into(), place })
        })))
    }

    /// A column of rows that commas separate, whose fields may stand in quotation marks.
    fn commas(&self, reader: BufReader<File>, column: &Column) -> Result<Pieces<'_>> {
        let named = matches!(column, Column::Name(_));
        let mut rows = csv::ReaderBuilder::new().has_headers(named).flexible(true).from_reader(reader);
        let failed = |e: csv::Error| match e.kind() {
            csv::ErrorKind::Utf8 { pos, .. } => {
                let line = pos.as_ref().map_or(1, |p| p.line());
                Error::file(&self.path, format!("is not UTF-8 in the row at line {line}"), "convert it")
            }
            _ => Error::file(&self.path, format!("is no table: {e}"), "repair it"),
        };
        let index = match column {
            Column::Number(n) => n - 1,
            Column::Name(_) => self.index(column, &rows.headers().map_err(failed)?.iter().collect::<Vec<_>>())?,
        };
        let column = column.clone();
        Ok(Box::new(rows.into_records().map(move |row| {
            let row = row.map_err(failed)?;
            let line = row.position().map_or(1, |p| p.line());
            let field = row.get(index).ok_or_else(|| self.lacks(line, row.len(), &column))?;
            Ok(Piece { text: field.into(), place: Place { position: 0, line } })
        })))
    }
}

/// A stream's pieces.
struct Stream<'a> {
    text: &'a Text,
    reader: BufReader<File>,
    /// What has been read and not given out: less than a piece.
    rest: Vec<u8>,
    /// Bytes given out.
    at: u64,
    place: Place,
}

/// Where to cut a text so that tokenizers encode both parts as they would the whole: before the last single space or
/// else other white space that follows something else, as no tokenizer joins a word to the space after it; in a text
/// without any, anywhere.
fn cut(text: &str) -> usize {
    let after_word = |i: usize| text[..i].chars().next_back().is_some_and(|c| !c.is_whitespace());
    let space = text.rmatch_indices(' ').map(|(i, _)| i).find(|&i| after_word(i));
    let other = || text.rmatch_indices(char::is_whitespace).map(|(i, _)| i).find(|&i| after_word(i));
    space.or_else(other).unwrap_or(text.len())
}

impl Iterator for Stream<'_> {
    type Item = Result<Piece>;
    fn next(&mut self) -> Option<Result<Piece>> {
        let mut bytes = std::mem::take(&mut self.rest);
        if let Err(e) = (&mut self.reader).take(PIECE as u64).read_to_end(&mut bytes) {
            return Some(Err(unreadable(&self.text.path, e)));
        }
        if bytes.is_empty() {
            return None;
        }
        let last = match self.reader.fill_buf() {
            Ok(more) => more.is_empty(),
            Err(e) => return Some(Err(unreadable(&self.text.path, e))),
        };
        let valid = match std::str::from_utf8(&bytes) {
            Ok(text) => text.len(),
            // A character may go on in the next piece.
            Err(e) if e.error_len().is_none() && !last => e.valid_up_to(),
            Err(e) => return Some(Err(not_utf8(&self.text.path, self.at + e.valid_up_to() as u64))),
        };
        let text = std::str::from_utf8(&bytes[..valid]).expect("this much is valid");
        let end = if last { text.len() } else { cut(text) };
        let text = text[..end].to_string();
        self.rest = bytes.split_off(end);
        let piece = Piece { place: self.place, text };
        self.at += end as u64;
        let characters = piece.text.chars().count();
        self.place = self.place.after(&piece.text, characters);
        Some(Ok(piece))
    }
}

/// A file's lines, without their ends.
struct Lines<'a> {
    text: &'a Text,
    reader: BufReader<File>,
    at: u64,
    place: Place,
}

impl Iterator for Lines<'_> {
    type Item = Result<Piece>;
    fn next(&mut self) -> Option<Result<Piece>> {
        let mut bytes = Vec::new();
        match self.reader.read_until(b'\n', &mut bytes) {
            Err(e) => return Some(Err(unreadable(&self.text.path, e))),
            Ok(0) => return None,
            Ok(_) => {}
        }
        let line = match String::from_utf8(bytes) {
            Ok(line) => line,
            Err(e) => {
                return Some(Err(not_utf8(&self.text.path, self.at + e.utf8_error().valid_up_to() as u64)));
            }
        };
        let place = self.place;
        self.at += line.len() as u64;
        self.place = Place { position: place.position + line.chars().count() as u64, line: place.line + 1 };
        let text = line.strip_suffix('\n').unwrap_or(&line);
        Some(Ok(Piece { text: text.strip_suffix('\r').unwrap_or(text).into(), place }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (directory, path)
    }

    fn pieces(path: &Path, column: Option<&str>, documents: Documents) -> Result<Vec<(String, u64)>> {
        let text_column = column.map(|c| c.parse().unwrap());
        let text = Text::open(path)?;
        let pieces = text.pieces(&Format { documents, text_column })?;
        pieces.map(|p| p.map(|p| (p.text, p.place.line))).collect()
    }

    #[test]
    fn pieces_make_up_the_stream() {
        let whole: String = (0..200_000).map(|i| ["wörd ", "x", "  \n", "é", "\n\n"][i * i % 11 % 5]).collect();
        let (_directory, path) = file("t.txt", &whole);
        let text = Text::open(&path).unwrap();
        let pieces: Vec<Piece> = text.pieces(&Format::default()).unwrap().collect::<Result<_>>().unwrap();
        assert!(pieces.len() > 2);
        let mut seen = String::new();
        for piece in &pieces {
            let expected = Place::START.after(&seen, seen.chars().count());
            assert_eq!(piece.place, expected);
            assert!(seen.is_empty() || piece.text.starts_with(' ') && !seen.ends_with(char::is_whitespace));
            seen += &piece.text;
        }
        assert_eq!(seen, whole);
        assert_eq!(text.digest().unwrap(), hex(&Sha256::digest(&whole)));
    }

    #[test]
    fn texts_without_spaces_are_cut_between_characters() {
        let whole = "日本".repeat(PIECE / 4);
        let (_directory, path) = file("t.txt", &whole);
        let found = pieces(&path, None, Documents::Stream).unwrap();
        assert!(found.len() > 1 && found.iter().map(|(text, _)| text.as_str()).collect::<String>() == whole);
        assert_eq!(cut("one two \n three"), 7);
        assert_eq!(cut("one\ntwo"), 3);
        assert_eq!(cut(" \n"), 2);
    }

    #[test]
    fn lines_and_columns_are_documents() {
        let (_directory, path) = file("t.tsv", "a \"b\tlabel\r\n\n\"c\t0\nlast\t1");
        let lines = pieces(&path, None, Documents::Lines).unwrap();
        assert_eq!(
            lines,
            [("a \"b\tlabel".into(), 1), (String::new(), 2), ("\"c\t0".into(), 3), ("last\t1".into(), 4)]
        );
        let column = pieces(&path, Some("1"), Documents::Lines).unwrap();
        assert_eq!(column, [("a \"b".into(), 1), (String::new(), 2), ("\"c".into(), 3), ("last".into(), 4)]);
        let named = pieces(&path, Some("label"), Documents::Lines).unwrap();
        assert_eq!(named, [(String::new(), 2), ("0".into(), 3), ("1".into(), 4)]);
        let error = pieces(&path, Some("text"), Documents::Lines).unwrap_err().to_string();
        assert!(error.contains("t.tsv: has no column \"text\" in its first line: a \"b, label"), "{error}");
        let error = pieces(&path, Some("3"), Documents::Lines).unwrap_err().to_string();
        assert!(error.contains("t.tsv: line 1 has 2 columns, --text-column is 3"), "{error}");

        let (_directory, path) = file("t.csv", "text,label\n\"one, \"\"two\"\"\nthree\",1\n");
        assert_eq!(pieces(&path, Some("text"), Documents::Lines).unwrap(), [("one, \"two\"\nthree".into(), 2)]);
    }

    #[test]
    fn bad_texts_are_named() {
        let (_directory, path) = file("t.txt", b"ab\xff");
        for documents in [Documents::Stream, Documents::Lines] {
            let error = pieces(&path, None, documents).unwrap_err().to_string();
            assert!(error.contains("t.txt: is not UTF-8 at byte 2"), "{error}");
        }
        // A character that is cut off at the end of the file.
        std::fs::write(&path, &"aé".as_bytes()[..2]).unwrap();
        assert!(pieces(&path, None, Documents::Stream).unwrap_err().to_string().contains("at byte 1"));
        std::fs::write(&path, b"").unwrap();
        assert!(Text::open(&path).unwrap_err().to_string().contains("is empty"));
        assert!(Text::open(&path.with_extension("no")).unwrap_err().to_string().contains("cannot be read"));
        assert!("0".parse::<Column>().is_err());
    }
}
