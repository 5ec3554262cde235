//! Tables of texts with labels and ids, in any order of columns: what classifiers learn from and are asked about.
//!
//! A table is comma-separated where its name ends in `.csv`, else tab-separated. In the first, fields may stand in
//! quotation marks; in the second, quotation marks mean nothing. The first row names the columns where one is given by
//! name. A label is text; its number is its place in the list of labels, which goes into the checkpoint.

use super::Column;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Whether the first row names the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Header {
    /// Where a column is given by name.
    #[default]
    Auto,
    /// It does.
    Yes,
    /// It is a row like any other.
    No,
}

/// What stands between columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Separator {
    /// A tab; quotation marks mean nothing.
    Tab,
    /// A comma; fields may stand in quotation marks.
    Comma,
}

/// Where a table has what.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Columns {
    /// The texts.
    pub text: Column,
    /// Their labels; none: what is read has no labels.
    pub label: Option<Column>,
    /// What rows are called, for output.
    pub id: Option<Column>,
    /// Whether the first row names the columns.
    #[serde(default)]
    pub header: Header,
    /// What stands between columns; none: as the file's name says.
    #[serde(default)]
    pub separator: Option<Separator>,
}

impl Columns {
    /// These columns; header and separator as the columns and the file's name say.
    pub fn new(text: Column, label: Option<Column>, id: Option<Column>) -> Columns {
        Columns { text, label, id, header: Header::Auto, separator: None }
    }

    fn has_header(&self) -> Result<bool> {
        let all = [Some(&self.text), self.label.as_ref(), self.id.as_ref()];
        let named = all.into_iter().flatten().find(|column| matches!(column, Column::Name(_)));
        match (self.header, named) {
            (Header::No, Some(name)) => {
                let problem = format!("leaves no row in which {name:?} could be found", name = name.to_string());
                Err(Error::argument("--header no", problem, "give columns by number, or leave --header out"))
            }
            (Header::Yes, _) | (Header::Auto, Some(_)) => Ok(true),
            _ => Ok(false),
        }
    }
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// What it is called, where the table says.
    pub id: Option<String>,
    /// Its class: an index of [`Labelled::labels`]; none where the table has no labels.
    pub label: Option<u32>,
    /// Its text, as it is; it may be empty.
    pub text: String,
    /// The line at which it begins, from 1.
    pub line: usize,
}

/// What a table holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labelled {
    /// Labels in the order of their classes: those that were given; else those that were found, as numbers where all
    /// are integers, else by their bytes.
    pub labels: Vec<String>,
    /// Every row, in order.
    pub examples: Vec<Example>,
    /// What a user should hear.
    pub remarks: Vec<String>,
}

/// A row's cells, and the line at which it begins.
struct Row {
    cells: Vec<String>,
    line: usize,
}

/// Reads a table. `labels` are those that a checkpoint or the user knows; a table with others is refused.
///
/// # Errors
/// If the file cannot be read, is not UTF-8 or empty, lacks a column that was asked for, or has a row that lacks one, has
/// more columns than the first, has no label or one that is not known; the line is named.
pub fn read(path: &Path, columns: &Columns, labels: Option<&[String]>) -> Result<Labelled> {
    let has_header = columns.has_header()?;
    let bytes = std::fs::read(path)
        .map_err(|e| Error::file(path, format!("cannot be read: {}", e.kind()), "give a table that exists"))?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        Error::file(path, format!("is not UTF-8 in line {line}"), "convert it, for example with `iconv -t UTF-8`")
    })?;
    // Spreadsheets put a byte-order mark first, which would become part of the first cell.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let comma = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    let separator = columns.separator.unwrap_or(if comma { Separator::Comma } else { Separator::Tab });
    let mut remarks = Vec::new();
    let mut rows = match separator {
        Separator::Comma => commas(path, text)?,
        Separator::Tab => tabs(text, &mut remarks),
    }
    .into_iter();
    let table = Table::new(path, columns, if has_header { rows.next() } else { None })?;
    let (mut examples, mut found) = (Vec::new(), Vec::new());
    let mut width = table.width;
    for Row { mut cells, line } in rows {
        let width = *width.get_or_insert(cells.len());
        if cells.len() > width {
            let problem = format!("line {line} has {} columns, the first has {width}", cells.len());
            return Err(Error::file(path, problem, table.remedy(separator)));
        }
        let [text, label, id] = table.take(&mut cells, line)?;
        if let Some(label) = label {
            let label = label.trim();
            if label.is_empty() {
                let problem = format!("line {line} has no label");
                return Err(Error::file(path, problem, "fill it in, or leave --label-column out to predict"));
            }
            found.push(label.to_string());
        }
        examples.push(Example { id, label: None, text: text.expect("a text was asked for"), line });
    }
    if examples.is_empty() {
        return Err(Error::file(path, "has no rows", "give a table with one row for each text"));
    }
    let empty = examples.iter().filter(|e| e.text.trim().is_empty()).count();
    if empty > 0 {
        remarks.push(format!("{empty} of {} texts are empty", examples.len()));
    }
    let labels = classes(path, &mut examples, &found, labels, has_header, &mut remarks)?;
    Ok(Labelled { labels, examples, remarks })
}

/// Gives examples their classes, and says which there are.
fn classes(
    path: &Path,
    examples: &mut [Example],
    found: &[String],
    known: Option<&[String]>,
    has_header: bool,
    remarks: &mut Vec<String>,
) -> Result<Vec<String>> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    found.iter().for_each(|label| *counts.entry(label).or_default() += 1);
    let labels: Vec<String> = match known {
        Some(known) => known.to_vec(),
        None => {
            let mut labels: Vec<&str> = counts.keys().copied().collect();
            if labels.iter().all(|label| label.parse::<i64>().is_ok()) {
                labels.sort_by_key(|label| label.parse::<i64>().expect("just parsed"));
            }
            labels.into_iter().map(String::from).collect()
        }
    };
    let numbers: HashMap<&str, u32> = labels.iter().enumerate().map(|(i, label)| (label.as_str(), i as u32)).collect();
    for (example, label) in examples.iter_mut().zip(found) {
        let Some(&number) = numbers.get(label.as_str()) else {
            let problem = format!("line {} has the label {label:?}; known are {}", example.line, labels.join(", "));
            return Err(Error::file(path, problem, "correct it, or train with it"));
        };
        example.label = Some(number);
    }
    if !found.is_empty() {
        for label in labels.iter().filter(|label| !counts.contains_key(label.as_str())) {
            remarks.push(format!("the label {label:?} never occurs"));
        }
        let first = found[0].as_str();
        if !has_header && known.is_none() && counts.len() > 2 && counts[first] == 1 {
            remarks
                .push(format!("the label {first:?} occurs in the first line only; if it is a name, give --header yes"));
        }
    }
    Ok(labels)
}

/// Where in a row the columns are.
struct Table<'a> {
    path: &'a Path,
    /// Flag, column and place: text, label, id.
    places: [(&'static str, Option<(&'a Column, usize)>); 3],
    /// Columns of the first row, where that has been read.
    width: Option<usize>,
}

impl<'a> Table<'a> {
    fn new(path: &'a Path, columns: &'a Columns, header: Option<Row>) -> Result<Table<'a>> {
        let names = header.as_ref().map_or(&[][..], |row| &row.cells);
        let place = |flag: &'static str, column: Option<&'a Column>| {
            let index = match column {
                None => return Ok((flag, None)),
                Some(Column::Number(n)) => n - 1,
                Some(Column::Name(name)) => names.iter().position(|n| n.trim() == name).ok_or_else(|| {
                    let problem = format!("has no column {name:?} in its first line: {}", names.join(", "));
                    Error::file(path, problem, format!("give {flag} one of them, or a number"))
                })?,
            };
            Ok((flag, column.map(|c| (c, index))))
        };
        let places = [
            place("--text-column", Some(&columns.text))?,
            place("--label-column", columns.label.as_ref())?,
            place("--id-column", columns.id.as_ref())?,
        ];
        Ok(Table { path, places, width: header.map(|row| row.cells.len()) })
    }

    /// Text, label and id of a row.
    fn take(&self, cells: &mut [String], line: usize) -> Result<[Option<String>; 3]> {
        let have = cells.len();
        let mut taken = [None, None, None];
        // One column may be asked for twice, so a cell is copied.
        for (taken, (flag, place)) in taken.iter_mut().zip(&self.places) {
            let Some((column, index)) = place else { continue };
            let cell = cells.get(*index).ok_or_else(|| {
                let problem = format!("line {line} has {have} columns, {flag} is {column}");
                Error::file(self.path, problem, "repair the line, or give another column")
            })?;
            *taken = Some(cell.clone());
        }
        Ok(taken)
    }

    fn remedy(&self, separator: Separator) -> &'static str {
        match separator {
            Separator::Tab => "remove the tab from the text, or make it a CSV file with quotation marks",
            Separator::Comma => "put the text in quotation marks",
        }
    }
}

/// Rows that tabs separate; blank lines are counted.
fn tabs(text: &str, remarks: &mut Vec<String>) -> Vec<Row> {
    let (mut rows, mut blank) = (Vec::new(), 0);
    for (i, line) in text.split_terminator('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            blank += 1;
            continue;
        }
        rows.push(Row { cells: line.split('\t').map(String::from).collect(), line: i + 1 });
    }
    if blank > 0 {
        remarks.push(format!("left out: {blank} blank lines"));
    }
    rows
}

/// Rows that commas separate, whose fields may stand in quotation marks (RFC 4180).
fn commas(path: &Path, text: &str) -> Result<Vec<Row>> {
    let (mut rows, mut line, mut counted) = (Vec::new(), 1, 0);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    for record in reader.records() {
        let record = record.map_err(|e| Error::file(path, format!("is no table: {e}"), "repair it"))?;
        // A row is said to begin where the last one ended, before blank lines.
        let from = record.position().map_or(0, |p| p.byte() as usize).min(text.len());
        let begin = from + text.as_bytes()[from..].iter().take_while(|&&b| b == b'\n' || b == b'\r').count();
        line += text.as_bytes()[counted..begin].iter().filter(|&&b| b == b'\n').count();
        counted = begin;
        rows.push(Row { cells: record.iter().map(String::from).collect(), line });
    }
    // A mark that is never closed takes all that follows for one field.
    let open = text.bytes().filter(|&b| b == b'"').count() % 2 == 1;
    if let Some(row) = rows.last().filter(|row| open && row.cells.last().is_some_and(|cell| cell.contains('\n'))) {
        let problem = format!("a quotation mark of the row at line {} is never closed", row.line);
        return Err(Error::file(path, problem, "close it; within a field, write it twice"));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(text: &str, label: &str, id: &str) -> Columns {
        let column = |c: &str| (!c.is_empty()).then(|| c.parse().unwrap());
        Columns::new(text.parse().unwrap(), column(label), column(id))
    }

    fn table(name: &str, bytes: impl AsRef<[u8]>, columns: &Columns, labels: Option<&[&str]>) -> Result<Labelled> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let labels = labels.map(|labels| labels.iter().map(|&l| l.into()).collect::<Vec<String>>());
        read(&path, columns, labels.as_deref())
    }

    fn problem(name: &str, bytes: impl AsRef<[u8]>, columns: &Columns, labels: Option<&[&str]>) -> String {
        table(name, bytes, columns, labels).unwrap_err().to_string()
    }

    fn rows(found: &Labelled) -> Vec<(Option<&str>, Option<u32>, &str, usize)> {
        found.examples.iter().map(|e| (e.id.as_deref(), e.label, e.text.as_str(), e.line)).collect()
    }

    #[test]
    fn any_order_of_columns_is_read() {
        let found = table("t.tsv", "7\tpos\ta \"b\r\n\n8\tneg\t\n9\tpos\tc", &columns("3", "2", "1"), None).unwrap();
        assert_eq!(found.labels, ["neg", "pos"]);
        assert_eq!(
            rows(&found),
            [(Some("7"), Some(1), "a \"b", 1), (Some("8"), Some(0), "", 3), (Some("9"), Some(1), "c", 4)]
        );
        assert_eq!(found.remarks, ["left out: 1 blank lines", "1 of 3 texts are empty"]);

        let csv = "\u{feff}text,stars\n\"one, \"\"two\"\"\nthree\",10\nfour,9\n";
        let found = table("t.CSV", csv, &columns("text", "stars", ""), None).unwrap();
        assert_eq!(found.labels, ["9", "10"], "integers are sorted as numbers");
        assert_eq!(rows(&found), [(None, Some(1), "one, \"two\"\nthree", 2), (None, Some(0), "four", 4)]);

        // Without labels, and with the separator and the header said.
        let mut unlabelled = columns("2", "", "1");
        (unlabelled.header, unlabelled.separator) = (Header::Yes, Some(Separator::Comma));
        let found = table("t.txt", "id,text\n1,a\n", &unlabelled, None).unwrap();
        assert_eq!((rows(&found), found.labels.len()), (vec![(Some("1"), None, "a", 2)], 0));
    }

    #[test]
    fn known_labels_keep_their_order() {
        let found = table("t.tsv", "a\tneg\nb\tneg\n", &columns("1", "2", ""), Some(&["pos", "neg"])).unwrap();
        assert_eq!(found.examples[0].label, Some(1));
        assert_eq!(found.remarks, ["the label \"pos\" never occurs"]);
        let error = problem("t.tsv", "a\tneg\nb\tbad\n", &columns("1", "2", ""), Some(&["pos", "neg"]));
        assert!(error.contains("t.tsv: line 2 has the label \"bad\"; known are pos, neg;"), "{error}");
        let found = table("t.tsv", "text\tlabel\na\t1\nb\t0\n", &columns("1", "2", ""), None).unwrap();
        assert!(found.remarks[0].contains("\"label\" occurs in the first line only"), "{:?}", found.remarks);
    }

    #[test]
    fn bad_rows_are_named_by_line() {
        let both = columns("1", "2", "");
        for (name, text, expected) in [
            ("t.tsv", "a\t1\nb\n", "line 2 has 1 columns, --label-column is 2"),
            ("t.tsv", "a\t1\nb\tc\t0\n", "line 2 has 3 columns, the first has 2"),
            ("t.csv", "a,1\n\nb,c,0\n", "line 3 has 3 columns, the first has 2"),
            ("t.csv", "a,1\n\"b\nc\",\n", "line 2 has no label"),
            ("t.csv", "a,1\n0,\"b\nc,1\n", "a quotation mark of the row at line 2 is never closed"),
            ("t.tsv", "a\t \n", "line 1 has no label"),
            ("t.tsv", "\n", "has no rows"),
        ] {
            let error = problem(name, text, &both, None);
            assert!(error.contains(expected), "{error}");
        }
        assert!(problem("t.tsv", b"a\t1\nb\xff\t1\n", &both, None).contains("is not UTF-8 in line 2"));
        let error = problem("t.csv", "words,label\na,1\n", &columns("text", "label", ""), None);
        assert!(
            error.contains("no column \"text\" in its first line: words, label; give --text-column one"),
            "{error}"
        );
        let mut no_header = columns("text", "2", "");
        no_header.header = Header::No;
        assert!(problem("t.csv", "a,1\n", &no_header, None).contains("--header no: leaves no row"));
        assert!(read(Path::new("/none/t.tsv"), &both, None).unwrap_err().to_string().contains("cannot be read"));
    }
}
