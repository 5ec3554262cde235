//! The two element types of the CPU: every CPU op is written once, generic over [`Real`].

use crate::cpu::gemm::Gemm;
use crate::cpu::lanes::Vectors;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// `f32` or `f64`.
pub trait Real:
    Gemm
    + Vectors
    + Copy
    + Default
    + PartialOrd
    + fmt::Debug
    + fmt::Display
    + bytemuck::Pod
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Sum
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEG_INFINITY: Self;
    /// The lowest finite value.
    const LOWEST: Self;
    /// Rounds to nearest even.
    fn from_f64(x: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// A size or index, rounded to nearest.
    fn from_usize(x: usize) -> Self {
        Self::from_f64(x as f64)
    }
    /// √x.
    fn sqrt(self) -> Self;
    /// eˣ.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// tanh x.
    fn tanh(self) -> Self;
    /// The error function, for GELU's exact form.
    fn erf(self) -> Self;
    /// |x|.
    fn abs(self) -> Self;
    /// `a·b + self`; fused where the machine does so.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The larger; NaN if either is NaN (unlike `f32::max`), so that NaN is never hidden.
    fn maximum(self, other: Self) -> Self {
        if self > other || self.is_nan() { self } else { other }
    }
    /// Whether NaN.
    fn is_nan(self) -> bool;
    /// x ← eˣ for every element; f32 by a vectorised polynomial with relative error under 2e-7.
    fn exp_in_place(x: &mut [Self]);
    /// x ← tanh x for every element; f32 vectorised likewise.
    fn tanh_in_place(x: &mut [Self]);
    /// x ← erf x for every element; f32 vectorised likewise.
    fn erf_in_place(x: &mut [Self]);
}

macro_rules! real {
    ($t:ident, $erf:path, $exp:path, $tanh:path, $erfs:path) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            const LOWEST: Self = $t::MIN;
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            fn to_f64(self) -> f64 {
                self as f64
            }
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            fn exp(self) -> Self {
                $t::exp(self)
            }
            fn ln(self) -> Self {
                $t::ln(self)
            }
            fn tanh(self) -> Self {
                $t::tanh(self)
            }
            fn erf(self) -> Self {
                $erf(self)
            }
            fn abs(self) -> Self {
                $t::abs(self)
            }
            fn mul_add(self, a: Self, b: Self) -> Self {
                $t::mul_add(a, b, self)
            }
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
            fn exp_in_place(x: &mut [Self]) {
                $exp(x)
            }
            fn tanh_in_place(x: &mut [Self]) {
                $tanh(x)
            }
            fn erf_in_place(x: &mut [Self]) {
                $erfs(x)
            }
        }
    };
}

fn erf32(x: f32) -> f32 {
    libm::erff(x)
}
fn exp64(x: &mut [f64]) {
    x.iter_mut().for_each(|x| *x = x.exp());
}
fn tanh64(x: &mut [f64]) {
    x.iter_mut().for_each(|x| *x = x.tanh());
}
fn erf64(x: &mut [f64]) {
    x.iter_mut().for_each(|x| *x = libm::erf(*x));
}

real!(f32, erf32, crate::cpu::simd::exp_in_place, crate::cpu::simd::tanh_in_place, crate::cpu::simd::erf_in_place);
real!(f64, libm::erf, exp64, tanh64, erf64);
