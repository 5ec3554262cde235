// Row `position` of a cache (B,H,S,D), stored as (B,S,H,D), written or, for the gradient, read. A thread an element.
#include "numbers.cuh"

KERNEL(key_value_cache_forward, 256)
(RealView x, const int* position, RealView cache, long long n, int heads, int columns) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    int c = i % columns, h = i / columns % heads, b = i / columns / heads;
    cache.at(b, h, *position)[c] = x.at(b, h, 0)[c];
}

KERNEL(key_value_cache_backward, 256)
(RealView d_cache, const int* position, RealView dx, long long n, int heads, int columns, int accumulate) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    int c = i % columns, h = i / columns % heads, b = i / columns / heads;
    real* to = dx.at(b, h, 0) + c;
    *to = narrow<real>((accumulate ? widen(*to) : 0.f) + widen(d_cache.at(b, h, *position)[c]));
}
