// y = x·kept/(1 − p); the same kernel gives dx from dy. Element i is kept iff its uniform number is at least p.
// A thread takes the four elements of one Philox block.
#include "numbers.cuh"

KERNEL(dropout, 256)
(const real* x, const uint32_t* rng, real* y, long long n, float p, float scale, uint32_t stream, int accumulate) {
    long long block = blockIdx.x * 256ll + threadIdx.x;
    if (4 * block >= n) return;
    uint64_t seed = rng[0] | (uint64_t)rng[1] << 32;
    Philox random = philox(seed, block, stream, rng[2]);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        long long i = 4 * block + e;
        if (i >= n) break;
        float kept = uniform(random.word[e]) >= p ? widen(x[i]) * scale : 0.f;
        y[i] = narrow<real>((accumulate ? widen(y[i]) : 0.f) + kept);
    }
}
