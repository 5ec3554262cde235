#include "prelude.cuh"

KERNEL(broken, 32)(float* out) {
    out[threadIdx.x] = not_declared;
}
