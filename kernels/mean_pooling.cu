// Means of x (B,T,C) over the tokens before a length, or over each such token's features.
#include "numbers.cuh"

// y[b,c] = Σ x[b,t,c]/length[b] over t < length[b]: a thread an element.
KERNEL(mean_over_tokens, 256)
(const real* x, const int* lengths, real* y, long long n, int length, int columns) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    long long b = i / columns;
    int count = lengths[b];
    x += b * length * columns + i % columns;
    float sum = 0.f;
    for (int t = 0; t < count; ++t) sum += widen(x[(long long)t * columns]);
    y[i] = narrow<real>(count > 0 ? sum / count : 0.f);
}

// y[b,t] = Σ x[b,t,c]/C, 0 past the length: a warp an element.
KERNEL(mean_over_features, 256)
(const real* x, const int* lengths, real* y, long long n, int length, int columns) {
    long long i = blockIdx.x * 8ll + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (i >= n) return;
    float sum = 0.f;
    if (i % length < lengths[i / length])
        for (int c = lane; c < columns; c += 32) sum += widen(x[i * columns + c]);
    sum = warp_sum(sum);
    if (lane == 0) y[i] = narrow<real>(sum / columns);
}

// dx[b,t,c] = dy[b,c]/length[b], or dy[b,t]/C; 0 past the length.
KERNEL(mean_pooling_backward, 256)
(const real* dy, const int* lengths, real* dx, long long n, int length, int columns, int features, int accumulate) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    long long place = i / columns, b = place / length;
    int count = lengths[b];
    float d = 0.f;
    if (place % length < count) d = features ? widen(dy[place]) / columns : widen(dy[b * columns + i % columns]) / count;
    dx[i] = narrow<real>((accumulate ? widen(dx[i]) : 0.f) + d);
}
