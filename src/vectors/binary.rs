//! word2vec's binary form: a line with the counts of words and of numbers, then each word, a space, and its numbers in
//! 32 bits. (`word2vec.c`, Mikolov 2013, writes an end of line after each vector, others do not.)

use super::WordVectors;
use super::text::counts;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// What the first line says.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    words: usize,
    dim: usize,
}

/// The first line of a binary file; none where what follows is text.
pub fn header(head: &[u8]) -> Option<Header> {
    let (words, dim) = counts(head)?;
    let rest = &head[head.iter().position(|&b| b == b'\n')? + 1..];
    let line = rest.split(|&b| b == b'\n').next().unwrap_or_default();
    // Numbers in 32 bits are neither UTF-8 nor free of control characters.
    let whole = std::str::from_utf8(line).map_or_else(|e| e.error_len().is_none(), |_| true);
    let control = line.iter().any(|&b| b < b' ' && b != b'\t' && b != b'\r');
    (!whole || control).then_some(Header { words, dim })
}

/// The longest word.
const LONGEST: usize = 1 << 12;

/// Reads at most `first` vectors.
pub fn read(path: &Path, mut reader: BufReader<File>, header: Header, first: Option<usize>) -> Result<WordVectors> {
    let Header { words, dim } = header;
    let cut_off = |n: usize| {
        let problem = format!("ends within vector {} of {words}", n + 1);
        Error::file(path, problem, "fetch it again: it was cut off")
    };
    let broken = |e: std::io::Error| Error::file(path, format!("cannot be read: {e}"), "check the disk");
    reader.read_until(b'\n', &mut Vec::new()).map_err(broken)?;
    // What the header claims must not decide how much memory is taken.
    let mut vectors = WordVectors { dim, ..Default::default() };
    let bytes_of_row = dim.checked_mul(4).filter(|&n| n < 1 << 30).ok_or_else(|| {
        let problem = format!("says in its first line that vectors have {dim} numbers");
        Error::file(path, problem, "give a file of word vectors")
    })?;
    let mut row = Vec::new();
    for n in 0..words.min(first.unwrap_or(usize::MAX)) {
        let mut word = Vec::new();
        (&mut reader).take(LONGEST as u64).read_until(b' ', &mut word).map_err(broken)?;
        if word.pop() != Some(b' ') {
            return Err(cut_off(n));
        }
        let word = word.strip_prefix(b"\n").unwrap_or(&word);
        let word = std::str::from_utf8(word).map_err(|_| {
            let problem = format!("has a word that is not UTF-8, number {}", n + 1);
            Error::file(
                path,
                problem,
                "convert it, for instance with gensim's load_word2vec_format(unicode_errors='ignore')",
            )
        })?;
        row.clear();
        (&mut reader).take(bytes_of_row as u64).read_to_end(&mut row).map_err(broken)?;
        if row.len() < bytes_of_row {
            return Err(cut_off(n));
        }
        let values = row.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
        vectors.table.extend(values);
        if !vectors.row(n).iter().all(|x| x.is_finite()) {
            let problem = format!("the vector of {word:?}, number {}, has a number that is not finite", n + 1);
            return Err(Error::file(path, problem, "repair it, or fetch it again"));
        }
        vectors.words.push(word.to_string());
    }
    Ok(vectors)
}
