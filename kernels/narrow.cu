// to ← from, rounded to what is stored: the parameters that ops read, from those that the optimiser keeps in f32.
#include "numbers.cuh"

KERNEL(narrow_parameters, 256)(const float* from, real* to, long long n) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < n) to[i] = narrow<real>(from[i]);
}
