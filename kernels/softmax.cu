// y = softmax(x) along an axis: lines of `length` elements, `inner` apart, one after another within an outer index.
// LANES threads share a line: a warp where the line is contiguous; one where neighbouring lines are, so that
// either way neighbouring threads read neighbouring elements.
// Defines: LANES (32 or 1).
#include "prelude.cuh"

__device__ __forceinline__ float line_sum(float x) { return LANES == 32 ? warp_sum(x) : x; }
__device__ __forceinline__ float line_max(float x) { return LANES == 32 ? warp_max(x) : x; }

// Where this thread's line starts; -1 where there is none.
__device__ __forceinline__ long long line_start(long long lines, int length, long long inner) {
    long long line = blockIdx.x * (long long)(256 / LANES) + threadIdx.x / LANES;
    return line < lines ? line / inner * inner * length + line % inner : -1;
}

// A line of −∞ alone gives zeros. A NaN is dropped by the maximum, but not by the sum.
KERNEL(softmax_forward, 256)(const float* x, float* y, long long lines, int length, long long inner) {
    long long start = line_start(lines, length, inner);
    if (start < 0) return;
    x += start;
    y += start;
    int lane = threadIdx.x % LANES;
    float highest = -INFINITY, sum = 0.f;
    for (int i = lane; i < length; i += LANES) highest = fmaxf(highest, x[i * inner]);
    highest = line_max(highest);
    if (highest == -INFINITY) highest = 0.f;
    for (int i = lane; i < length; i += LANES) sum += expf(x[i * inner] - highest);
    sum = line_sum(sum);
    float scale = sum == 0.f ? 0.f : 1.f / sum;
    for (int i = lane; i < length; i += LANES) y[i * inner] = expf(x[i * inner] - highest) * scale;
}

// dx = y·(dy − Σ y·dy).
KERNEL(softmax_backward, 256)
(const float* y, const float* dy, float* dx, long long lines, int length, long long inner, int accumulate) {
    long long start = line_start(lines, length, inner);
    if (start < 0) return;
    y += start;
    dy += start;
    dx += start;
    int lane = threadIdx.x % LANES;
    float sum = 0.f;
    for (int i = lane; i < length; i += LANES) sum += y[i * inner] * dy[i * inner];
    sum = line_sum(sum);
    for (int i = lane; i < length; i += LANES)
        dx[i * inner] = (accumulate ? dx[i * inner] : 0.f) + y[i * inner] * (dy[i * inner] - sum);
}
