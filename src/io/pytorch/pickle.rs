//! The pickle machine, as far as dictionaries of tensors need it. What it does not know it refuses: nothing is executed.

use crate::io::tensors::{Dtype, Loaded};
use crate::run_spec::Given;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::rc::Rc;

/// What the pickle's stack holds. Tuples and dictionaries lie in the machine, by number: values that own each other could be
/// nested so deep that dropping them overflows the stack.
#[derive(Debug, Clone)]
pub enum Value {
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
pub enum Name {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Element),
}

/// What a storage holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Element {
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
pub struct Storage {
    element: Element,
    /// Its entry in the archive.
    pub key: String,
}

/// A strided view of a storage.
#[derive(Debug)]
pub struct Tensor {
    /// Where its elements lie.
    pub storage: Rc<Storage>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Tensor {
    /// Its elements in row-major order, or what is wrong.
    pub fn values(&self, bytes: &[u8]) -> Result<Loaded, String> {
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
pub struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: BTreeMap<usize, Value>,
    tuples: Vec<Vec<Value>>,
    /// The dictionaries, by number.
    pub dicts: Vec<Vec<(Value, Value)>>,
}

impl<'a> Machine<'a> {
    /// On the bytes of a pickle.
    pub fn new(bytes: &'a [u8]) -> Self {
        Machine { bytes, at: 0, stack: vec![], memo: BTreeMap::new(), tuples: vec![], dicts: vec![] }
    }

    /// The value that the pickle describes, or what is wrong with it.
    pub fn run(&mut self) -> Result<Value, String> {
        loop {
            let at = self.at;
            match self.step() {
                Ok(None) => {}
                Ok(Some(value)) => return Ok(value),
                Err(problem) => {
                    return Err(format!("holds more than tensors, or is damaged: at byte {at} of data.pkl, {problem}"));
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
