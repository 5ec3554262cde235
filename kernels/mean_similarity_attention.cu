// Mean-similarity attention around softmax attention's kernels: the mean of every row, and its gradient.
#include "numbers.cuh"

// y = mean of each of `n` rows of x (B,heads,rows,columns): a warp each.
KERNEL(mean_similarity_row_means, 256)(View x, int heads, int rows, int columns, float* y, long long n) {
    long long row = blockIdx.x * 8ll + threadIdx.x / 32;
    if (row >= n) return;
    const float* from = x.at(row / rows / heads, row / rows % heads, row % rows);
    float sum = 0.f;
    for (int i = threadIdx.x % 32; i < columns; i += 32) sum += from[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) y[row] = sum / columns;
}

// dx = dy / columns in every column: a thread for each of the n elements.
KERNEL(mean_similarity_spread, 256)
(const float* dy, View dx, int heads, int rows, int columns, long long n, int accumulate) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    long long row = i / columns;
    float* to = dx.at(row / rows / heads, row / rows % heads, row % rows) + i % columns;
    *to = (accumulate ? *to : 0.f) + dy[row] / columns;
}
