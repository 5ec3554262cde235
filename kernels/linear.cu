// What surrounds the products of a linear layer: bias and activation after the one of forward; the activation's derivative
// and the bias's gradient before those of backward.
// A block is 8 warps; a warp takes 32 columns of every eighth row.
// Defines: BIAS (0 or 1); ACTIVATION (activation.cuh).
#include "activation.cuh"
#include "numbers.cuh"

static constexpr int WARPS = 8, ROWS = 32;

// y ← g(y + bias), slope ← g′(y + bias).
KERNEL(linear_epilogue, 256)(real* y, const real* bias, real* slope, long long rows, int columns) {
    int column = blockIdx.y * 32 + threadIdx.x % 32;
    if (column >= columns) return;
    float b = BIAS ? widen(bias[column]) : 0.f;
#pragma unroll
    for (int i = 0; i < ROWS; i += WARPS) {
        long long row = blockIdx.x * (long long)ROWS + i + threadIdx.x / 32;
        if (row >= rows) break;
        long long at = row * columns + column;
#if ACTIVATION
        float derivative;
        y[at] = narrow<real>(activate(widen(y[at]) + b, derivative));
        slope[at] = narrow<real>(derivative);
#else
        y[at] = narrow<real>(widen(y[at]) + b);
#endif
    }
}

// dz ← dy·slope (with an activation); sums[block] ← Σ dz over the block's `chunk` rows, unless `sums` is null. `accumulate`
// adds to what is there. T: what dy and dz are stored in.
template <class T>
__device__ __forceinline__ void column_sums(float* part, const T* dy, const T* slope, T* dz, long long rows, int columns,
                                            int chunk, float* sums, int accumulate) {
    int column = blockIdx.y * 32 + threadIdx.x % 32;
    long long first = blockIdx.x * (long long)chunk, end = first + chunk < rows ? first + chunk : rows;
    float sum = 0.f;
    if (column < columns) {
#pragma unroll 4
        for (long long row = first + threadIdx.x / 32; row < end; row += WARPS) {
            long long at = row * columns + column;
            float d = widen(dy[at]);
            if (slope) dz[at] = narrow<T>(d *= widen(slope[at]));
            sum += d;
        }
    }
    part[threadIdx.x] = sum;
    __syncthreads();
    if (!sums || threadIdx.x >= 32 || column >= columns) return;
    for (int warp = 1; warp < WARPS; ++warp) sum += part[warp * 32 + threadIdx.x];
    float* to = sums + (long long)blockIdx.x * columns + column;
    *to = (accumulate ? *to : 0.f) + sum;
}

KERNEL(linear_column_sums, 256)
(const real* dy, const real* slope, real* dz, long long rows, int columns, int chunk, float* sums, int accumulate) {
    SHARED(float, part, WARPS * 32);
    column_sums<real>(part, dy, slope, dz, rows, columns, chunk, sums, accumulate);
}

// Adds up the partial sums, as rows of a smaller matrix.
KERNEL(linear_sum_partials, 256)(const float* partial, int rows, int columns, float* sums, int accumulate) {
    SHARED(float, part, WARPS * 32);
    column_sums<float>(part, partial, nullptr, nullptr, rows, columns, rows, sums, accumulate);
}
