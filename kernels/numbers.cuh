// The numbers that tensors are stored in, and the way between them and the f32 that kernels compute with.
// A kernel is compiled once for each storage: -DSTORAGE=f16, bf16 or f32.
#pragma once
#include "prelude.cuh"

struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};
typedef float f32;

#ifndef STORAGE
#define STORAGE f32
#endif
typedef STORAGE real;

// --- Primitives on bits -------------------------------------------------------------------------

#ifdef EMULATOR
#include "half.h"
#else

__device__ __forceinline__ float widen_f16(unsigned short bits) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
    return y;
}
__device__ __forceinline__ unsigned short narrow_f16(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

#endif

#if !defined(EMULATOR) && __CUDA_ARCH__ >= 800

__device__ __forceinline__ unsigned short narrow_bf16(float x) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
// Of the instruction's two operands the first becomes the upper half.
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
    uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// TF32 has f32's exponent and 10 bits of mantissa: nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

#else

// Without these instructions (sm_75, and the emulator): rounding by adding to the bits, where a carry out of the
// mantissa raises the exponent, at the end to infinity. A NaN becomes the one that the instructions give.
__device__ __forceinline__ unsigned short narrow_bf16(float x) {
    uint32_t bits = __float_as_uint(x);
    return (unsigned short)(x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
    return narrow_f16(low) | (uint32_t)narrow_f16(high) << 16;
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    return narrow_bf16(low) | (uint32_t)narrow_bf16(high) << 16;
}
__device__ __forceinline__ uint32_t to_tf32(float x) {
    return x != x ? 0x7fffffffu : (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
}

#endif

// --- By type ------------------------------------------------------------------------------------

// Exact.
__device__ __forceinline__ float widen(f32 x) { return x; }
__device__ __forceinline__ float widen(f16 x) { return widen_f16(x.bits); }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }

// To the nearest, of two the even one; too large a number becomes infinity, and a NaN stays one.
template <class T>
__device__ T narrow(float x);
template <>
__device__ __forceinline__ f32 narrow<f32>(float x) { return x; }
template <>
__device__ __forceinline__ f16 narrow<f16>(float x) { return {narrow_f16(x)}; }
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float x) { return {narrow_bf16(x)}; }

// Two numbers, narrowed, as one register: `low` in its lower half, which in memory comes first.
template <class T>
__device__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<f16>(float low, float high) { return pack_f16(low, high); }
template <>
__device__ __forceinline__ uint32_t pack<bf16>(float low, float high) { return pack_bf16(low, high); }

// A tensor of them, read in place.
typedef ViewOf<real> RealView;
