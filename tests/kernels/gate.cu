// Touches every primitive of the prelude, so that each is compiled for every architecture.
#include "prelude.cuh"

KERNEL(everything, 128)(View in, float* out, int length, uint64_t seed) {
    SHARED(float, fixed, 128);
    DYNAMIC_SHARED(float, tile);
    int t = threadIdx.x;
    bool valid = t < length;
    cp_async_16(tile + 4 * t, in.at(blockIdx.x, 0, t), valid);
    cp_async_4(fixed + t, in.at(blockIdx.x, 1, t), valid);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    float sum = warp_sum(exp2_approx(tile[4 * t])), most = warp_max(fixed[t]);
    float drawn = uniform(philox(seed, t, 1, 2).word[0]);
    out[blockIdx.x * 128 + t] = most == -INFINITY ? drawn : sum * SCALE + most;
}

KERNEL(second, 32)(float* out) { out[threadIdx.x] = 0.f; }
