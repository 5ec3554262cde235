// Half precision in integers, for kernels (numbers.cuh) and for the runtime (tensor_core.h). Without branches, so
// that the compiler can vectorise it.
#pragma once
#include "interface.h"

static inline __attribute__((always_inline)) float widen_f16(unsigned short bits) {
    uint32_t magnitude = bits & 0x7fffu;
    uint32_t normal = (magnitude << 13) + (112u << 23);  // f32's exponent is 127 − 15 larger
    normal += magnitude >= 0x7c00u ? 112u << 23 : 0u;    // infinities and NaN: all ones
    // 0.5f's last place is 2^-24, as f16's denormals have it. Not by way of f32's own denormals: processors take a
    // hundred times longer for those.
    uint32_t shifted = 0x3f000000u + magnitude;
    float small;
    __builtin_memcpy(&small, &shifted, 4);
    small -= 0.5f;
    uint32_t denormal;
    __builtin_memcpy(&denormal, &small, 4);
    uint32_t is_denormal = -static_cast<uint32_t>(magnitude < 0x400u);  // `?:` would become a branch
    uint32_t wide = (denormal & is_denormal) | (normal & ~is_denormal) | (bits & 0x8000u) << 16;
    float x;
    __builtin_memcpy(&x, &wide, 4);
    return x;
}

static inline __attribute__((always_inline)) unsigned short narrow_f16(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    // Normal: half of the last place that stays, less one where that place is even; then f16's exponent.
    uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
    // Below 2^-14: the last place of 0.5f is 2^-24, as f16's denormals have it, so the addition rounds to it.
    float small;
    __builtin_memcpy(&small, &magnitude, 4);
    small += 0.5f;
    uint32_t denormal;
    __builtin_memcpy(&denormal, &small, 4);
    denormal -= 0x3f000000u;
    uint32_t narrow = magnitude < 0x38800000u ? denormal : normal;
    narrow = magnitude >= 0x47800000u ? 0x7c00u : narrow;  // from 65,536
    return static_cast<unsigned short>(x != x ? 0x7fffu : sign | narrow);
}
