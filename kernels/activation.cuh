// What layers apply to their sums, and its derivative.
// Define before including: ACTIVATION (0: none, 1: GELU by tanh, 2: GELU by erf, 3: ReLU, 4: tanh).
#pragma once
#include "prelude.cuh"

#if ACTIVATION == 1
// gelu(z) = z/2·(1 + tanh(√(2/π)·(z + 0.044715·z³))) and its derivative.
__device__ __forceinline__ float activate(float z, float& slope) {
    const float scale = 0.7978845608f, cubic = 0.044715f;
    float t = tanhf(scale * (z + cubic * z * z * z));
    slope = 0.5f * (1.f + t) + 0.5f * z * (1.f - t * t) * scale * (1.f + 3.f * cubic * z * z);
    return 0.5f * z * (1.f + t);
}
#elif ACTIVATION == 2
// gelu(z) = z·Φ(z), Φ the normal distribution; the derivative is Φ(z) + z·φ(z).
__device__ __forceinline__ float activate(float z, float& slope) {
    float below = 0.5f * (1.f + erff(z * 0.7071067812f));
    slope = below + z * 0.3989422804f * expf(-0.5f * z * z);
    return z * below;
}
#elif ACTIVATION == 3
// max(z, 0); NaN stays.
__device__ __forceinline__ float activate(float z, float& slope) {
    slope = z > 0.f ? 1.f : 0.f;
    return z < 0.f ? 0.f : z;
}
#elif ACTIVATION == 4
__device__ __forceinline__ float activate(float z, float& slope) {
    float t = tanhf(z);
    slope = 1.f - t * t;
    return t;
}
#endif
