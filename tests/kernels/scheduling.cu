// Kernels, right and wrong, that show how the emulator schedules and what it finds.
#include "prelude.cuh"

KERNEL(add, 1024)(const float* a, const float* b, float* out, int n) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] + b[i];
}

// out[block] = sum of the block's 256 values.
KERNEL(block_sum, 256)(const float* in, float* out) {
    SHARED(float, sums, 256);
    int t = threadIdx.x;
    sums[t] = in[blockIdx.x * 256 + t];
    for (int half = 128; half > 0; half >>= 1) {
#ifndef WITHOUT_BARRIER
        __syncthreads();
#endif
        if (t < half) sums[t] += sums[t + half];  // here: block_sum
    }
    if (t == 0) out[blockIdx.x] = sums[0];
}

KERNEL(leaves_early, 256)(int stay) {
    if ((int)threadIdx.x >= stay) return;
    __syncthreads();  // here: leaves_early
}

KERNEL(diverges, 64)(int* out) {
    if (threadIdx.x < 32) {
        __syncthreads();  // here: diverges, one
        out[0] = 1;
    } else {
        __syncthreads();  // here: diverges, other
        out[1] = 1;
    }
}

KERNEL(half_warp, 32)(float* out) {
    float x = threadIdx.x;
    if (threadIdx.x < 16) x = __shfl_xor_sync(FULL_WARP, x, 1);  // here: half_warp
    out[threadIdx.x] = x;
}

KERNEL(mixed_collectives, 32)(float* out) {
    float x = threadIdx.x;
    if (threadIdx.x < 16) {
        x = __shfl_xor_sync(FULL_WARP, x, 1);
    } else {
        __syncwarp();  // here: mixed_collectives
    }
    out[threadIdx.x] = x;
}

// Loops over tiles of 128 values with a double buffer, as the attention kernels do; out[t] = sum over the tiles of
// the neighbour's value. Each mistake is one missing line.
KERNEL(pipeline, 128)(const float* in, float* out, int tiles) {
    DYNAMIC_SHARED(float, buffers);
    int t = threadIdx.x;
    cp_async_4(&buffers[t], &in[t], true);
    cp_async_commit();
    float sum = 0.f;
    for (int tile = 0; tile < tiles; ++tile) {
        bool more = tile + 1 < tiles;
        cp_async_4(&buffers[(tile + 1) % 2 * 128 + t], more ? &in[(tile + 1) * 128 + t] : in, more);
        cp_async_commit();
#ifndef WITHOUT_WAIT
        cp_async_wait<1>();
#endif
        __syncthreads();
        sum += buffers[tile % 2 * 128 + (t + 1) % 128];  // here: pipeline
#ifndef WITHOUT_LAST_BARRIER
        __syncthreads();
#endif
    }
    out[t] = sum;
}

KERNEL(out_of_bounds, 32)(float* out, int n) {
    if ((int)threadIdx.x <= n) out[threadIdx.x] = 1.f;  // here: out_of_bounds
}

KERNEL(shared_out_of_bounds, 32)(float* out) {
    SHARED(float, small, 32);
    small[threadIdx.x + 1] = 1.f;  // here: shared_out_of_bounds
    __syncthreads();
    out[threadIdx.x] = small[threadIdx.x];
}

KERNEL(lost_update, 64)(int* out) { out[0] += 1; }  // here: lost_update

KERNEL(blocks_race, 1)(int* out) { out[0] = blockIdx.x; }  // here: blocks_race

KERNEL(too_much_shared, 32)(float* out) {
    SHARED(float, large, 64 * 1024);
    large[threadIdx.x] = 0.f;
    out[threadIdx.x] = large[threadIdx.x];
}

struct Parameters {
    float* out;
    long long offset;
    float scale;
};

// Structs by value, templates, lambdas, unrolled loops, a collective within a template.
template <int N, class F> __device__ __forceinline__ float accumulate(F value) {
    float sums[N] = {};
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] = value(i);
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += sums[i];
    return warp_sum(sum);
}
KERNEL(language, 96)(Parameters p, char flag, View view) {
    float sum = accumulate<4>([=] __device__(int i) { return p.scale * (float)(i + (int)threadIdx.x); });
    SHARED(float2, pairs, 96);
    pairs[threadIdx.x] = make_float2(sum, __syncthreads_count(threadIdx.x % 3 == 0));
    __syncthreads();
    float2 pair = pairs[95 - threadIdx.x];
    p.out[p.offset + threadIdx.x] = flag ? pair.x + pair.y : 0.f;
    if (threadIdx.x == 0) *view.at(1, 2, 3) = 5.f;
}

// Waits for `goal` signals of all blocks; block `absent` gives none.
KERNEL(meets, 64)(unsigned* counter, unsigned goal, int absent) {
    if ((int)blockIdx.x == absent) return;
    signal(counter);  // here: meets, signal
    await(counter, goal);  // here: meets
}

// One block fails while the others wait.
KERNEL(fails_alone, 64)(unsigned* counter) {
    if (blockIdx.x == 2) __trap();  // here: fails_alone
    signal(counter);
    await(counter, gridDim.x);
}

// A block's thread 0 waits while the others go on to a barrier that it has yet to reach.
KERNEL(waits_alone, 64)(unsigned* counter, int* out) {
    if (blockIdx.x == 0) {
        SHARED(int, ready, 1);
        if (threadIdx.x == 63) ready[0] = 7;
        await(counter, 1u);
        out[threadIdx.x] = ready[0];
    } else {
        signal(counter);
    }
}
