//! In what numbers a device stores floating-point tensors, and how they round.

use half::{bf16, f16};
use std::fmt;

/// The precision in which a device holds floating-point tensors of [`crate::op::Kind::Real`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Precision {
    /// 8 bytes; on the CPU only.
    F64,
    /// 4 bytes.
    F32,
    /// 4 bytes; attention's products may be in TF32, which keeps 10 bits of each factor's fraction.
    Tf32,
    /// IEEE half precision, 2 bytes; computes in f32.
    F16,
    /// bfloat16, 2 bytes; computes in f32.
    Bf16,
}

impl Precision {
    /// All that kernels can have.
    pub const GPU: [Precision; 4] = [Precision::F32, Precision::F16, Precision::Bf16, Precision::Tf32];
    /// What an op has whose kernels store and read the device's storage type.
    pub const STORED: &'static [Precision] = &[Precision::F32, Precision::F16, Precision::Bf16];

    /// As the command line says it.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F64 => "f64",
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
        }
    }

    /// Bytes of a stored element.
    pub fn bytes(self) -> usize {
        match self {
            Precision::F64 => 8,
            Precision::F32 | Precision::Tf32 => 4,
            Precision::F16 | Precision::Bf16 => 2,
        }
    }

    /// Whether elements are stored in fewer bits than are computed with.
    pub fn is_half(self) -> bool {
        self.bytes() == 2
    }

    /// What is stored: [`Precision::Tf32`] concerns products only.
    pub fn storage(self) -> Precision {
        if self == Precision::Tf32 { Precision::F32 } else { self }
    }

    /// What is computed with, and what tensors of [`crate::op::Kind::Full`] are stored in.
    pub fn full(self) -> Precision {
        if self == Precision::F64 { self } else { Precision::F32 }
    }

    /// The nearest value that can be stored, ties to even.
    pub fn round(self, x: f64) -> f64 {
        match self {
            Precision::F64 => x,
            Precision::F32 | Precision::Tf32 => x as f32 as f64,
            Precision::F16 => f16::from_f32(odd(x)).to_f64(),
            Precision::Bf16 => bf16::from_f32(odd(x)).to_f64(),
        }
    }

    /// The nearest value that a product in this precision takes as a factor: TF32 has 10 bits of fraction.
    pub fn round_factor(self, x: f64) -> f64 {
        if self != Precision::Tf32 || !x.is_finite() {
            return self.round(x);
        }
        f32::from_bits(((x as f32).to_bits() + 0x1000) & !0x1fff) as f64
    }

    /// Values as stored, little-endian.
    pub fn encode(self, values: &[f64]) -> Vec<u8> {
        match self {
            Precision::F64 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Precision::F32 | Precision::Tf32 => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            Precision::F16 => values.iter().flat_map(|&x| f16::from_f32(odd(x)).to_le_bytes()).collect(),
            Precision::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(odd(x)).to_le_bytes()).collect(),
        }
    }

    /// Stored values, widened.
    ///
    /// # Panics
    /// If the bytes are no whole number of elements.
    pub fn decode(self, bytes: &[u8]) -> Vec<f64> {
        fn all<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            assert!(bytes.len().is_multiple_of(N), "whole elements");
            bytes.chunks_exact(N).map(|b| value(b.try_into().expect("a chunk's size"))).collect()
        }
        match self {
            Precision::F64 => all(bytes, f64::from_le_bytes),
            Precision::F32 | Precision::Tf32 => all(bytes, |b| f32::from_le_bytes(b) as f64),
            Precision::F16 => all(bytes, |b| f16::from_le_bytes(b).to_f64()),
            Precision::Bf16 => all(bytes, |b| bf16::from_le_bytes(b).to_f64()),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `x` in f32 rounded to odd: where inexact, the neighbour whose last bit is 1. Rounding that to 16 bits equals
/// rounding `x` itself; through the nearest f32 it would not, where that happens to be a tie.
pub(crate) fn odd(x: f64) -> f32 {
    let near = x as f32;
    if near as f64 == x || near.is_nan() || x.is_infinite() || near.to_bits() & 1 == 1 {
        return near;
    }
    // The bits of one sign are ordered as magnitudes are; an overflow to infinity steps back to the largest finite.
    let away = (near as f64).abs() < x.abs();
    f32::from_bits(if away { near.to_bits() + 1 } else { near.to_bits() - 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_what_round_says() {
        let values = [0.0, -1.0, 1.0 / 3.0, 1e-8, 65504.0, 1e5, 3e38, f64::INFINITY, 1.0 + 0.001953125 + 1e-12];
        for p in [Precision::F64, Precision::F32, Precision::Tf32, Precision::F16, Precision::Bf16] {
            let bytes = p.encode(&values);
            assert_eq!(bytes.len(), values.len() * p.bytes());
            assert_eq!(p.decode(&bytes), values.map(|x| p.round(x)), "{p}");
        }
        assert_eq!(Precision::F16.round(1e5), f64::INFINITY);
        // 1 + 2⁻⁸ is half way between two bf16 numbers and goes to the even one; a trace more goes up.
        assert_eq!(Precision::Bf16.round(1.00390625), 1.0);
        assert_eq!(Precision::Bf16.round(1.00390625 + 1e-12), 1.0078125);
    }
}
