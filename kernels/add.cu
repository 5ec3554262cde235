// z = x + y; each gradient is dz.
#include "prelude.cuh"

KERNEL(add_forward, 256)(const float* x, const float* y, float* z, long long n) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < n) z[i] = x[i] + y[i];
}

// A null gradient is not wanted.
KERNEL(add_backward, 256)(const float* dz, float* dx, int accumulate_x, float* dy, int accumulate_y, long long n) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    float d = dz[i];
    if (dx) dx[i] = (accumulate_x ? dx[i] : 0.f) + d;
    if (dy) dy[i] = (accumulate_y ? dy[i] : 0.f) + d;
}
