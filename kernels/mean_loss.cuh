// The mean of the losses whose targets count, by one block of 256 threads in a fixed order.
#pragma once
#include "prelude.cuh"

// loss ← Σ token_losses / count, count ← how many targets are not `ignore`; 0 where there is none.
__device__ __forceinline__ void mean_loss(const float* token_losses, const int* targets, long long rows, int ignore,
                                          float* loss, float* count) {
    SHARED(float, sums, 256);
    SHARED(float, counts, 256);
    float sum = 0.f, n = 0.f;
    for (long long row = threadIdx.x; row < rows; row += 256) {
        sum += token_losses[row];
        n += targets[row] != ignore ? 1.f : 0.f;
    }
    sums[threadIdx.x] = sum;
    counts[threadIdx.x] = n;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        sums[threadIdx.x] += sums[threadIdx.x + half];
        counts[threadIdx.x] += counts[threadIdx.x + half];
    }
    if (threadIdx.x != 0) return;
    *loss = counts[0] > 0.f ? sums[0] / counts[0] : 0.f;
    *count = counts[0];
}
