// One entry for each primitive of prelude.cuh, with plain inputs and outputs: run on the emulator and on a GPU.
#include "prelude.cuh"

// Thread t copies 16 bytes from in[4·source[t]…]; source −1: not valid.
KERNEL(copy_16, 32)(const float* in, const int* source, float* out) {
    SHARED(float4, tile, 32);
    int t = threadIdx.x;
    cp_async_16(&tile[t], in + 4 * (source[t] < 0 ? 0 : source[t]), source[t] >= 0);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    reinterpret_cast<float4*>(out)[t] = tile[t];
}

KERNEL(copy_4, 32)(const float* in, const int* source, float* out) {
    SHARED(float, tile, 32);
    int t = threadIdx.x;
    cp_async_4(&tile[t], in + (source[t] < 0 ? 0 : source[t]), source[t] >= 0);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    out[t] = tile[t];
}

// Three groups; the wait leaves one pending, so that the first two must have come.
KERNEL(copy_groups, 32)(const float* in, float* out) {
    SHARED(float, tile, 96);
    int t = threadIdx.x;
    for (int group = 0; group < 3; ++group) {
        cp_async_4(&tile[group * 32 + t], &in[group * 32 + t], true);
        cp_async_commit();
    }
    cp_async_wait<1>();
    __syncthreads();
    out[t] = tile[31 - t];
    out[32 + t] = tile[32 + 31 - t];
    cp_async_wait<0>();
    __syncthreads();
    out[64 + t] = tile[64 + 31 - t];
}

KERNEL(exp2_approximately, 256)(const float* in, float* out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) out[i] = exp2_approx(in[i]);
}

KERNEL(warp_reductions, 64)(const float* in, float* sums, float* maxima) {
    sums[threadIdx.x] = warp_sum(in[threadIdx.x]);
    maxima[threadIdx.x] = warp_max(in[threadIdx.x]);
}

// 10 values a lane: what each collective gives to it.
KERNEL(collectives, 32)(const int* in, int* out) {
    int t = threadIdx.x, x = in[t];
    int* o = out + 10 * t;
    o[0] = __shfl_sync(FULL_WARP, x, 5);
    o[1] = __shfl_sync(FULL_WARP, x, 3, 8);
    o[2] = __shfl_xor_sync(FULL_WARP, x, 5);
    o[3] = __shfl_up_sync(FULL_WARP, x, 3);
    o[4] = __shfl_down_sync(FULL_WARP, x, 3);
    o[5] = __shfl_up_sync(FULL_WARP, x, 1, 16);
    o[6] = __shfl_down_sync(FULL_WARP, x, 2, 4);
    o[7] = (int)__ballot_sync(FULL_WARP, x % 3 == 0);
    o[8] = __any_sync(FULL_WARP, x == 7) * 2 + __all_sync(FULL_WARP, x >= 0);
    // Two halves, each with its own mask, at two places.
    if (t < 16) {
        o[9] = __shfl_xor_sync(0x0000ffffu, x, 1);
    } else {
        o[9] = (int)__ballot_sync(0xffff0000u, t & 1);
    }
}

// 8-byte and floating-point shuffles.
KERNEL(wide_shuffles, 32)(const double* in, double* out) {
    out[threadIdx.x] = __shfl_down_sync(FULL_WARP, in[threadIdx.x], 1);
}

KERNEL(barriers_with_votes, 96)(int* out) {
    int t = threadIdx.x;
    int count = __syncthreads_count(t % 2);
    int any = __syncthreads_or(t == 95), none = __syncthreads_or(0);
    int all = __syncthreads_and(1), not_all = __syncthreads_and(t != 5);
    out[t] = count * 16 + any * 8 + none * 4 + (all != 0) * 2 + (not_all != 0);
}

KERNEL(atomics, 256)(float* sum, int* count, unsigned* maximum) {
    atomicAdd(sum, 0.5f);
    atomicAdd(count, 2);
    atomicMax(maximum, blockIdx.x * 256 + threadIdx.x);
}

KERNEL(random_words, 32)(const uint32_t* counter, const uint64_t* seed, uint32_t* out, float* uniforms) {
    int t = threadIdx.x;
    const uint32_t* c = counter + 4 * t;
    Philox p = philox(seed[t], (uint64_t)c[1] << 32 | c[0], c[2], c[3]);
    for (int i = 0; i < 4; ++i) out[4 * t + i] = p.word[i], uniforms[4 * t + i] = uniform(p.word[i]);
}

// Each block writes, waits for all, and reads its neighbour's, `steps` times over two buffers of a value for each thread of
// each block: values[block] ends as the sum of what its `steps` neighbours began with and their numbers of steps.
KERNEL(blocks_in_step, 64)(float* values, unsigned* counter, int steps) {
    int blocks = gridDim.x, n = blocks * 64, me = blockIdx.x * 64 + threadIdx.x;
    for (int step = 0; step < steps; ++step) {
        const float* from = values + step % 2 * n;
        float* to = values + (step + 1) % 2 * n;
        int neighbour = (blockIdx.x + 1) % blocks * 64 + (threadIdx.x + 1) % 64;
        to[me] = __ldcg(from + neighbour) + 1.f;
        signal(counter);
        await(counter, (unsigned)(step + 1) * blocks);
    }
}
