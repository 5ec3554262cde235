// y = x, over up to four axes with any strides: makes views contiguous and keeps gradients apart.
#include "numbers.cuh"

struct Axes {
    long long size[4], stride[4];
};

KERNEL(copy_strided, 256)(const real* from, Axes from_axes, real* to, Axes to_axes, long long n, int accumulate) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    long long source = 0, target = 0;
#pragma unroll
    for (int axis = 3; axis >= 0; --axis) {
        long long index = i % to_axes.size[axis];
        i /= to_axes.size[axis];
        source += index * from_axes.stride[axis];
        target += index * to_axes.stride[axis];
    }
    to[target] = narrow<real>((accumulate ? widen(to[target]) : 0.f) + widen(from[source]));
}
