// Gradients ← gradients·min(1, max_norm / (norm + 1e-6)) with the norm of all of them; hyper[3] ← norm.
// Two launches with fixed partitions: sums of squares of each block, then every block adds those up alike.
#include "prelude.cuh"

// The sum over the block's threads, by halves; all of them get it.
__device__ __forceinline__ float block_sum(float* part, float x) {
    part[threadIdx.x] = x;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    __syncthreads();
    return part[0];
}

KERNEL(gradient_squares, 256)(const float* gradients, long long n, float* squares) {
    SHARED(float, part, 256);
    float sum = 0.f;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < n; i += gridDim.x * 256ll) sum += gradients[i] * gradients[i];
    sum = block_sum(part, sum);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

KERNEL(clip_gradients, 256)
(float* gradients, long long n, const float* squares, int blocks, float max_norm, float* norm_out) {
    SHARED(float, part, 256);
    float sum = 0.f;
    for (int i = threadIdx.x; i < blocks; i += 256) sum += squares[i];
    float norm = sqrtf(block_sum(part, sum));
    if (blockIdx.x == 0 && threadIdx.x == 0) *norm_out = norm;
    float scale = max_norm / (norm + 1e-6f);
    if (scale >= 1.f) return;  // a NaN goes on into the gradients
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < n; i += gridDim.x * 256ll) gradients[i] *= scale;
}
