// Head h of a row goes to place `slot(h)`, or back from there. DRAWN 0: one place to the left, the first last.
// DRAWN 1: to its rank among the heads' random words. A warp a row of D columns.
#include "numbers.cuh"

#if DRAWN
// The word of an element, chosen without an index into the four: those would lie in memory.
__device__ __forceinline__ uint32_t word(uint64_t seed, int element, uint32_t stream, uint32_t step) {
    Philox random = philox(seed, element / 4, stream, step);
    uint32_t low = element & 1 ? random.word[1] : random.word[0], high = element & 1 ? random.word[3] : random.word[2];
    return element & 2 ? high : low;
}
#endif

KERNEL(permute_heads, 256)
(RealView from, RealView to, const uint32_t* rng, uint32_t stream, long long rows, int heads, int length, int columns,
 int back, int accumulate) {
    long long row = blockIdx.x * 8ll + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    int h = row % heads;
    long long place = row / heads;
    int t = place % length, b = place / length;
#if DRAWN
    uint64_t seed = rng[0] | (uint64_t)rng[1] << 32;
    uint32_t own = word(seed, h, stream, rng[2]);
    int slot = 0;
    for (int base = 0; base < heads; base += 32) {
        int other = base + lane;
        uint32_t drawn = word(seed, other, stream, rng[2]);
        slot += __popc(__ballot_sync(FULL_WARP, other < heads && (drawn < own || (drawn == own && other < h))));
    }
#else
    int slot = h ? h - 1 : heads - 1;
#endif
    const real* source = from.at(b, back ? slot : h, t);
    real* target = to.at(b, back ? h : slot, t);
    for (int c = lane; c < columns; c += 32)
        target[c] = narrow<real>((accumulate ? widen(target[c]) : 0.f) + widen(source[c]));
}
