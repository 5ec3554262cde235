// CUDA's mathematical functions, for emulator.h. The accurate ones are the C library's; those which the
// hardware approximates are written so that the compiler can vectorise them.
#pragma once

extern "C" {
#define EMULATOR_1(name) float name##f(float) noexcept; double name(double) noexcept;
EMULATOR_1(exp) EMULATOR_1(exp2) EMULATOR_1(expm1) EMULATOR_1(log) EMULATOR_1(log2) EMULATOR_1(log10)
EMULATOR_1(log1p) EMULATOR_1(sin) EMULATOR_1(cos) EMULATOR_1(tan) EMULATOR_1(asin) EMULATOR_1(acos) EMULATOR_1(atan)
EMULATOR_1(sinh) EMULATOR_1(cosh) EMULATOR_1(tanh) EMULATOR_1(erf) EMULATOR_1(erfc) EMULATOR_1(sqrt) EMULATOR_1(cbrt)
EMULATOR_1(floor) EMULATOR_1(ceil) EMULATOR_1(trunc) EMULATOR_1(round) EMULATOR_1(rint) EMULATOR_1(fabs)
#undef EMULATOR_1
#define EMULATOR_2(name) float name##f(float, float) noexcept; double name(double, double) noexcept;
EMULATOR_2(pow) EMULATOR_2(fmod) EMULATOR_2(copysign) EMULATOR_2(atan2) EMULATOR_2(hypot)
#undef EMULATOR_2
float fmaf(float, float, float) noexcept;
double fma(double, double, double) noexcept;
float ldexpf(float, int) noexcept;
double ldexp(double, int) noexcept;
}

#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))

// --- Bits ---------------------------------------------------------------------------------------

namespace emulator {
template <class To, class From> static __forceinline__ To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}
}  // namespace emulator
static __forceinline__ int __float_as_int(float x) { return emulator::bits_as<int>(x); }
static __forceinline__ unsigned __float_as_uint(float x) { return emulator::bits_as<unsigned>(x); }
static __forceinline__ float __int_as_float(int x) { return emulator::bits_as<float>(x); }
static __forceinline__ float __uint_as_float(unsigned x) { return emulator::bits_as<float>(x); }
static __forceinline__ long long __double_as_longlong(double x) { return emulator::bits_as<long long>(x); }
static __forceinline__ double __longlong_as_double(long long x) { return emulator::bits_as<double>(x); }
static __forceinline__ int __popc(unsigned x) { return __builtin_popcount(x); }
static __forceinline__ int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static __forceinline__ int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static __forceinline__ int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static __forceinline__ int __ffs(int x) { return __builtin_ffs(x); }
static __forceinline__ int __ffsll(long long x) { return __builtin_ffsll(x); }
static __forceinline__ unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
static __forceinline__ unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static __forceinline__ int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }

// --- Minimum, maximum, absolute value -----------------------------------------------------------

// IEEE 754's maxNum, as in CUDA: a NaN loses against a number. Written out because without -ffast-math the
// compiler calls the C library for it.
static __forceinline__ float fmaxf(float a, float b) { return a >= b || b != b ? a : b; }
static __forceinline__ float fminf(float a, float b) { return a <= b || b != b ? a : b; }
static __forceinline__ double fmax(double a, double b) { return a >= b || b != b ? a : b; }
static __forceinline__ double fmin(double a, double b) { return a <= b || b != b ? a : b; }

// The same overloads as CUDA's, so that what is ambiguous there is ambiguous here.
#define EMULATOR_MINMAX(A, B, R)                                                                 \
    static __forceinline__ R min(A a, B b) { return (R)a < (R)b ? (R)a : (R)b; }                 \
    static __forceinline__ R max(A a, B b) { return (R)a > (R)b ? (R)a : (R)b; }
EMULATOR_MINMAX(int, int, int)
EMULATOR_MINMAX(unsigned, unsigned, unsigned)
EMULATOR_MINMAX(int, unsigned, unsigned)
EMULATOR_MINMAX(unsigned, int, unsigned)
EMULATOR_MINMAX(long, long, long)
EMULATOR_MINMAX(unsigned long, unsigned long, unsigned long)
EMULATOR_MINMAX(long, unsigned long, unsigned long)
EMULATOR_MINMAX(unsigned long, long, unsigned long)
EMULATOR_MINMAX(long long, long long, long long)
EMULATOR_MINMAX(unsigned long long, unsigned long long, unsigned long long)
EMULATOR_MINMAX(long long, unsigned long long, unsigned long long)
EMULATOR_MINMAX(unsigned long long, long long, unsigned long long)
#undef EMULATOR_MINMAX
static __forceinline__ float min(float a, float b) { return fminf(a, b); }
static __forceinline__ float max(float a, float b) { return fmaxf(a, b); }
static __forceinline__ double min(double a, double b) { return fmin(a, b); }
static __forceinline__ double max(double a, double b) { return fmax(a, b); }
static __forceinline__ double min(float a, double b) { return fmin(a, b); }
static __forceinline__ double max(float a, double b) { return fmax(a, b); }
static __forceinline__ double min(double a, float b) { return fmin(a, b); }
static __forceinline__ double max(double a, float b) { return fmax(a, b); }
static __forceinline__ int abs(int x) { return __builtin_abs(x); }
static __forceinline__ long abs(long x) { return __builtin_labs(x); }
static __forceinline__ long long abs(long long x) { return __builtin_llabs(x); }
static __forceinline__ float abs(float x) { return __builtin_fabsf(x); }
static __forceinline__ double abs(double x) { return __builtin_fabs(x); }

template <class T> static __forceinline__ bool isnan(T x) { return __builtin_isnan(x); }
template <class T> static __forceinline__ bool isinf(T x) { return __builtin_isinf(x); }
template <class T> static __forceinline__ bool isfinite(T x) { return __builtin_isfinite(x); }
template <class T> static __forceinline__ bool signbit(T x) { return __builtin_signbit(x); }

// --- Approximations -----------------------------------------------------------------------------

// ex2.approx.ftz: a polynomial on [-1/2, 1/2], relative error below 2^-22; results below 2^-126 are 0.
static __forceinline__ float exp2_approx(float x) {
    float clamped = x < -127.f ? -127.f : x > 128.f ? 128.f : x;  // a NaN stays
    // Adding 1.5·2^23 rounds to an integer, which then stands in the low bits.
    float shifted = clamped + 12582912.f;
    int exponent = __float_as_int(shifted) - 0x4b400000;
    float r = clamped - (shifted - 12582912.f);
    float p = 1.5252734e-5f;
    p = p * r + 1.5403530e-4f;
    p = p * r + 1.3333558e-3f;
    p = p * r + 9.6181291e-3f;
    p = p * r + 5.5504109e-2f;
    p = p * r + 2.4022651e-1f;
    p = p * r + 6.9314718e-1f;
    p = p * r + 1.0f;
    // In two steps: 2^128 has no representation.
    int half = exponent >> 1;
    float y = p * __int_as_float((half + 127) << 23) * __int_as_float((exponent - half + 127) << 23);
    return y < 1.17549435e-38f ? 0.f : y;
}
static __forceinline__ float emulator_expf(float x) { return exp2_approx(x * 1.4426950408889634f); }
static __forceinline__ float emulator_logf(float x) { return log2f(x) * 0.6931471805599453f; }

// glibc declares some of these names, so they are macros.
#define __expf(x) emulator_expf(x)
#define __exp10f(x) exp2_approx((x) * 3.321928094887362f)
#define __logf(x) emulator_logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) exp2_approx((y) * log2f(x))
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __sincosf(x, s, c) (*(s) = sinf(x), *(c) = cosf(x))
static __forceinline__ void sincosf(float x, float* s, float* c) { *s = sinf(x), *c = cosf(x); }
static __forceinline__ float exp10f(float x) { return powf(10.f, x); }
static __forceinline__ float rsqrtf(float x) { return 1.f / sqrtf(x); }
static __forceinline__ float __frsqrt_rn(float x) { return 1.f / sqrtf(x); }
static __forceinline__ float normcdff(float x) { return 0.5f * erfcf(-0.70710678118654752f * x); }
static __forceinline__ float __fdividef(float a, float b) { return a / b; }
static __forceinline__ float __saturatef(float x) { return x > 1.f ? 1.f : x > 0.f ? x : 0.f; }

// --- Single operations, never fused -------------------------------------------------------------

static __forceinline__ float emulator_alone(float x) {
    asm("" : "+" EMULATOR_FLOAT_REGISTER(x));
    return x;
}
static __forceinline__ float __fadd_rn(float a, float b) { return emulator_alone(emulator_alone(a) + b); }
static __forceinline__ float __fsub_rn(float a, float b) { return emulator_alone(emulator_alone(a) - b); }
static __forceinline__ float __fmul_rn(float a, float b) { return emulator_alone(a * b); }
static __forceinline__ float __fdiv_rn(float a, float b) { return a / b; }
static __forceinline__ float __frcp_rn(float x) { return 1.f / x; }
static __forceinline__ float __fsqrt_rn(float x) { return sqrtf(x); }
static __forceinline__ float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

// --- Conversions --------------------------------------------------------------------------------

// CUDA saturates and turns NaN into 0; in C++ both would be undefined.
static __forceinline__ int emulator_to_int(float x) {
    return x != x ? 0 : x >= 2147483648.f ? 2147483647 : x < -2147483648.f ? -2147483647 - 1 : (int)x;
}
static __forceinline__ unsigned emulator_to_uint(float x) {
    return !(x > 0.f) ? 0u : x >= 4294967296.f ? 4294967295u : (unsigned)x;
}
static __forceinline__ int __float2int_rn(float x) { return emulator_to_int(rintf(x)); }
static __forceinline__ int __float2int_rz(float x) { return emulator_to_int(x); }
static __forceinline__ int __float2int_rd(float x) { return emulator_to_int(floorf(x)); }
static __forceinline__ int __float2int_ru(float x) { return emulator_to_int(ceilf(x)); }
static __forceinline__ unsigned __float2uint_rn(float x) { return emulator_to_uint(rintf(x)); }
static __forceinline__ unsigned __float2uint_rz(float x) { return emulator_to_uint(x); }
static __forceinline__ float __int2float_rn(int x) { return (float)x; }
static __forceinline__ float __uint2float_rn(unsigned x) { return (float)x; }
static __forceinline__ float __ll2float_rn(long long x) { return (float)x; }
