// y = tanh x; dx = dy·(1 − y²).
#include "numbers.cuh"

KERNEL(tanh_forward, 256)(const real* x, real* y, long long n) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < n) y[i] = narrow<real>(tanhf(widen(x[i])));
}

KERNEL(tanh_backward, 256)(const real* y, const real* dy, real* dx, long long n, int accumulate) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    float t = widen(y[i]);
    dx[i] = narrow<real>((accumulate ? widen(dx[i]) : 0.f) + widen(dy[i]) * (1.f - t * t));
}
