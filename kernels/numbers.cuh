// Numbers as they are stored, 16 bits or 32, and their way to f32 and back. Arithmetic is always in f32.
// Define: STORAGE (f16, bf16 or f32; f32 unless given), the type `real` of what a device stores.
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

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((unsigned int)x.bits << 16); }
__device__ __forceinline__ float widen(f16 x) {
    unsigned int magnitude = x.bits & 0x7fffu, sign = (unsigned int)(x.bits & 0x8000u) << 16;
    // A subnormal's bits count 2^-24; otherwise the exponent's bias grows by 112, to all ones from all ones.
    float y = magnitude < 0x400u ? magnitude * (1.f / 16777216.f)
                                 : __uint_as_float((magnitude << 13) + (magnitude < 0x7c00u ? 112u << 23 : 224u << 23));
    return __uint_as_float(__float_as_uint(y) | sign);
}

// To nearest, ties to even.
template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float x) {
    unsigned int bits = __float_as_uint(x);
    if (x != x) return {(unsigned short)(bits >> 16 | 0x40u)};
    return {(unsigned short)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
template <>
__device__ __forceinline__ f16 narrow<f16>(float x) {
    unsigned int bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return {(unsigned short)(sign | 0x7e00u)};
    if (bits >= 0x47800000u) return {(unsigned short)(sign | 0x7c00u)};  // 65536 and more
    // Below 2^-14 the result counts 2^-24, which are the last bits of x + 0.5: the addition rounds.
    if (bits < 0x38800000u)
        return {(unsigned short)(sign | (__float_as_uint(__uint_as_float(bits) + 0.5f) - __float_as_uint(0.5f)))};
    bits += 0xfffu + (bits >> 13 & 1);
    return {(unsigned short)(sign | ((bits - (112u << 23)) >> 13))};
}
