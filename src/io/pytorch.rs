//! PyTorch's `.pt` files of tensors: what `torch.save` writes of a state dict, read and written without Python.
//!
//! Such a file is a zip archive, uncompressed: `NAME/data.pkl` says in Python's pickle language which tensors there are,
//! and `NAME/data/KEY` holds the elements of each storage. Pickle is a small stack machine that can call any function of
//! Python; files from others are therefore dangerous to load there. This reader executes nothing: it knows the opcodes and
//! the five names that dictionaries of tensors are made of, and refuses every other, naming it.
//! (Opcodes: CPython's `Lib/pickletools.py`; names: PyTorch's `torch/_utils.py` and `torch/serialization.py`.)

use super::Target;
use super::tensors::{Dtype, Loaded};
use crate::error::{Error, Result};
use crate::run_spec::Given;
use half::{bf16, f16};
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
    let Value::Dict(top) = machine.run()? else { return refuse("holds no dictionary of tensors") };
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

/// What the pickle's stack holds. Tuples and dictionaries lie in the machine, by number: values that own each other could be
/// nested so deep that dropping them overflows the stack.
#[derive(Debug, Clone)]
enum Value {
    /// None, a boolean, a float: nothing that a tensor is made of is in it, or its value does not matter.
    Other,
    Int(i64),
    Text(Rc<str>),
    Tuple(usize),
    Dict(usize),
    Name(Name),
    Storage(Rc<Storage>),
    Tensor(Rc<Tensor>),
    /// Where a group begins.
    Mark,
}

/// The names that a state dict needs.
#[derive(Debug, Clone, Copy)]
enum Name {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Element),
}

/// What a storage holds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Element {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Element::F64 | Element::I64 => 8,
            Element::F32 | Element::I32 => 4,
            Element::F16 | Element::Bf16 | Element::I16 => 2,
            Element::I8 | Element::U8 | Element::Bool => 1,
        }
    }
}

impl Name {
    fn of(module: &str, name: &str) -> Option<Name> {
        let element = match (module, name) {
            ("collections", "OrderedDict") => return Some(Name::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => return Some(Name::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => return Some(Name::RebuildParameter),
            ("torch", "DoubleStorage") => Element::F64,
            ("torch", "FloatStorage") => Element::F32,
            ("torch", "HalfStorage") => Element::F16,
            ("torch", "BFloat16Storage") => Element::Bf16,
            ("torch", "LongStorage") => Element::I64,
            ("torch", "IntStorage") => Element::I32,
            ("torch", "ShortStorage") => Element::I16,
            ("torch", "CharStorage") => Element::I8,
            ("torch", "ByteStorage") => Element::U8,
            ("torch", "BoolStorage") => Element::Bool,
            _ => return None,
        };
        Some(Name::Storage(element))
    }
}

#[derive(Debug)]
struct Storage {
    element: Element,
    key: String,
}

/// A strided view of a storage.
#[derive(Debug)]
struct Tensor {
    storage: Rc<Storage>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Tensor {
    /// Its elements in row-major order, or what is wrong.
    fn values(&self, bytes: &[u8]) -> Result<Loaded, String> {
        let held = bytes.len() / self.storage.element.bytes();
        let numel =
            self.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).ok_or("has too many elements")?;
        // One element past the last that the strides reach.
        let end = self.shape.iter().zip(&self.strides).try_fold(self.offset.checked_add(1), |end, (&n, &stride)| {
            Some(Some(end?.checked_add(n.saturating_sub(1).checked_mul(stride)?)?))
        });
        if numel > held {
            return Err(format!("has {numel} elements of a storage of {held}: give it a copy with .contiguous()"));
        }
        if numel > 0 && end.flatten().is_none_or(|end| end > held) {
            return Err("reaches past its storage".into());
        }
        let element = |mut i: usize| {
            let mut at = self.offset;
            for (&n, &stride) in self.shape.iter().zip(&self.strides).rev() {
                at += i % n * stride;
                i /= n;
            }
            at
        };
        fn all<const N: usize, T>(
            bytes: &[u8],
            numel: usize,
            at: impl Fn(usize) -> usize,
            of: impl Fn([u8; N]) -> T,
        ) -> Vec<T> {
            (0..numel).map(|i| of(bytes[at(i) * N..][..N].try_into().expect("N bytes"))).collect()
        }
        let shape = self.shape.clone();
        let real = |dtype, values| Ok(Loaded { given: Given::Real(shape.clone(), values), dtype: Some(dtype) });
        let ints = |values| Ok(Loaded { given: Given::Int(shape.clone(), values), dtype: None });
        match self.storage.element {
            Element::F64 => real(Dtype::F64, all(bytes, numel, element, f64::from_le_bytes)),
            Element::F32 => real(Dtype::F32, all(bytes, numel, element, |b| f32::from_le_bytes(b) as f64)),
            Element::F16 => real(Dtype::F16, all(bytes, numel, element, |b| f16::from_le_bytes(b).to_f64())),
            Element::Bf16 => real(Dtype::Bf16, all(bytes, numel, element, |b| bf16::from_le_bytes(b).to_f64())),
            Element::I64 => ints(all(bytes, numel, element, i64::from_le_bytes)),
            Element::I32 => ints(all(bytes, numel, element, |b| i32::from_le_bytes(b) as i64)),
            Element::I16 => ints(all(bytes, numel, element, |b| i16::from_le_bytes(b) as i64)),
            Element::I8 => ints(all(bytes, numel, element, |[b]: [u8; 1]| b as i8 as i64)),
            Element::U8 => ints(all(bytes, numel, element, |[b]: [u8; 1]| b as i64)),
            Element::Bool => ints(all(bytes, numel, element, |[b]: [u8; 1]| (b != 0) as i64)),
        }
    }
}

/// The pickle machine, as far as dictionaries of tensors need it.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: BTreeMap<usize, Value>,
    tuples: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Machine { bytes, at: 0, stack: vec![], memo: BTreeMap::new(), tuples: vec![], dicts: vec![] }
    }

    fn run(&mut self) -> Result<Value, Refusal> {
        loop {
            let at = self.at;
            match self.step() {
                Ok(None) => {}
                Ok(Some(value)) => return Ok(value),
                Err(problem) => {
                    return refuse(format!(
                        "holds more than tensors, or is damaged: at byte {at} of data.pkl, {problem}"
                    ));
                }
            }
        }
    }

    fn take(&mut self, n: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len()).ok_or("it ends too early")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of `n` bytes, at most 8.
    fn number(&mut self, n: usize) -> Result<usize, String> {
        let value = self.take(n)?.iter().rev().try_fold(0usize, |x, &b| Some(x.checked_mul(256)? | b as usize));
        value.ok_or_else(|| "a number is too large".into())
    }

    fn text(&mut self, length: usize) -> Result<Value, String> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "text is not UTF-8")?;
        Ok(Value::Text(text.into()))
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').ok_or("a line does not end")?;
        let line = String::from_utf8(rest[..length].to_vec()).map_err(|_| "a name is not UTF-8")?;
        self.at += length + 1;
        Ok(line)
    }

    fn pop(&mut self) -> Result<Value, String> {
        match self.stack.pop() {
            None | Some(Value::Mark) => Err("the stack is empty".into()),
            Some(value) => Ok(value),
        }
    }

    /// All values above the last mark.
    fn group(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.stack.iter().rposition(|v| matches!(v, Value::Mark)).ok_or("a group has no beginning")?;
        let group = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(group)
    }

    fn top_dict(&mut self) -> Result<&mut Vec<(Value, Value)>, String> {
        match self.stack.last() {
            Some(Value::Dict(dict)) => Ok(&mut self.dicts[*dict]),
            _ => Err("items are set of what is no dictionary".into()),
        }
    }

    fn set(&mut self, items: Vec<Value>) -> Result<(), String> {
        if !items.len().is_multiple_of(2) {
            return Err("a key has no value".into());
        }
        let dict = self.top_dict()?;
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            dict.push((key, value));
        }
        Ok(())
    }

    fn tuple(&mut self, items: Vec<Value>) -> Value {
        self.tuples.push(items);
        Value::Tuple(self.tuples.len() - 1)
    }

    fn dict(&mut self) -> Value {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    /// The items of a tuple.
    fn items(&self, value: &Value, what: &str) -> Result<&[Value], String> {
        match value {
            Value::Tuple(tuple) => Ok(&self.tuples[*tuple]),
            _ => Err(format!("{what} is no tuple")),
        }
    }

    fn remember(&mut self, key: usize) -> Result<(), String> {
        let value = self.stack.last().cloned().ok_or("the stack is empty")?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn name(module: &str, name: &str) -> Result<Value, String> {
        let known = Name::of(module, name).map(Value::Name);
        known.ok_or_else(|| format!("it names `{module}.{name}`, which no tensor needs; nothing was executed"))
    }

    /// Executes an opcode; gives the result at the last one.
    fn step(&mut self) -> Result<Option<Value>, String> {
        let opcode = self.take(1)?[0];
        let value = match opcode {
            0x80 => return self.take(1).map(|_| None),                // PROTO
            0x95 => return self.take(8).map(|_| None),                // FRAME
            b'.' => return self.pop().map(Some),                      // STOP
            b'0' => return self.pop().map(|_| None),                  // POP
            b'(' => Value::Mark,                                      // MARK
            b'N' | 0x88 | 0x89 => Value::Other,                       // NONE, NEWTRUE, NEWFALSE
            b'G' => self.take(8).map(|_| Value::Other)?,              // BINFLOAT
            b'K' => Value::Int(self.number(1)? as i64),               // BININT1
            b'M' => Value::Int(self.number(2)? as i64),               // BININT2
            b'J' => Value::Int(self.number(4)? as u32 as i32 as i64), // BININT
            0x8a => {
                // LONG1: two's complement.
                let n = self.number(1)?;
                let negative = n > 0 && self.bytes.get(self.at + n - 1).is_some_and(|b| b & 0x80 != 0);
                if n > 8 || negative {
                    return Err("an integer is negative or too large".into());
                }
                Value::Int(self.number(n)? as i64)
            }
            b'X' => {
                // BINUNICODE
                let n = self.number(4)?;
                self.text(n)?
            }
            0x8c => {
                // SHORT_BINUNICODE
                let n = self.number(1)?;
                self.text(n)?
            }
            b')' => self.tuple(Vec::new()), // EMPTY_TUPLE
            b't' => {
                // TUPLE
                let items = self.group()?;
                self.tuple(items)
            }
            0x85..=0x87 => {
                // TUPLE1 to TUPLE3
                let n = opcode as usize - 0x84;
                let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.tuple(items)
            }
            b'}' => self.dict(), // EMPTY_DICT
            b's' => {
                // SETITEM
                let value = self.pop()?;
                let key = self.pop()?;
                return self.set(vec![key, value]).map(|()| None);
            }
            b'u' => {
                // SETITEMS
                let items = self.group()?;
                return self.set(items).map(|()| None);
            }
            b'c' => {
                // GLOBAL
                let (module, name) = (self.line()?, self.line()?);
                Self::name(&module, &name)?
            }
            0x93 => {
                // STACK_GLOBAL
                match (self.pop()?, self.pop()?) {
                    (Value::Text(name), Value::Text(module)) => Self::name(&module, &name)?,
                    _ => return Err("a name is no text".into()),
                }
            }
            b'q' => {
                // BINPUT
                let key = self.number(1)?;
                return self.remember(key).map(|()| None);
            }
            b'r' => {
                // LONG_BINPUT
                let key = self.number(4)?;
                return self.remember(key).map(|()| None);
            }
            0x94 => {
                // MEMOIZE
                let key = self.memo.len();
                return self.remember(key).map(|()| None);
            }
            b'h' | b'j' => {
                // BINGET, LONG_BINGET
                let key = self.number(if opcode == b'h' { 1 } else { 4 })?;
                self.memo.get(&key).cloned().ok_or("it reads what it did not write")?
            }
            b'Q' => {
                // BINPERSID
                let id = self.pop()?;
                self.storage(&id)?
            }
            b'R' => {
                // REDUCE
                let arguments = self.pop()?;
                match self.pop()? {
                    Value::Name(name) => self.call(name, &arguments)?,
                    _ => return Err("it calls what is no function".into()),
                }
            }
            b'b' => {
                // BUILD: attributes of a dictionary, such as a state dict's versions.
                self.pop()?;
                return self.top_dict().map(|_| None);
            }
            other => return Err(format!("opcode {other:#04x} is none that tensors need")),
        };
        self.stack.push(value);
        Ok(None)
    }
}

impl Machine<'_> {
    /// From ("storage", type, key, place, number of elements).
    fn storage(&self, id: &Value) -> Result<Value, String> {
        match self.items(id, "a storage")? {
            [Value::Text(kind), Value::Name(Name::Storage(element)), Value::Text(key), ..] if **kind == *"storage" => {
                Ok(Value::Storage(Rc::new(Storage { element: *element, key: key.to_string() })))
            }
            _ => Err("a storage is described in another way".into()),
        }
    }

    fn sizes(&self, value: &Value) -> Result<Vec<usize>, String> {
        let size = |item: &Value| match item {
            Value::Int(n) if *n >= 0 => Ok(*n as usize),
            _ => Err("a size is no integer of 0 or more".to_string()),
        };
        self.items(value, "a size")?.iter().map(size).collect()
    }

    fn call(&mut self, name: Name, arguments: &Value) -> Result<Value, String> {
        match (name, self.items(arguments, "an argument list")?) {
            (Name::OrderedDict, []) => Ok(self.dict()),
            // (storage, offset, sizes, strides, requires_grad, hooks)
            (Name::RebuildTensor, [Value::Storage(storage), Value::Int(offset), shape, strides, ..])
                if *offset >= 0 =>
            {
                let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
                if shape.len() != strides.len() || shape.len() > 64 {
                    return Err("a tensor's sizes and strides do not fit".into());
                }
                let (storage, offset) = (storage.clone(), *offset as usize);
                Ok(Value::Tensor(Rc::new(Tensor { storage, offset, shape, strides })))
            }
            // (data, requires_grad, hooks)
            (Name::RebuildParameter, [Value::Tensor(tensor), ..]) => Ok(Value::Tensor(tensor.clone())),
            _ => Err("it makes a tensor in another way".into()),
        }
    }
}

/// Writes tensors (name, shape, values rounded to f32) as a `.pt` file that `torch.load` reads with `weights_only=True`,
/// whole or not at all.
///
/// # Errors
/// If the system refuses.
pub fn write(target: &Target, tensors: &[(String, Vec<usize>, Vec<f64>)]) -> Result<()> {
    target.write(|w| w.write_all(&encode(tensors).map_err(std::io::Error::other)?))
}

fn encode(tensors: &[(String, Vec<usize>, Vec<f64>)]) -> zip::result::ZipResult<Vec<u8>> {
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
