//! Vectors as text: a word and its numbers a line, with spaces between.
//!
//! The file is read in blocks of whole lines, and the lines of a block are parsed on all cores. Numbers are taken from
//! the right of a line, as a word may have spaces in it.

use super::WordVectors;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Bytes that are read at a time.
const BLOCK: usize = 1 << 25;
/// Bytes that one task parses.
const SHARE: usize = 1 << 18;
/// Lines that decide how many numbers a vector has.
const DECIDING: usize = 100;

/// What is wrong with a line of a share: lines before it, and the problem.
type Fault = (usize, String);

/// Lines of a share as vectors.
#[derive(Default)]
struct Parsed {
    words: Vec<String>,
    table: Vec<f32>,
    lines: usize,
}

/// Reads at most `first` vectors.
pub fn read(path: &Path, mut reader: BufReader<File>, first: Option<usize>) -> Result<WordVectors> {
    let broken = |e: std::io::Error| Error::file(path, format!("cannot be read: {e}"), "check the disk");
    let most = first.unwrap_or(usize::MAX);
    let mut vectors = WordVectors::default();
    let (mut header, mut lines, mut rest) = (None, 0, Vec::new());
    loop {
        let mut block = std::mem::take(&mut rest);
        // A short file, and a few vectors of a long one, need no large block.
        let size = if first.is_some() { BLOCK / 32 } else { BLOCK };
        (&mut reader).take(size as u64).read_to_end(&mut block).map_err(broken)?;
        if block.is_empty() {
            break;
        }
        let last = block.len() < size;
        if !last {
            let Some(end) = block.iter().rposition(|&b| b == b'\n') else {
                let problem = format!("line {} is longer than any vector", lines + 1);
                return Err(Error::file(path, problem, "give a file of word vectors"));
            };
            rest = block.split_off(end + 1);
        }
        let mut text = &block[..];
        if vectors.dim == 0 {
            header = counts(text);
            if header.is_some() {
                lines = 1;
                text = &text[line_end(text)..];
            }
            vectors.dim = dimension(text);
            if let Some((_, dim)) = header.filter(|(_, dim)| *dim != vectors.dim && vectors.dim > 0) {
                let problem =
                    format!("says in its first line that vectors have {dim} numbers, and they have {}", vectors.dim);
                return Err(Error::file(path, problem, "correct the first line, or remove it"));
            }
            if vectors.dim == 0 {
                let problem = format!("line {} is no word with numbers", lines + 1);
                return Err(Error::file(path, problem, "give a file of word vectors: a word and its numbers a line"));
            }
        }
        let room = most - vectors.words.len();
        let parsed: Vec<Result<Parsed, Fault>> =
            shares(text, room).par_iter().map(|share| parse(share, vectors.dim)).collect();
        for parsed in parsed {
            let parsed = parsed.map_err(|(before, problem)| {
                let problem = format!("line {} {problem}", lines + before + 1);
                Error::file(path, problem, "repair the line, or fetch the file again if it was cut off")
            })?;
            lines += parsed.lines;
            vectors.words.extend(parsed.words);
            vectors.table.extend(parsed.table);
        }
        if vectors.words.len() >= most {
            vectors.words.truncate(most);
            vectors.table.truncate(most * vectors.dim);
            return Ok(vectors);
        }
    }
    match header {
        Some((count, _)) if count != vectors.words.len() => {
            let problem = format!("holds {} vectors, and says in its first line {count}", vectors.words.len());
            Err(Error::file(path, problem, "fetch it again if it was cut off, or correct the first line"))
        }
        _ => Ok(vectors),
    }
}

/// Where the line at the beginning of `text` ends, its end included.
fn line_end(text: &[u8]) -> usize {
    text.iter().position(|&b| b == b'\n').map_or(text.len(), |i| i + 1)
}

/// A line's fields. Only spaces and tabs separate: words may hold any other white space of Unicode.
fn fields(line: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    line.split(|b| b" \t\r".contains(b)).filter(|field| !field.is_empty())
}

/// The counts of vectors and of numbers in each, if `text` begins with a line of them.
pub fn counts(text: &[u8]) -> Option<(usize, usize)> {
    let end = line_end(text);
    let mut fields_of_first = fields(text[..end].strip_suffix(b"\n")?);
    let mut count = || std::str::from_utf8(fields_of_first.next()?).ok()?.parse::<usize>().ok();
    let (words, dim) = (count()?, count()?);
    if fields_of_first.next().is_some() || dim == 0 {
        return None;
    }
    // A vector of one number looks the same; then the second line is one, too.
    let second = &text[end..][..line_end(&text[end..])];
    (dim > 1 || fields(second.trim_ascii_end()).count() == 2).then_some((words, dim))
}

/// Numbers in a vector: the fewest fields behind the first of the lines at the beginning, as words with spaces have more.
fn dimension(text: &[u8]) -> usize {
    let lines = text.split(|&b| b == b'\n').take(DECIDING).filter(|line| !line.is_empty());
    lines.map(|line| fields(line).count().saturating_sub(1)).min().unwrap_or(0)
}

/// Cuts text into shares of whole lines, and leaves out what is not needed for `most` vectors.
fn shares(mut text: &[u8], most: usize) -> Vec<&[u8]> {
    let (mut shares, mut lines) = (Vec::new(), 0);
    while !text.is_empty() && lines < most {
        let size = SHARE.min(text.len());
        let end = size + line_end(&text[size..]);
        let share;
        (share, text) = text.split_at(end);
        // Counted only where it matters.
        lines += if most == usize::MAX { 0 } else { share.iter().filter(|&&b| b == b'\n').count() };
        shares.push(share);
    }
    shares
}

fn parse(share: &[u8], dim: usize) -> Result<Parsed, Fault> {
    let mut parsed = Parsed::default();
    for line in share.split_inclusive(|&b| b == b'\n') {
        let fault = |problem: String| (parsed.lines, problem);
        let line = std::str::from_utf8(line)
            .map_err(|_| fault("is not UTF-8; convert the file, for example with `iconv -t UTF-8`".into()))?;
        let line = line.trim_end_matches(['\n', '\r', ' ', '\t']);
        if line.is_empty() {
            parsed.lines += 1;
            continue;
        }
        let from = parsed.table.len();
        let mut rest = line;
        for found in 0..dim {
            let Some((before, number)) = rest.rsplit_once([' ', '\t']) else {
                return Err(fault(format!("has {found} numbers, the others have {dim}")));
            };
            let Some(value) = number.parse::<f32>().ok().filter(|x| x.is_finite()) else {
                let counted = fields(line.as_bytes()).count().saturating_sub(1);
                return Err(fault(match counted < dim {
                    true => format!("has {counted} numbers, the others have {dim}"),
                    false => format!("has {number:?}, which is no finite number"),
                }));
            };
            parsed.table.push(value);
            rest = before.trim_end_matches([' ', '\t']);
        }
        if rest.is_empty() {
            return Err(fault("has no word before its numbers".into()));
        }
        // A word with spaces, or one number too many?
        let number =
            |field: &str| field.starts_with(|c: char| "+-.0123456789".contains(c)) && field.parse::<f32>().is_ok();
        let mut more = rest.split([' ', '\t']).skip(1).peekable();
        if more.peek().is_some() && more.clone().all(number) {
            return Err(fault(format!("has {} numbers, the others have {dim}", dim + more.count())));
        }
        parsed.table[from..].reverse();
        parsed.words.push(rest.to_string());
        parsed.lines += 1;
    }
    Ok(parsed)
}
