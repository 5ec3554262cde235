//! What a kernel is before it is compiled: its source, and the defines that specialise it.

use std::fmt;

/// One `.cu` file, embedded in the binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The file's name without `.cu`: also the op's name with `_` for `-`.
    pub name: &'static str,
    /// The file's text. It may `#include "NAME.cuh"` for the headers in [`HEADERS`] and nothing else.
    pub text: &'static str,
    /// The `extern "C" __global__` functions in it.
    pub entries: &'static [&'static str],
}

impl Source {
    /// Declares a kernel source.
    ///
    /// # Safety
    /// Launching its entries is safe code afterwards. So the author vouches that each entry touches only
    /// memory which its arguments describe, for every argument that its launch code can pass.
    /// `attn validate --device emulator --sanitize address` is how that is proven.
    pub const unsafe fn new(name: &'static str, text: &'static str, entries: &'static [&'static str]) -> Self {
        Source { name, text, entries }
    }
}

/// The headers that kernels may include: name and text.
pub const HEADERS: &[(&str, &str)] = &[
    ("prelude.cuh", include_str!("../../kernels/prelude.cuh")),
    ("numbers.cuh", include_str!("../../kernels/numbers.cuh")),
    ("activation.cuh", include_str!("../../kernels/activation.cuh")),
    ("feature_map.cuh", include_str!("../../kernels/feature_map.cuh")),
    ("mean_loss.cuh", include_str!("../../kernels/mean_loss.cuh")),
    ("recurrent.cuh", include_str!("../../kernels/recurrent.cuh")),
    ("table_gradient.cuh", include_str!("../../kernels/table_gradient.cuh")),
    ("mma.cuh", include_str!("../../kernels/mma.cuh")),
    ("tiles_f32.cuh", include_str!("../../kernels/tiles_f32.cuh")),
    ("softmax_attention.cuh", include_str!("../../kernels/softmax_attention.cuh")),
    ("tiles_mma.cuh", include_str!("../../kernels/tiles_mma.cuh")),
];

/// A source with its defines: one compiled module.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Module {
    /// Index by name of the source.
    pub source: &'static str,
    /// The source's text.
    pub text: &'static str,
    /// The entries that the module exports.
    pub entries: &'static [&'static str],
    /// `-DNAME=VALUE`, in a fixed order.
    pub defines: Vec<(&'static str, String)>,
}

impl Module {
    /// The source without defines.
    pub fn new(source: &Source) -> Self {
        Module { source: source.name, text: source.text, entries: source.entries, defines: Vec::new() }
    }

    /// Adds `-DNAME=VALUE`.
    pub fn define(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.defines.push((name, value.to_string()));
        self
    }
}

impl fmt::Display for Module {
    /// `softmax_attention[VALUE_TILE=64]`
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.source)?;
        if !self.defines.is_empty() {
            let list: Vec<String> = self.defines.iter().map(|(n, v)| format!("{n}={v}")).collect();
            write!(f, "[{}]", list.join(","))?;
        }
        Ok(())
    }
}
