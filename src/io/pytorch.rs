//! PyTorch's `.pt` files of tensors: what `torch.save` writes of a state dict, read and written without Python.
//!
//! Such a file is a zip archive, uncompressed: `NAME/data.pkl` says in Python's pickle language which tensors there are,
//! and `NAME/data/KEY` holds the elements of each storage. Pickle is a small stack machine that can call any function of
//! Python; files from others are therefore dangerous to load there. This reader executes nothing: it knows the opcodes and
//! the five names that dictionaries of tensors are made of, and refuses every other, naming it.
//! (Opcodes: CPython's `Lib/pickletools.py`; names: PyTorch's `torch/_utils.py` and `torch/serialization.py`.)

mod pickle;

use super::Target;
use super::tensors::Loaded;
use crate::error::{Error, Result};
use pickle::{Machine, Tensor, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read, Seek, Write};
use std::path::Path;
use std::rc::Rc;
use zip::ZipArchive;

/// How files began before PyTorch 1.6, which were no archives: a pickle of a magic number.
const OLD: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
const SAVE_AGAIN: &str = "save it with torch.save(model.state_dict(), FILE)";

/// Reads every tensor of a `.pt` file, by name. Names within nested dictionaries are joined by dots.
///
/// # Errors
/// If the file cannot be read, is damaged or of the format before PyTorch 1.6, or holds anything but tensors.
pub fn read(path: &Path) -> Result<BTreeMap<String, Loaded>> {
    let unreadable =
        |e: std::io::Error| Error::file(path, format!("cannot be read: {}", e.kind()), "give a .pt file that exists");
    let bytes = std::fs::read(path).map_err(unreadable)?;
    parse(&bytes).map_err(|(problem, remedy)| Error::file(path, problem, remedy))
}

/// What is wrong with a file, and what to do.
type Refusal = (String, &'static str);

fn refuse<T>(problem: impl Into<String>) -> Result<T, Refusal> {
    Err((problem.into(), SAVE_AGAIN))
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Loaded>, Refusal> {
    if bytes.starts_with(OLD) {
        let remedy = "convert it: torch.save(torch.load(FILE, weights_only=True), NEW_FILE)";
        return Err(("is in PyTorch's format of before 1.6".into(), remedy));
    }
    let mut archive = ZipArchive::new(Cursor::new(bytes))
        .map_err(|e| (format!("is no zip archive, as .pt files are: {e}"), SAVE_AGAIN))?;
    let names = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned()));
    let Some(prefix) = names.filter_map(|name| Some(name.strip_suffix("data.pkl")?.to_string())).next() else {
        return refuse("is a zip archive without data.pkl");
    };
    if let Ok(order) = entry(&mut archive, &format!("{prefix}byteorder"))
        && order != b"little"
    {
        return refuse("was written on a big-endian machine");
    }
    let pickle = entry(&mut archive, &format!("{prefix}data.pkl"))?;
    let mut machine = Machine::new(&pickle);
    let top = machine.run().map_err(|problem| (problem, SAVE_AGAIN))?;
    let Value::Dict(top) = top else { return refuse("holds no dictionary of tensors") };
    let mut found = Vec::new();
    flatten(&machine.dicts, (top, "", 0), &mut BTreeSet::new(), &mut found)?;
    let mut storages: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut loaded = BTreeMap::new();
    for (name, tensor) in found {
        let key = &tensor.storage.key;
        if !storages.contains_key(key) {
            storages.insert(key.clone(), entry(&mut archive, &format!("{prefix}data/{key}"))?);
        }
        let values = tensor.values(&storages[key]).map_err(|p| (format!("tensor `{name}` {p}"), SAVE_AGAIN))?;
        loaded.insert(name, values);
    }
    Ok(loaded)
}

fn entry<R: Read + Seek>(archive: &mut ZipArchive<R>, name: &str) -> Result<Vec<u8>, Refusal> {
    let damaged = |e: &dyn std::fmt::Display| (format!("is damaged: entry {name}: {e}"), SAVE_AGAIN);
    let mut file = archive.by_name(name).map_err(|e| damaged(&e))?;
    let mut bytes = Vec::new();
    // Checks the entry's CRC, too.
    file.read_to_end(&mut bytes).map_err(|e| damaged(&e))?;
    Ok(bytes)
}

/// How deep dictionaries may lie in each other.
const DEEPEST: usize = 8;

/// Names and tensors of a dictionary and of those in it.
fn flatten(
    dicts: &[Vec<(Value, Value)>],
    (dict, prefix, depth): (usize, &str, usize),
    seen: &mut BTreeSet<usize>,
    found: &mut Vec<(String, Rc<Tensor>)>,
) -> Result<(), Refusal> {
    // One that holds itself, or others over and over, would never end.
    if !seen.insert(dict) || depth > DEEPEST {
        return refuse(format!("holds the dictionary `{prefix}` more than once, or too deep"));
    }
    for (key, value) in &dicts[dict] {
        let Value::Text(key) = key else { return refuse(format!("has a key in `{prefix}` that is no text")) };
        let name = if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") };
        match value {
            Value::Tensor(tensor) => found.push((name, tensor.clone())),
            Value::Dict(inner) => flatten(dicts, (*inner, &name, depth + 1), seen, found)?,
            _ => return refuse(format!("holds more than tensors: `{name}` is none")),
        }
    }
    Ok(())
}

/// Writes tensors (name, shape, values rounded to f32) as a `.pt` file that `torch.load` reads with `weights_only=True`,
/// whole or not at all.
///
/// # Errors
/// If the system refuses.
pub fn write(target: &Target, tensors: &[(String, Vec<usize>, Vec<f64>)]) -> Result<()> {
    target.write(|w| w.write_all(&encode(tensors).map_err(std::io::Error::other)?))
}

/// What [`write()`] writes.
///
/// # Errors
/// If the archive cannot be made.
pub fn encode(tensors: &[(String, Vec<usize>, Vec<f64>)]) -> zip::result::ZipResult<Vec<u8>> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    // As PyTorch aligns storages. Without a clock, so that the same tensors give the same bytes.
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::default())
        .with_alignment(64);
    let mut add = |name: &str, bytes: &[u8]| -> zip::result::ZipResult<()> {
        archive.start_file(format!("archive/{name}"), options.large_file(bytes.len() as u64 >= u32::MAX as u64))?;
        Ok(archive.write_all(bytes)?)
    };
    add("data.pkl", &pickle(tensors))?;
    add("byteorder", b"little")?;
    for (key, (_, _, values)) in tensors.iter().enumerate() {
        let bytes: Vec<u8> = values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
        add(&format!("data/{key}"), &bytes)?;
    }
    add("version", b"3\n")?;
    Ok(archive.finish()?.into_inner())
}

/// An ordered dictionary of f32 tensors, as protocol 2 has it.
fn pickle(tensors: &[(String, Vec<usize>, Vec<f64>)]) -> Vec<u8> {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    }
    fn int(out: &mut Vec<u8>, n: usize) {
        if n <= i32::MAX as usize {
            out.push(b'J');
            out.extend((n as u32).to_le_bytes());
        } else {
            // The last byte's highest bit says that it is not negative.
            out.extend([0x8a, 8]);
            out.extend((n as u64).to_le_bytes());
        }
    }
    let mut out = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (key, (name, shape, values)) in tensors.iter().enumerate() {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(b"ctorch\nFloatStorage\n");
        text(&mut out, &key.to_string());
        text(&mut out, "cpu");
        int(&mut out, values.len());
        out.extend(b"tQ");
        int(&mut out, 0);
        out.push(b'(');
        shape.iter().for_each(|&n| int(&mut out, n));
        out.extend(b"t(");
        crate::cpu::strided::contiguous_strides(shape).into_iter().for_each(|n| int(&mut out, n));
        out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::tensors::Dtype;
    use crate::run_spec::Given;
    use half::bf16;

    fn archive(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file("x/data.pkl", options).unwrap();
        archive.write_all(pickle).unwrap();
        for (key, bytes) in storages {
            archive.start_file(format!("x/data/{key}"), options).unwrap();
            archive.write_all(bytes).unwrap();
        }
        archive.finish().unwrap().into_inner()
    }

    fn problem(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err().0
    }

    #[test]
    fn what_is_written_is_read() {
        let tensors = [
            ("a.weight".to_string(), vec![2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, -0.5]),
            ("scalar".to_string(), vec![], vec![7.0]),
            ("none".to_string(), vec![0, 4], vec![]),
        ];
        let read = parse(&encode(&tensors).unwrap()).unwrap();
        assert_eq!(read.len(), 3);
        for (name, shape, values) in tensors {
            assert_eq!(read[&name].given, Given::Real(shape, values));
            assert_eq!(read[&name].dtype, Some(Dtype::F32));
        }
    }

    /// One tensor `t` of a storage of bf16, with these sizes, strides and offset, as protocol 2 pickles it.
    fn one(offset: u8, shape: [u8; 2], strides: [u8; 2]) -> Vec<u8> {
        let mut out =
            b"\x80\x02}(X\x01\x00\x00\x00tctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage".to_vec();
        out.extend(b"ctorch\nBFloat16Storage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ");
        out.extend([b'K', offset, b'K', shape[0], b'K', shape[1], 0x86, b'K', strides[0], b'K', strides[1], 0x86]);
        out.extend(b"\x89}tRu.");
        out
    }

    #[test]
    fn views_are_read_by_their_strides() {
        let storage: Vec<u8> = (0..6).flat_map(|i| bf16::from_f64(i as f64).to_le_bytes()).collect();
        let read = |pickle: &[u8]| parse(&archive(pickle, &[("0", &storage)]));
        let given = |pickle: Vec<u8>| read(&pickle).unwrap()["t"].given.clone();
        assert_eq!(given(one(0, [2, 3], [1, 2])), Given::Real(vec![2, 3], vec![0.0, 2.0, 4.0, 1.0, 3.0, 5.0]));
        assert_eq!(given(one(3, [1, 3], [9, 1])), Given::Real(vec![1, 3], vec![3.0, 4.0, 5.0]));
        assert!(read(&one(1, [2, 3], [1, 2])).unwrap_err().0.contains("`t` reaches past its storage"));
        assert!(read(&one(0, [200, 200], [0, 0])).unwrap_err().0.contains("`t` has 40000 elements of a storage of 6"));
    }

    #[test]
    fn nothing_is_executed() {
        // os.system("…"), as a malicious file would have it.
        let evil = archive(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", &[]);
        assert!(problem(&evil).contains("it names `os.system`, which no tensor needs; nothing was executed"));
        let protocol_4 = archive(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", &[]);
        assert!(problem(&protocol_4).contains("`builtins.eval`"));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(problem(b"hello").contains("is no zip archive"));
        assert!(problem(&[OLD, b"..."].concat()).contains("before 1.6"));
        assert!(problem(&archive(b"\x80\x02K\x01.", &[])).contains("no dictionary"));
        assert!(problem(&archive(b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", &[])).contains("`a` is none"));
        assert!(problem(&archive(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", &[])).contains("more than once"));
        assert!(problem(&archive(b"\x80\x02}(X\xff\x00\x00\x00a", &[])).contains("ends too early"));
        assert!(problem(&archive(&one(0, [2, 3], [1, 2]), &[])).contains("entry x/data/0"));
    }
}
