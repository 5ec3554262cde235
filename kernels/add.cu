// z = x + y; each gradient is dz.
#include "numbers.cuh"

KERNEL(add_forward, 256)(const real* x, const real* y, real* z, long long n) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < n) z[i] = narrow<real>(widen(x[i]) + widen(y[i]));
}

// A null gradient is not wanted.
KERNEL(add_backward, 256)(const real* dz, real* dx, int accumulate_x, real* dy, int accumulate_y, long long n) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    float d = widen(dz[i]);
    if (dx) dx[i] = narrow<real>((accumulate_x ? widen(dx[i]) : 0.f) + d);
    if (dy) dy[i] = narrow<real>((accumulate_y ? widen(dy[i]) : 0.f) + d);
}
