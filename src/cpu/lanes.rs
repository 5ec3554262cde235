//! Vectors of the widest kind that the machine has, chosen at run time.
//!
//! Numerical code is written once as a [`Kernel`], generic over [`Simd`], and compiled for AVX-512, for AVX2 with FMA
//! and for plain code. A [`Simd`] value is a proof that the machine has the instructions: [`vectorise`] alone makes
//! one, after asking the CPU. That is why the vector functions are safe.

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Sub};

/// Numerical code that is compiled for each instruction set. Mark `run` `#[inline(always)]`.
pub trait Kernel<R> {
    /// What it returns.
    type Output;
    /// Runs it with the vectors of `s`.
    fn run<S: Simd<R>>(self, s: S) -> Self::Output;
}

/// An instruction set for elements of type `R`; its value is the proof that the machine has it.
pub trait Simd<R>: Copy + Debug {
    /// A vector.
    type V: Copy + Debug + Add<Output = Self::V> + Sub<Output = Self::V> + Mul<Output = Self::V> + Div<Output = Self::V>;
    /// Elements in a vector.
    const LANES: usize;
    /// Whether there are 32 vector registers rather than 16.
    const WIDE: bool;

    /// `x` in every lane.
    fn splat(self, x: R) -> Self::V;
    /// The first [`Simd::LANES`] elements.
    fn load(self, from: &[R]) -> Self::V;
    /// Writes the first [`Simd::LANES`] elements.
    fn store(self, v: Self::V, to: &mut [R]);
    /// As [`Simd::load`], without a check.
    ///
    /// # Safety
    /// `from` points to that many elements.
    unsafe fn read(self, from: *const R) -> Self::V;
    /// As [`Simd::store`], without a check.
    ///
    /// # Safety
    /// `to` points to that many elements.
    unsafe fn write(self, v: Self::V, to: *mut R);
    /// `a·b + c`, rounded once where the machine does so.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The nearest integer, for |a| < 2²¹.
    fn round(self, a: Self::V) -> Self::V;
    /// `a·2ⁿ` for integers n within the exponents of the type (denormals included), rounded once.
    fn scale(self, a: Self::V, n: Self::V) -> Self::V;
    /// `a` in the lanes from `first` on, `before` in those before.
    fn lanes_after(self, first: usize, a: Self::V, before: Self::V) -> Self::V;
    /// Per lane: if `a < b` then `yes` else `no` (NaN gives `no`).
    fn if_less(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// The lanes of `a` and `b` by turns: from their first halves, and from their second.
    fn zip(self, a: Self::V, b: Self::V) -> (Self::V, Self::V);
    /// Whether `a == b` in every lane.
    fn all_equal(self, a: Self::V, b: Self::V) -> bool;
    /// 2ᵏ for the integer k that `1.5·2^mantissa + bias + k` holds in its lowest bits, 0 for k = −bias.
    fn power(self, shifted: Self::V) -> Self::V;
    /// 2ˣ with relative error under 2e-7 (f32) or 4e-16 (f64); 0 at −∞, NaN at NaN.
    fn exp2(self, x: Self::V) -> Self::V;
    /// eˣ for x up to ½, faster than [`Simd::exp2`]; what would be denormal is 0. Relative error as there, and in f32
    /// 1.4e-8·|x| more (without FMA 7.4e-8·|x|).
    fn exp_small(self, x: Self::V) -> Self::V;
    /// A kernel as a function of its own, compiled for this instruction set.
    fn call<K: Kernel<R>>(self, k: K) -> K::Output;
}

/// An instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What the target always has.
    Plain,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F and DQ.
    Avx512,
}

impl Level {
    /// The best that this machine has.
    pub fn best() -> Level {
        #[cfg(test)]
        if let Some(level) = FORCED.get() {
            return level;
        }
        Level::detected()
    }

    fn detected() -> Level {
        #[cfg(target_arch = "x86_64")]
        {
            // The standard library caches the answers.
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                return Level::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Level::Avx2;
            }
        }
        Level::Plain
    }

    /// All that this machine has.
    pub fn available() -> Vec<Level> {
        let best = Level::detected();
        [Level::Plain, Level::Avx2, Level::Avx512].into_iter().take_while(|&l| l as u8 <= best as u8).collect()
    }
}

#[cfg(test)]
thread_local! {
    /// What [`Level::best`] answers on this thread, so that tests reach the other instruction sets.
    pub(crate) static FORCED: std::cell::Cell<Option<Level>> = const { std::cell::Cell::new(None) };
}

/// An element type with vectors.
pub trait Vectors: Sized + Copy + 'static {
    /// Runs a kernel compiled for this instruction set, or for the best below it that the machine has.
    fn vectorise<K: Kernel<Self>>(level: Level, k: K) -> K::Output;
}

/// Runs a kernel with the best instruction set that the machine has.
pub fn vectorise<R: Vectors, K: Kernel<R>>(k: K) -> K::Output {
    R::vectorise(Level::best(), k)
}

/// Σ cᵢ·xⁱ, highest coefficient first.
#[inline(always)]
pub fn polynomial<R: Copy, S: Simd<R>>(s: S, x: S::V, coefficients: &[R]) -> S::V {
    let mut sum = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        sum = s.mul_add(sum, x, s.splat(c));
    }
    sum
}

/// Coefficients of 2ᶠ for |f| ≤ ½: a minimax polynomial with value 1 at 0, so that 2⁰ is exactly 1.
#[allow(clippy::approx_constant)]
const EXP2: [f32; 6] = [0.001_326_472_7, 0.009_671_513, 0.055_507_337, 0.240_222_42, 0.693_147, 1.0];

/// The integer part goes straight into the exponent; adding 1.5·2²³ rounds to it. At −127 the factor is 0, and
/// NaN·0 stays NaN.
#[inline(always)]
fn exp_small_f32<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-88.0), x);
    let (factor, shift) = (s.splat(std::f32::consts::LOG2_E), s.splat(12_582_912.0 + 127.0));
    let shifted = s.mul_add(x, factor, shift);
    polynomial(s, s.mul_add(x, factor, shift - shifted), &EXP2) * s.power(shifted)
}

/// eˣ = 2ᵗ·2ᵉ with t = x·log₂e rounded and e what rounding lost.
#[inline(always)]
fn exp_small_f64<S: Simd<f64>>(s: S, x: S::V) -> S::V {
    let (x, factor) = (s.max(s.splat(-800.0), x), s.splat(std::f64::consts::LOG2_E));
    let t = x * factor;
    let lost = s.mul_add(x, factor, s.splat(0.0) - t) * s.splat(std::f64::consts::LN_2);
    let power = s.exp2(t);
    s.mul_add(power, lost, power)
}

/// 2ˣ = 2ⁿ·2ᶠ with n the nearest integer.
#[inline(always)]
fn exp2_f32<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    // Below −151 the result is 0; above 129, infinite. The order of arguments keeps NaN.
    let x = s.min(s.splat(129.0), s.max(s.splat(-151.0), x));
    let n = s.round(x);
    s.scale(polynomial(s, x - n, &EXP2), n)
}

/// As [`exp2_f32`], by the Taylor series: its remainder at ½·ln 2 is 4e-18.
#[inline(always)]
fn exp2_f64<S: Simd<f64>>(s: S, x: S::V) -> S::V {
    let x = s.min(s.splat(1025.0), s.max(s.splat(-1080.0), x));
    let n = s.round(x);
    let c = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    s.scale(polynomial(s, (x - n) * s.splat(std::f64::consts::LN_2), &c), n)
}

/// Plain code, in groups that compilers turn into vectors.
#[derive(Debug, Clone, Copy)]
struct Plain;

/// Four elements.
#[derive(Debug, Clone, Copy)]
struct Four<R>([R; 4]);

macro_rules! plain {
    ($t:ident, $bits:ident, $int:ident, $mantissa:literal, $bias:literal, $exp2:ident, $exp_small:ident) => {
        plain!(@op $t, Add, add, +);
        plain!(@op $t, Sub, sub, -);
        plain!(@op $t, Mul, mul, *);
        plain!(@op $t, Div, div, /);
        impl Simd<$t> for Plain {
            type V = Four<$t>;
            const LANES: usize = 4;
            const WIDE: bool = false;
            #[inline(always)]
            fn splat(self, x: $t) -> Four<$t> {
                Four([x; 4])
            }
            #[inline(always)]
            fn load(self, from: &[$t]) -> Four<$t> {
                Four([from[0], from[1], from[2], from[3]])
            }
            #[inline(always)]
            fn store(self, v: Four<$t>, to: &mut [$t]) {
                to[..4].copy_from_slice(&v.0);
            }
            #[inline(always)]
            unsafe fn read(self, from: *const $t) -> Four<$t> {
                // SAFETY: by the caller's word; arrays are aligned as their elements.
                Four(unsafe { *(from as *const [$t; 4]) })
            }
            #[inline(always)]
            unsafe fn write(self, v: Four<$t>, to: *mut $t) {
                // SAFETY: as above.
                unsafe { *(to as *mut [$t; 4]) = v.0 }
            }
            #[inline(always)]
            fn mul_add(self, a: Four<$t>, b: Four<$t>, c: Four<$t>) -> Four<$t> {
                // Not fused: without the instruction that would be a call per element.
                a * b + c
            }
            #[inline(always)]
            fn max(self, a: Four<$t>, b: Four<$t>) -> Four<$t> {
                Four(std::array::from_fn(|i| if a.0[i] > b.0[i] { a.0[i] } else { b.0[i] }))
            }
            #[inline(always)]
            fn min(self, a: Four<$t>, b: Four<$t>) -> Four<$t> {
                Four(std::array::from_fn(|i| if a.0[i] < b.0[i] { a.0[i] } else { b.0[i] }))
            }
            #[inline(always)]
            fn round(self, a: Four<$t>) -> Four<$t> {
                // Adding 1.5·2^mantissa leaves no bits for a fraction.
                let shift = self.splat(1.5 * (1u64 << $mantissa) as $t);
                (a + shift) - shift
            }
            #[inline(always)]
            fn scale(self, a: Four<$t>, n: Four<$t>) -> Four<$t> {
                // In two steps, so that results may be denormal or infinite.
                Four(std::array::from_fn(|i| {
                    let n = n.0[i] as $int;
                    let half = n >> 1;
                    let power = |e: $int| $t::from_bits(((e + $bias) as $bits) << $mantissa);
                    a.0[i] * power(half) * power(n - half)
                }))
            }
            #[inline(always)]
            fn lanes_after(self, first: usize, a: Four<$t>, before: Four<$t>) -> Four<$t> {
                Four(std::array::from_fn(|i| if i >= first { a.0[i] } else { before.0[i] }))
            }
            #[inline(always)]
            fn if_less(self, a: Four<$t>, b: Four<$t>, yes: Four<$t>, no: Four<$t>) -> Four<$t> {
                Four(std::array::from_fn(|i| if a.0[i] < b.0[i] { yes.0[i] } else { no.0[i] }))
            }
            #[inline(always)]
            fn zip(self, a: Four<$t>, b: Four<$t>) -> (Four<$t>, Four<$t>) {
                let (a, b) = (a.0, b.0);
                (Four([a[0], b[0], a[1], b[1]]), Four([a[2], b[2], a[3], b[3]]))
            }
            #[inline(always)]
            fn all_equal(self, a: Four<$t>, b: Four<$t>) -> bool {
                a.0 == b.0
            }
            #[inline(always)]
            fn power(self, shifted: Four<$t>) -> Four<$t> {
                Four(shifted.0.map(|x| $t::from_bits(x.to_bits() << $mantissa)))
            }
            #[inline(always)]
            fn exp2(self, x: Four<$t>) -> Four<$t> {
                $exp2(self, x)
            }
            #[inline(always)]
            fn exp_small(self, x: Four<$t>) -> Four<$t> {
                $exp_small(self, x)
            }
            #[inline(always)]
            fn call<K: Kernel<$t>>(self, k: K) -> K::Output {
                k.run(self)
            }
        }
    };
    (@op $t:ident, $trait:ident, $f:ident, $op:tt) => {
        impl $trait for Four<$t> {
            type Output = Self;
            #[inline(always)]
            fn $f(self, other: Self) -> Self {
                Four(std::array::from_fn(|i| self.0[i] $op other.0[i]))
            }
        }
    };
}
plain!(f32, u32, i32, 23, 127, exp2_f32, exp_small_f32);
plain!(f64, u64, i64, 52, 1023, exp2_f64, exp_small_f64);

#[cfg(not(target_arch = "x86_64"))]
macro_rules! vectors {
    ($t:ident) => {
        impl Vectors for $t {
            fn vectorise<K: Kernel<Self>>(_: Level, k: K) -> K::Output {
                k.run(Plain)
            }
        }
    };
}
#[cfg(not(target_arch = "x86_64"))]
vectors!(f32);
#[cfg(not(target_arch = "x86_64"))]
vectors!(f64);

#[cfg(target_arch = "x86_64")]
mod x86;
