//! Somebody's tensors: safetensors files in, safetensors files out, and rounding between dtypes.

use super::Target;
use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::run_spec::Given;
use half::{bf16, f16};
use safetensors::tensor::{Dtype as Stored, SafeTensorError, TensorView};
use safetensors::{SafeTensors, serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A floating-point dtype of a file or a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Dtype {
    /// 64 bits; on `cpu` only.
    F64,
    /// 32 bits.
    F32,
    /// IEEE half precision; products are summed in f32.
    F16,
    /// bfloat16; products are summed in f32.
    Bf16,
}

impl Dtype {
    /// As the command line says it.
    pub fn name(self) -> &'static str {
        self.precision().name()
    }

    /// The same among what devices store.
    pub fn precision(self) -> Precision {
        match self {
            Dtype::F64 => Precision::F64,
            Dtype::F32 => Precision::F32,
            Dtype::F16 => Precision::F16,
            Dtype::Bf16 => Precision::Bf16,
        }
    }

    /// The nearest value of this dtype, ties to even.
    pub fn round(self, x: f64) -> f64 {
        self.precision().round(x)
    }

    fn stored(self) -> Stored {
        match self {
            Dtype::F64 => Stored::F64,
            Dtype::F32 => Stored::F32,
            Dtype::F16 => Stored::F16,
            Dtype::Bf16 => Stored::BF16,
        }
    }
}

/// A tensor of a file, and the floating-point dtype that it came in.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Sizes and values, widened.
    pub given: Given,
    /// `None` for integers.
    pub dtype: Option<Dtype>,
}

/// Reads every tensor of a safetensors file.
///
/// # Errors
/// If the file cannot be read, contradicts itself, or holds a dtype that no op takes.
pub fn read(path: &Path) -> Result<BTreeMap<String, Loaded>> {
    let unreadable = |e: std::io::Error| {
        Error::file(path, format!("cannot be read: {}", e.kind()), "give a safetensors file that exists and is yours")
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(Error::file(path, "is a folder", "give a safetensors file"));
    }
    if !metadata.is_file() || metadata.len() == 0 {
        // Pipes cannot be mapped, and neither can empty files.
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(unreadable)?;
        return parse(path, &bytes);
    }
    // SAFETY: the mapping is only read, and only until this function returns. Nobody can keep another program from
    // truncating the file meanwhile; that would end this process with SIGBUS, as for every program that maps files.
    let mapped = unsafe { memmap2::Mmap::map(&file) }.map_err(unreadable)?;
    parse(path, &mapped)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Loaded>> {
    let parsed = SafeTensors::deserialize(bytes).map_err(|e| {
        let (problem, remedy) = explain(&e, bytes);
        Error::file(path, problem, remedy)
    })?;
    let mut loaded = BTreeMap::new();
    for (name, view) in parsed.iter() {
        let tensor = load(&view).map_err(|(problem, remedy)| Error::argument(name, problem, remedy))?;
        loaded.insert(name.to_string(), tensor);
    }
    Ok(loaded)
}

/// What a file that cannot be parsed is guilty of, and what to do.
fn explain(e: &SafeTensorError, bytes: &[u8]) -> (String, &'static str) {
    const WRITE_AGAIN: &str = "write it again, for instance with safetensors.torch.save_file";
    let declared = bytes.get(..8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
    let problem = match e {
        SafeTensorError::HeaderTooSmall => {
            format!("is no safetensors file: {} bytes, where the header's length alone takes 8", bytes.len())
        }
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => format!(
            "is truncated or no safetensors file: its header claims {} bytes of {}",
            declared.unwrap_or(0),
            bytes.len()
        ),
        SafeTensorError::InvalidHeader(e) => format!("has a header that is not UTF-8: {e}"),
        SafeTensorError::InvalidHeaderDeserialization(e) => format!("has a header that cannot be parsed: {e}"),
        SafeTensorError::InvalidOffset(name) => {
            format!("is damaged: the offsets of tensor `{name}` overlap another tensor, run backwards or leave a gap")
        }
        SafeTensorError::TensorInvalidInfo => {
            "is damaged: a tensor's offsets do not span what its shape and dtype need".into()
        }
        SafeTensorError::ValidationOverflow => "is damaged: a tensor's shape overflows".into(),
        SafeTensorError::MetadataIncompleteBuffer => {
            format!("is truncated or damaged: its {} bytes are not those that its header describes", bytes.len())
        }
        other => format!("is no valid safetensors file: {other}"),
    };
    (problem, WRITE_AGAIN)
}

/// Axes of a tensor without elements are not bounded by the file's size; products of them must not overflow.
const MOST_OF_EMPTY: usize = 1 << 24;

fn load(view: &TensorView) -> Result<Loaded, (String, String)> {
    let shape = view.shape().to_vec();
    let numel: usize = shape.iter().product();
    let others = shape.iter().filter(|&&n| n > 0).try_fold(1usize, |p, &n| p.checked_mul(n));
    if numel == 0 && others.is_none_or(|n| n > MOST_OF_EMPTY) {
        return Err((format!("is empty, yet of shape {shape:?}"), "give it sensible sizes".into()));
    }
    let data = view.data();
    let real = |dtype, values| Ok(Loaded { given: Given::Real(shape.clone(), values), dtype: Some(dtype) });
    let ints = |values| Ok(Loaded { given: Given::Int(shape.clone(), values), dtype: None });
    match view.dtype() {
        Stored::F64 => real(Dtype::F64, chunks(data, f64::from_le_bytes)),
        Stored::F32 => real(Dtype::F32, chunks(data, |b| f32::from_le_bytes(b) as f64)),
        Stored::F16 => real(Dtype::F16, chunks(data, |b| f16::from_le_bytes(b).to_f64())),
        Stored::BF16 => real(Dtype::Bf16, chunks(data, |b| bf16::from_le_bytes(b).to_f64())),
        Stored::I64 => ints(chunks(data, i64::from_le_bytes)),
        Stored::I32 => ints(chunks(data, |b| i32::from_le_bytes(b) as i64)),
        Stored::U8 => ints(chunks(data, |[b]: [u8; 1]| b as i64)),
        Stored::BOOL => ints(chunks(data, |[b]: [u8; 1]| (b != 0) as i64)),
        other => Err((
            format!("has dtype {other:?}"),
            "convert it to f64, f32, f16, bf16, i64, i32, u8 or bool first".into(),
        )),
    }
}

fn chunks<const N: usize, T>(data: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.chunks_exact(N).map(|b| from(b.try_into().expect("N bytes"))).collect()
}

/// A floating-point tensor to be written.
#[derive(Debug, Clone)]
pub struct Written {
    /// Its name.
    pub name: String,
    /// What it is rounded to.
    pub dtype: Dtype,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its values, in row-major order.
    pub values: Vec<f64>,
}

/// Writes a safetensors file, whole or not at all.
///
/// # Errors
/// If the system refuses.
pub fn write(target: &Target, tensors: &[Written]) -> Result<()> {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| t.dtype.precision().encode(&t.values)).collect();
    let views = tensors.iter().zip(&bytes).map(|(t, bytes)| {
        let view = TensorView::new(t.dtype.stored(), t.shape.clone(), bytes).expect("as many values as the shape says");
        (t.name.as_str(), view)
    });
    let file = serialize(views, None).expect("views that were just checked");
    target.write(|w| w.write_all(&file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_once() {
        // One plus half a unit of bf16 plus a little: to nearest f32 first it would be a tie, and go down to even.
        let tie = 1.0 + 2f64.powi(-8);
        assert_eq!(Dtype::Bf16.round(tie), 1.0);
        assert_eq!(Dtype::Bf16.round(tie + 2f64.powi(-40)), 1.0 + 2f64.powi(-7));
        let tie = 1.0 + 2f64.powi(-11);
        assert_eq!(Dtype::F16.round(-tie - 2f64.powi(-50)), -1.0 - 2f64.powi(-10));
        assert_eq!(Dtype::F16.round(tie - 2f64.powi(-50)), 1.0);
        assert_eq!(Dtype::F16.round(65519.9), 65504.0);
        assert_eq!(Dtype::F16.round(65520.0), f64::INFINITY);
        assert_eq!(Dtype::Bf16.round(1e300), f64::INFINITY);
        assert_eq!(Dtype::F16.round(-1e-300), 0.0);
        assert!(Dtype::F16.round(f64::NAN).is_nan());
        assert_eq!(Dtype::F16.round(2f64.powi(-25) * 1.0000000001), 2f64.powi(-24));
    }
}
