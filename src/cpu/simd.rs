//! Vectorised functions of slices: exponential, tanh, both GELUs with their derivatives, and sums. f32 by polynomials,
//! f64 partly by the standard library.
//!
//! Elementwise functions give the same bits for an element wherever it stands in the slice; sums are taken in an
//! order that depends on the machine's vectors and the length alone.

use super::lanes::{Kernel, Simd, Vectors, polynomial, vectorise};
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LOG2_E};

/// y ← f(x) or y ← f(x, y), one vector at a time.
trait Elementwise {
    fn apply<S: Simd<f32>>(&self, s: S, x: S::V, y: S::V) -> S::V;
}

/// Runs an elementwise function in place.
struct InPlace<'a, F>(&'a mut [f32], F);

impl<F: Elementwise> Kernel<f32> for InPlace<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<f32>>(self, s: S) {
        let mut chunks = self.0.chunks_exact_mut(S::LANES);
        for x in &mut chunks {
            let v = s.load(x);
            s.store(self.1.apply(s, v, v), x);
        }
        let rest = chunks.into_remainder();
        let mut padded = [0.0; 16];
        padded[..rest.len()].copy_from_slice(rest);
        let v = s.load(&padded);
        s.store(self.1.apply(s, v, v), &mut padded);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// Runs an elementwise function of x and y, into y.
struct OfTwo<'a, F>(&'a [f32], &'a mut [f32], F);

impl<F: Elementwise> Kernel<f32> for OfTwo<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<f32>>(self, s: S) {
        assert_eq!(self.0.len(), self.1.len());
        let mut chunks = self.1.chunks_exact_mut(S::LANES);
        let xs = self.0.chunks_exact(S::LANES);
        let rest_x = xs.remainder();
        for (y, x) in (&mut chunks).zip(xs) {
            s.store(self.2.apply(s, s.load(x), s.load(y)), y);
        }
        let rest = chunks.into_remainder();
        let (mut x, mut y) = ([0.0; 16], [0.0; 16]);
        x[..rest.len()].copy_from_slice(rest_x);
        y[..rest.len()].copy_from_slice(rest);
        let value = self.2.apply(s, s.load(&x), s.load(&y));
        s.store(value, &mut y);
        rest.copy_from_slice(&y[..rest.len()]);
    }
}

/// eˣ: with n the integer nearest x·log₂e, 2ⁿ·eʳ for the rest r.
#[inline(always)]
fn exp<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    // Beyond these the result is 0 or infinite; the order of arguments keeps NaN.
    let x = s.min(s.splat(90.0), s.max(s.splat(-106.0), x));
    let n = s.round(x * s.splat(LOG2_E));
    // ln 2 in two parts, the first with so few bits that its product with n is exact.
    let r = s.mul_add(n, s.splat(-355.0 / 512.0), x);
    let r = s.mul_add(n, s.splat((355.0 / 512.0 - std::f64::consts::LN_2) as f32), r);
    let c = [0.001_381_446_7, 0.008_368_78, 0.041_668_394, 0.166_665_2, 0.499_999_93, 1.0, 1.0];
    s.scale(polynomial(s, r, &c), n)
}

/// |x|, and a function that gives a positive value x's sign.
#[inline(always)]
fn absolute<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    s.if_less(x, zero, zero - x, x)
}

#[inline(always)]
fn with_sign<S: Simd<f32>>(s: S, value: S::V, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    s.if_less(x, zero, zero - value, value)
}

/// tanh x: near 0 an odd polynomial, elsewhere 1 − 2/(e²ˣ + 1).
#[inline(always)]
fn tanh<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    let (one, two) = (s.splat(1.0), s.splat(2.0));
    let size = absolute(s, x);
    let far = with_sign(s, one - two / (exp(s, size + size) + one), x);
    let square = x * x;
    let c = [-0.005_666_936, 0.020_606_14, -0.053_729_996, 0.133_313_31, -0.333_332_78];
    let near = s.mul_add(polynomial(s, square, &c), square * x, x);
    s.if_less(size, s.splat(0.625), near, far)
}

/// erf x. Near 0 an odd polynomial; elsewhere 1 − e^p(|x|), where p
/// approximates ln erfc.
#[inline(always)]
#[allow(clippy::approx_constant, clippy::excessive_precision)] // Fitted, not a constant of mathematics.
fn erf<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    let size = absolute(s, x);
    let square = x * x;
    let c = [-5.862_038_5e-4, 0.004_967_497_5, -0.026_748_857, 0.112_813_205, -0.376_124_46, 1.128_379_1];
    let near = polynomial(s, square, &c) * x;
    // At 4 and beyond, erf is 1 in f32. This order keeps NaN.
    let size_4 = s.min(s.splat(4.0), size);
    let c =
        [1.971_816_8e-4, -0.003_055_607_1, 0.022_277_086, -0.104_037_36, -0.637_059_75, -1.127_749_6, -1.774_948_6e-4];
    let far = with_sign(s, s.splat(1.0) - exp(s, polynomial(s, size_4, &c)), x);
    s.if_less(size, s.splat(0.93), near, far)
}

struct Exp;
impl Elementwise for Exp {
    #[inline(always)]
    fn apply<S: Simd<f32>>(&self, s: S, x: S::V, _: S::V) -> S::V {
        exp(s, x)
    }
}

struct Tanh;
impl Elementwise for Tanh {
    #[inline(always)]
    fn apply<S: Simd<f32>>(&self, s: S, x: S::V, _: S::V) -> S::V {
        tanh(s, x)
    }
}

struct Erf;
impl Elementwise for Erf {
    #[inline(always)]
    fn apply<S: Simd<f32>>(&self, s: S, x: S::V, _: S::V) -> S::V {
        erf(s, x)
    }
}

/// √(2/π) of GELU's tanh form.
const ROOT: f32 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
/// The cubic coefficient of GELU's tanh form.
const CUBIC: f32 = 0.044_715;

/// x·σ(2u) with u = √(2/π)·(x + 0.044715·x³), which is ½x(1 + tanh u) without its cancellation at negative x.
/// Gives (σ(2u), 2u's derivative).
#[inline(always)]
fn gate<S: Simd<f32>>(s: S, x: S::V) -> (S::V, S::V) {
    let square = x * x;
    let u = s.mul_add(square, s.splat(2.0 * ROOT * CUBIC), s.splat(2.0 * ROOT)) * x;
    let du = s.mul_add(square, s.splat(6.0 * ROOT * CUBIC), s.splat(2.0 * ROOT));
    let one = s.splat(1.0);
    (one / (one + exp(s, s.splat(0.0) - u)), du)
}

struct GeluTanh;
impl Elementwise for GeluTanh {
    #[inline(always)]
    fn apply<S: Simd<f32>>(&self, s: S, x: S::V, _: S::V) -> S::V {
        x * gate(s, x).0
    }
}

/// y·gelu'(x).
struct GeluTanhBackward;
impl Elementwise for GeluTanhBackward {
    #[inline(always)]
    fn apply<S: Simd<f32>>(&self, s: S, x: S::V, y: S::V) -> S::V {
        // Beyond ±20 the derivative is 0 or 1; without the limit, infinity times 0 would come in.
        let x = s.min(s.splat(20.0), s.max(s.splat(-20.0), x));
        let (g, du) = gate(s, x);
        y * s.mul_add(x * du, g * (s.splat(1.0) - g), g)
    }
}

struct GeluErf;
impl Elementwise for GeluErf {
    #[inline(always)]
    fn apply<S: Simd<f32>>(&self, s: S, x: S::V, _: S::V) -> S::V {
        let half = x * s.splat(0.5);
        s.mul_add(half, erf(s, x * s.splat(FRAC_1_SQRT_2)), half)
    }
}

/// y·gelu'(x).
struct GeluErfBackward;
impl Elementwise for GeluErfBackward {
    #[inline(always)]
    fn apply<S: Simd<f32>>(&self, s: S, x: S::V, y: S::V) -> S::V {
        let x = s.min(s.splat(20.0), s.max(s.splat(-20.0), x));
        let half = s.splat(0.5);
        let density = s.splat(0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2) * exp(s, s.splat(-0.5) * x * x);
        y * s.mul_add(x, density, s.mul_add(half, erf(s, x * s.splat(FRAC_1_SQRT_2)), half))
    }
}

/// x ← eˣ, relative error under 2e-7; denormal results included.
pub fn exp_in_place(x: &mut [f32]) {
    vectorise(InPlace(x, Exp));
}

/// x ← tanh x, relative error under 3e-7.
pub fn tanh_in_place(x: &mut [f32]) {
    vectorise(InPlace(x, Tanh));
}

/// x ← erf x, error under 2e-7.
pub fn erf_in_place(x: &mut [f32]) {
    vectorise(InPlace(x, Erf));
}

/// x ← ½x(1 + tanh(√(2/π)(x + 0.044715·x³))).
pub fn gelu_tanh_in_place(x: &mut [f32]) {
    vectorise(InPlace(x, GeluTanh));
}

/// dy ← dy·gelu'(x) for GELU's tanh form.
///
/// # Panics
/// If the lengths differ; so with every function of two slices here.
pub fn gelu_tanh_backward(x: &[f32], dy: &mut [f32]) {
    vectorise(OfTwo(x, dy, GeluTanhBackward));
}

/// x ← ½x(1 + erf(x/√2)).
pub fn gelu_erf_in_place(x: &mut [f32]) {
    vectorise(InPlace(x, GeluErf));
}

/// dy ← dy·gelu'(x) for GELU's erf form.
pub fn gelu_erf_backward(x: &[f32], dy: &mut [f32]) {
    vectorise(OfTwo(x, dy, GeluErfBackward));
}

/// Two values that a pass over one or two slices sums.
struct Sums<'a, R> {
    x: &'a [R],
    y: Option<&'a [R]>,
}

impl<R: Vectors + Default + std::ops::Add<Output = R> + std::ops::Mul<Output = R>> Kernel<R> for Sums<'_, R> {
    type Output = R;
    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) -> R {
        let y = self.y.unwrap_or(self.x);
        assert_eq!(self.x.len(), y.len());
        // Four sums hide the latency of an addition.
        let mut sums = [s.splat(R::default()); 4];
        let (xs, ys) = (self.x.chunks_exact(4 * S::LANES), y.chunks_exact(4 * S::LANES));
        let (x_rest, y_rest) = (xs.remainder(), ys.remainder());
        for (x, y) in xs.zip(ys) {
            for i in 0..4 {
                let v = s.load(&x[i * S::LANES..]);
                sums[i] =
                    if self.y.is_some() { s.mul_add(v, s.load(&y[i * S::LANES..]), sums[i]) } else { sums[i] + v };
            }
        }
        let mut lanes = [R::default(); 16];
        s.store((sums[0] + sums[1]) + (sums[2] + sums[3]), &mut lanes);
        let mut sum = R::default();
        for lane in lanes.into_iter().take(S::LANES) {
            sum = sum + lane;
        }
        for (&x, &y) in x_rest.iter().zip(y_rest) {
            sum = sum + if self.y.is_some() { x * y } else { x };
        }
        sum
    }
}

/// Σ x.
pub fn sum<R: crate::cpu::Real>(x: &[R]) -> R {
    vectorise(Sums { x, y: None })
}

/// Σ x·y.
pub fn dot<R: crate::cpu::Real>(x: &[R], y: &[R]) -> R {
    vectorise(Sums { x, y: Some(y) })
}

/// y ← y + a·x.
pub fn axpy<R: crate::cpu::Real>(a: R, x: &[R], y: &mut [R]) {
    struct Axpy<'a, R>(R, &'a [R], &'a mut [R]);
    impl<R: crate::cpu::Real> Kernel<R> for Axpy<'_, R> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<R>>(self, s: S) {
            let Axpy(a, x, y) = self;
            assert_eq!(x.len(), y.len());
            let whole = x.len() / S::LANES * S::LANES;
            let factor = s.splat(a);
            for (x, y) in x[..whole].chunks_exact(S::LANES).zip(y.chunks_exact_mut(S::LANES)) {
                s.store(s.mul_add(factor, s.load(x), s.load(y)), y);
            }
            x[whole..].iter().zip(&mut y[whole..]).for_each(|(&x, y)| *y += a * x);
        }
    }
    vectorise(Axpy(a, x, y));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::lanes::Level;

    /// Runs at every level of this machine and returns the largest error against `exact`, by `measure`.
    fn sweep<F: Elementwise + Copy>(
        f: F,
        range: (f32, f32),
        exact: impl Fn(f64) -> f64,
        measure: impl Fn(f64, f64) -> f64,
    ) -> f64 {
        let n = 100_003;
        let x: Vec<f32> = (0..n).map(|i| range.0 + (range.1 - range.0) * i as f32 / (n - 1) as f32).collect();
        let mut worst = 0.0f64;
        for level in Level::available() {
            let mut y = x.clone();
            f32::vectorise(level, InPlace(&mut y, f));
            for (&x, &y) in x.iter().zip(&y) {
                let e = measure(y as f64, exact(x as f64));
                assert!(!e.is_nan(), "{level:?} at {x}: {y}");
                worst = worst.max(e);
            }
        }
        worst
    }

    macro_rules! copy {
        ($($t:ident),*) => { $(impl Clone for $t { fn clone(&self) -> Self { *self } } impl Copy for $t {})* };
    }
    copy!(Exp, Tanh, Erf, GeluTanh, GeluErf, GeluTanhBackward, GeluErfBackward);

    fn relative(a: f64, b: f64) -> f64 {
        (a - b).abs() / b.abs().max(1e-37)
    }
    fn absolute(a: f64, b: f64) -> f64 {
        (a - b).abs()
    }

    #[test]
    fn polynomials_are_accurate() {
        assert!(sweep(Exp, (-87.0, 88.7), f64::exp, relative) < 2e-7);
        // Denormal results, to within their spacing.
        assert!(sweep(Exp, (-106.0, -87.0), f64::exp, absolute) < 1.5e-45);
        assert!(sweep(Tanh, (-12.0, 12.0), f64::tanh, relative) < 3e-7);
        assert!(sweep(Tanh, (-0.7, 0.7), f64::tanh, relative) < 3e-7);
        assert!(sweep(Erf, (-5.0, 5.0), libm::erf, absolute) < 2e-7);
        assert!(sweep(Erf, (-0.95, 0.95), libm::erf, relative) < 3e-7);
        let tanh_form = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh());
        let erf_form = |x: f64| 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt()));
        let mixed = |a: f64, b: f64| (a - b).abs() / b.abs().max(1.0);
        assert!(sweep(GeluTanh, (-12.0, 12.0), tanh_form, mixed) < 4e-7);
        assert!(sweep(GeluErf, (-12.0, 12.0), erf_form, mixed) < 4e-7);
        let slope = |f: &dyn Fn(f64) -> f64, x: f64| (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;
        // The sweep passes x as the incoming gradient as well.
        assert!(sweep(GeluTanhBackward, (-8.0, 8.0), |x| x * slope(&tanh_form, x), mixed) < 2e-6);
        assert!(sweep(GeluErfBackward, (-8.0, 8.0), |x| x * slope(&erf_form, x), mixed) < 2e-6);
    }

    #[test]
    fn special_values_are_right() {
        let (inf, nan, low) = (f32::INFINITY, f32::from_bits(0xffff_ffff), -f32::INFINITY);
        for level in Level::available() {
            let mut x = [0.0, low, inf, nan, 1e30, -1e30, -0.0];
            f32::vectorise(level, InPlace(&mut x, Exp));
            assert!(x[3].is_nan());
            assert_eq!([x[0], x[1], x[2], x[4], x[5], x[6]], [1.0, 0.0, inf, inf, 0.0, 1.0]);
            let mut x = [0.0, low, inf, nan];
            f32::vectorise(level, InPlace(&mut x, Tanh));
            assert!(x[..3] == [0.0, -1.0, 1.0] && x[3].is_nan());
            let mut x = [0.0, low, inf, nan];
            f32::vectorise(level, InPlace(&mut x, Erf));
            assert!(x[..3] == [0.0, -1.0, 1.0] && x[3].is_nan());
            let mut x = [1e20, -1e20, nan];
            f32::vectorise(level, InPlace(&mut x, GeluTanh));
            assert!(x[0] == 1e20 && x[1] == 0.0 && x[2].is_nan());
            let mut d = [2.0, 2.0, 2.0];
            f32::vectorise(level, OfTwo(&[1e20, -1e20, nan], &mut d, GeluTanhBackward));
            assert!(d[0] == 2.0 && d[1] == 0.0 && d[2].is_nan());
        }
    }

    /// 2ˣ, or eˣ by the function for x up to ½.
    struct Exp2<R>(Vec<R>, bool);
    impl<R: crate::cpu::Real> Kernel<R> for Exp2<R> {
        type Output = Vec<R>;
        #[inline(always)]
        fn run<S: Simd<R>>(mut self, s: S) -> Vec<R> {
            for x in self.0.chunks_exact_mut(S::LANES) {
                let v = s.load(x);
                s.store(if self.1 { s.exp_small(v) } else { s.exp2(v) }, x);
            }
            self.0
        }
    }

    #[test]
    fn exp2_of_both_types_is_accurate() {
        for level in Level::available() {
            let x: Vec<f64> = (0..1 << 15).map(|i| (i - (1 << 14)) as f64 / 129.3).collect();
            for (&x, y) in x.iter().zip(f64::vectorise(level, Exp2(x.clone(), false))) {
                assert!(relative(y, x.exp2()) < 5e-16, "{level:?}: 2^{x} = {y}");
            }
            let single: Vec<f32> = x.iter().map(|&x| x as f32 * 0.99).collect();
            for (&x, y) in single.iter().zip(f32::vectorise(level, Exp2(single.clone(), false))) {
                assert!(relative(y as f64, (x as f64).exp2()) < 2.1e-7, "{level:?}: 2^{x} = {y}");
            }
            for (&x, y) in single.iter().zip(f32::vectorise(level, Exp2(single.clone(), true))) {
                let exact = (x as f64).exp();
                // What is left of x·log₂e behind its integer part: the constant's rounding, without FMA the product's too.
                let reduction = x.abs() as f64 * if level == Level::Plain { 7.4e-8 } else { 1.4e-8 };
                let right = relative(y as f64, exact) < 2.1e-7 + reduction || exact < 1.2e-38 && y as f64 <= 1.2e-38;
                assert!(right || x > 0.5, "{level:?}: e^{x} = {y}");
            }
            for (&x, y) in x.iter().zip(f64::vectorise(level, Exp2(x.clone(), true))) {
                let reduction = x.abs() * if level == Level::Plain { 1.5e-16 } else { 1.5e-17 };
                assert!(relative(y, x.exp()) < 5e-16 + reduction || x > 0.5, "{level:?}: e^{x} = {y}");
            }
            let special = vec![f64::NEG_INFINITY, f64::NAN, 0.0, -1074.0, 1024.0, -1e9, -1080.0, 1.0];
            let y = f64::vectorise(level, Exp2(special, false));
            assert!(y[1].is_nan() && y[3] == 5e-324 && y[4].is_infinite());
            assert_eq!([y[0], y[2], y[5], y[6], y[7]], [0.0, 1.0, 0.0, 0.0, 2.0]);
            for small in [false, true] {
                let (low, nan) = (f32::NEG_INFINITY, f32::from_bits(0xffff_ffff));
                let special = [low, nan, 0.0, -1e9, f32::MIN, f32::from_bits(0x7fc0_0001), -160.0, -0.0];
                let y = f32::vectorise(level, Exp2(special.repeat(2), small));
                assert!(y[1].is_nan() && y[5].is_nan(), "{level:?}");
                assert_eq!([y[0], y[2], y[3], y[4], y[6], y[7]], [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
            }
        }
    }

    #[test]
    fn sums_are_sums() {
        for n in [0, 1, 15, 64, 100, 1000] {
            let x: Vec<f64> = (0..n).map(|i| (i % 7) as f64 - 2.5).collect();
            let mut y: Vec<f64> = (0..n).map(|i| (i % 5) as f64).collect();
            assert_eq!(sum(&x), x.iter().sum::<f64>());
            assert_eq!(dot(&x, &y), x.iter().zip(&y).map(|(x, y)| x * y).sum::<f64>());
            let expected: Vec<f64> = x.iter().zip(&y).map(|(x, y)| y + 0.5 * x).collect();
            axpy(0.5, &x, &mut y);
            assert_eq!(y, expected);
        }
    }
}
