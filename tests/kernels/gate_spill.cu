// Far more live values than 1024 threads leave registers for.
#include "prelude.cuh"

KERNEL(spilling, 1024)(const float* in, float* out, int rounds) {
    float value[160];
#pragma unroll
    for (int i = 0; i < 160; ++i) value[i] = in[i * 1024 + threadIdx.x];
    for (int round = 0; round < rounds; ++round) {
#pragma unroll
        for (int i = 0; i < 160; ++i) value[i] = value[i] * value[(i + 7) % 160] + value[(i + 31) % 160];
    }
#pragma unroll
    for (int i = 0; i < 160; ++i) out[i * 1024 + threadIdx.x] = value[i];
}
