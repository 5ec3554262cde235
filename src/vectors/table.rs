//! Vectors as a tensor of a state dict or a safetensors file, with a JSON file of words beside it.

use super::{ReadOptions, WordVectors};
use crate::data::words::rows_of;
use crate::error::{Error, Result};
use crate::io::{pytorch, tensors, tensors::Loaded};
use crate::run_spec::Given;
use std::collections::BTreeMap;
use std::path::Path;

/// The tensor that is taken where none is named: the vectors of words in the middle, as `attn embed train` calls them.
pub const TARGET: &str = "target_embeddings.weight";

/// Reads the vectors of the words that the index names.
pub fn read(path: &Path, is_pytorch: bool, options: &ReadOptions, remarks: &mut Vec<String>) -> Result<WordVectors> {
    let Some(index) = &options.word_index else {
        let remedy = "give --word-index FILE, JSON that says which word has which row";
        return Err(Error::file(path, "holds vectors without their words", remedy));
    };
    let mut all = if is_pytorch { pytorch::read(path)? } else { tensors::read(path)? };
    let key = key(path, &all, options.embedding_key.as_deref())?;
    let Some(Loaded { given: Given::Real(shape, values), .. }) = all.remove(&key) else {
        return Err(Error::file(path, format!("tensor `{key}` holds integers"), "give --embedding-key another"));
    };
    let (rows, dim) = match shape[..] {
        [rows, dim] if rows > 0 && dim > 0 => (rows, dim),
        _ => {
            let problem = format!("tensor `{key}` has shape {shape:?}, which is no table of words' vectors");
            return Err(Error::file(path, problem, "give --embedding-key a matrix (words, numbers)"));
        }
    };
    let mut named = rows_of(index)?;
    if let Some((row, word)) = named.last().filter(|(row, _)| *row as usize >= rows) {
        let problem = format!("says that {word:?} has row {row}, and tensor `{key}` of {} has {rows}", path.display());
        return Err(Error::file(index, problem, "give the index that belongs to the vectors"));
    }
    if named.len() < rows {
        remarks.push(format!("left out: {} of {rows} vectors have no word in {}", rows - named.len(), index.display()));
    }
    named.truncate(options.first.unwrap_or(usize::MAX));
    let mut vectors = WordVectors { dim, ..Default::default() };
    for (row, word) in named {
        let values = &values[row as usize * dim..][..dim];
        if !values.iter().all(|x| x.is_finite()) {
            let problem = format!("the vector of {word:?}, row {row} of `{key}`, has a number that is not finite");
            return Err(Error::file(path, problem, "train it again"));
        }
        vectors.table.extend(values.iter().map(|&x| x as f32));
        vectors.words.push(word);
    }
    Ok(vectors)
}

/// Which tensor is meant.
fn key(path: &Path, all: &BTreeMap<String, Loaded>, asked: Option<&str>) -> Result<String> {
    let names = || all.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let matrices = || all.iter().filter(|(_, t)| t.given.shape().len() == 2).map(|(name, _)| name);
    match asked {
        Some(asked) if all.contains_key(asked) => Ok(asked.into()),
        Some(asked) => {
            let problem = format!("is not among the tensors of {}: {}", path.display(), names());
            Err(Error::argument(format!("--embedding-key {asked}"), problem, "give one of them"))
        }
        None if all.contains_key(TARGET) => Ok(TARGET.into()),
        None if matrices().count() == 1 => Ok(matrices().next().expect("just counted").clone()),
        None => {
            let problem = format!("holds no `{TARGET}`, but {}", names());
            Err(Error::file(path, problem, "say with --embedding-key which holds the vectors"))
        }
    }
}
