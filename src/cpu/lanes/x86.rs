//! AVX-512 and AVX2.

use super::{Kernel, Level, Plain, Simd, Vectors, exp_small_f32, exp_small_f64, exp2_f32, exp2_f64};
use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

/// Proof of AVX-512 F and DQ. Made only by `vectorise`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(());
/// Proof of AVX2 and FMA. Made only by `vectorise`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

/// What differs between the instruction sets and element types; `intrinsic!` wraps one.
macro_rules! x86 {
    (
        $proof:ident, $features:literal, $t:ident, $v:ident($raw:ident), $lanes:literal, $wide:literal, $exp2:ident, $exp_small:ident,
        $add:ident, $sub:ident, $mul:ident, $div:ident, $splat:ident, $load:ident, $store:ident, $fma:ident,
        $max:ident, $min:ident, $round:expr, $scale:expr, $lanes_after:expr, $if_less:expr, $all_equal:expr, $zip:expr, $power:expr
    ) => {
        /// A vector; it exists only where its instructions do.
        #[derive(Debug, Clone, Copy)]
        pub(super) struct $v($raw);
        x86!(@op $v, Add, add, $add);
        x86!(@op $v, Sub, sub, $sub);
        x86!(@op $v, Mul, mul, $mul);
        x86!(@op $v, Div, div, $div);
        // SAFETY, of every block below: `self` proves that the machine has the instructions.
        impl Simd<$t> for $proof {
            type V = $v;
            const LANES: usize = $lanes;
            const WIDE: bool = $wide;
            #[inline(always)]
            fn splat(self, x: $t) -> $v {
                // SAFETY: see above.
                $v(unsafe { $splat(x) })
            }
            #[inline(always)]
            fn load(self, from: &[$t]) -> $v {
                // SAFETY: the slice holds a vector, as the index shows.
                $v(unsafe { $load(from[..$lanes].as_ptr()) })
            }
            #[inline(always)]
            fn store(self, v: $v, to: &mut [$t]) {
                // SAFETY: the slice holds a vector, as the index shows.
                unsafe { $store(to[..$lanes].as_mut_ptr(), v.0) }
            }
            #[inline(always)]
            unsafe fn read(self, from: *const $t) -> $v {
                // SAFETY: by the caller's word.
                $v(unsafe { $load(from) })
            }
            #[inline(always)]
            unsafe fn write(self, v: $v, to: *mut $t) {
                // SAFETY: by the caller's word.
                unsafe { $store(to, v.0) }
            }
            #[inline(always)]
            fn mul_add(self, a: $v, b: $v, c: $v) -> $v {
                // SAFETY: see above.
                $v(unsafe { $fma(a.0, b.0, c.0) })
            }
            #[inline(always)]
            fn max(self, a: $v, b: $v) -> $v {
                // SAFETY: see above.
                $v(unsafe { $max(a.0, b.0) })
            }
            #[inline(always)]
            fn min(self, a: $v, b: $v) -> $v {
                // SAFETY: see above.
                $v(unsafe { $min(a.0, b.0) })
            }
            #[inline(always)]
            fn round(self, a: $v) -> $v {
                // SAFETY: see above.
                $v(unsafe { $round(a.0) })
            }
            #[inline(always)]
            fn scale(self, a: $v, n: $v) -> $v {
                // SAFETY: see above.
                $v(unsafe { $scale(a.0, n.0) })
            }
            #[inline(always)]
            fn lanes_after(self, first: usize, a: $v, before: $v) -> $v {
                // SAFETY: see above.
                $v(unsafe { $lanes_after(first, a.0, before.0) })
            }
            #[inline(always)]
            fn if_less(self, a: $v, b: $v, yes: $v, no: $v) -> $v {
                // SAFETY: see above.
                $v(unsafe { $if_less(a.0, b.0, yes.0, no.0) })
            }
            #[inline(always)]
            fn all_equal(self, a: $v, b: $v) -> bool {
                // SAFETY: see above.
                unsafe { $all_equal(a.0, b.0) }
            }
            #[inline(always)]
            fn zip(self, a: $v, b: $v) -> ($v, $v) {
                // SAFETY: see above.
                let (low, high) = unsafe { $zip(a.0, b.0) };
                ($v(low), $v(high))
            }
            #[inline(always)]
            fn power(self, shifted: $v) -> $v {
                // SAFETY: see above.
                $v(unsafe { $power(shifted.0) })
            }
            #[inline(always)]
            fn exp2(self, x: $v) -> $v {
                $exp2(self, x)
            }
            #[inline(always)]
            fn exp_small(self, x: $v) -> $v {
                $exp_small(self, x)
            }
            #[inline(always)]
            fn call<K: Kernel<$t>>(self, k: K) -> K::Output {
                #[target_feature(enable = $features)]
                #[inline(never)]
                fn compiled<K: Kernel<$t>>(proof: $proof, k: K) -> K::Output {
                    k.run(proof)
                }
                // SAFETY: see above.
                unsafe { compiled(self, k) }
            }
        }
    };
    (@op $v:ident, $trait:ident, $f:ident, $intrinsic:ident) => {
        impl $trait for $v {
            type Output = Self;
            #[inline(always)]
            fn $f(self, other: Self) -> Self {
                // SAFETY: a vector exists only where its instructions do.
                $v(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    };
}

/// For `roundscale` and `round`: to nearest, no exceptions.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// Macros rather than functions, so that they are compiled inside functions with the right target features.
macro_rules! lanes_from {
    ($n:literal, $mask:ty, $blend:ident) => {
        |first: usize, a, before| $blend((((1u32 << $n) - 1) & (u32::MAX << first.min($n))) as $mask, before, a)
    };
}

x86!(
    Avx512,
    "avx512f,avx512dq,avx2,fma",
    f32,
    F32x16(__m512),
    16,
    true,
    exp2_f32,
    exp_small_f32,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_div_ps,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    _mm512_max_ps,
    _mm512_min_ps,
    (|a| _mm512_roundscale_ps::<NEAREST>(a)),
    _mm512_scalef_ps,
    (lanes_from!(16, __mmask16, _mm512_mask_blend_ps)),
    (|a, b, yes, no| _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes)),
    (|a, b| _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) == u16::MAX),
    (|a, b| {
        let low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        (_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b))
    }),
    (|x| _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(x))))
);
x86!(
    Avx512,
    "avx512f,avx512dq,avx2,fma",
    f64,
    F64x8(__m512d),
    8,
    true,
    exp2_f64,
    exp_small_f64,
    _mm512_add_pd,
    _mm512_sub_pd,
    _mm512_mul_pd,
    _mm512_div_pd,
    _mm512_set1_pd,
    _mm512_loadu_pd,
    _mm512_storeu_pd,
    _mm512_fmadd_pd,
    _mm512_max_pd,
    _mm512_min_pd,
    (|a| _mm512_roundscale_pd::<NEAREST>(a)),
    _mm512_scalef_pd,
    (lanes_from!(8, __mmask8, _mm512_mask_blend_pd)),
    (|a, b, yes, no| _mm512_mask_blend_pd(_mm512_cmp_pd_mask::<_CMP_LT_OQ>(a, b), no, yes)),
    (|a, b| _mm512_cmp_pd_mask::<_CMP_EQ_OQ>(a, b) == u8::MAX),
    (|a, b| {
        let low = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
        let high = _mm512_add_epi64(low, _mm512_set1_epi64(4));
        (_mm512_permutex2var_pd(a, low, b), _mm512_permutex2var_pd(a, high, b))
    }),
    (|x| _mm512_castsi512_pd(_mm512_slli_epi64::<52>(_mm512_castpd_si512(x))))
);
x86!(
    Avx2,
    "avx2,fma",
    f32,
    F32x8(__m256),
    8,
    false,
    exp2_f32,
    exp_small_f32,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_div_ps,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
    _mm256_max_ps,
    _mm256_min_ps,
    (|a| _mm256_round_ps::<NEAREST>(a)),
    (|a, n| {
        // In two steps, so that results may be denormal or infinite.
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        let bias = _mm256_set1_epi32(127);
        let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias)));
        let rest = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias)));
        _mm256_mul_ps(_mm256_mul_ps(a, power), rest)
    }),
    (|first: usize, a, before| {
        let lane = _mm256_set_ps(7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0);
        _mm256_blendv_ps(a, before, _mm256_cmp_ps::<_CMP_LT_OQ>(lane, _mm256_set1_ps(first as f32)))
    }),
    (|a, b, yes, no| _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))),
    (|a, b| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b)) == 0xff),
    (|a, b| {
        let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        (_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
    }),
    (|x| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(x))))
);
x86!(
    Avx2,
    "avx2,fma",
    f64,
    F64x4(__m256d),
    4,
    false,
    exp2_f64,
    exp_small_f64,
    _mm256_add_pd,
    _mm256_sub_pd,
    _mm256_mul_pd,
    _mm256_div_pd,
    _mm256_set1_pd,
    _mm256_loadu_pd,
    _mm256_storeu_pd,
    _mm256_fmadd_pd,
    _mm256_max_pd,
    _mm256_min_pd,
    (|a| _mm256_round_pd::<NEAREST>(a)),
    (|a, n| {
        let n = _mm256_cvtpd_epi32(n);
        let half = _mm_srai_epi32::<1>(n);
        let bias = _mm256_set1_epi64x(1023);
        let exponent = |e| _mm256_add_epi64(_mm256_cvtepi32_epi64(e), bias);
        let power = _mm256_castsi256_pd(_mm256_slli_epi64::<52>(exponent(half)));
        let rest = _mm256_castsi256_pd(_mm256_slli_epi64::<52>(exponent(_mm_sub_epi32(n, half))));
        _mm256_mul_pd(_mm256_mul_pd(a, power), rest)
    }),
    (|first: usize, a, before| {
        let lane = _mm256_set_pd(3.0, 2.0, 1.0, 0.0);
        _mm256_blendv_pd(a, before, _mm256_cmp_pd::<_CMP_LT_OQ>(lane, _mm256_set1_pd(first as f64)))
    }),
    (|a, b, yes, no| _mm256_blendv_pd(no, yes, _mm256_cmp_pd::<_CMP_LT_OQ>(a, b))),
    (|a, b| _mm256_movemask_pd(_mm256_cmp_pd::<_CMP_EQ_OQ>(a, b)) == 0xf),
    (|a, b| {
        let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
        (_mm256_permute2f128_pd::<0x20>(low, high), _mm256_permute2f128_pd::<0x31>(low, high))
    }),
    (|x| _mm256_castsi256_pd(_mm256_slli_epi64::<52>(_mm256_castpd_si256(x))))
);

macro_rules! vectors {
    ($t:ident) => {
        impl Vectors for $t {
            #[inline]
            fn vectorise<K: Kernel<Self>>(level: Level, k: K) -> K::Output {
                let best = Level::detected();
                match if (level as u8) < best as u8 { level } else { best } {
                    // The CPU has been asked: these are the places where the proofs are made.
                    Level::Avx512 => Simd::<$t>::call(Avx512(()), k),
                    Level::Avx2 => Simd::<$t>::call(Avx2(()), k),
                    Level::Plain => k.run(Plain),
                }
            }
        }
    };
}
vectors!(f32);
vectors!(f64);
