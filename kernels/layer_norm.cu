// y = (x − mean)·rstd·weight + bias over rows of `columns` elements.
// Products by weight are rounded before anything is taken from them (__fmul_rn: no fused multiply-add), or else a
// width of 1, whose gradient is zero by identity, would give that rounding times rstd.
// One warp a row, except in the sums over rows: there a warp takes 32 columns of every eighth row.
#include "numbers.cuh"

static constexpr int WARPS = 8;

__device__ __forceinline__ long long row_of_warp() { return blockIdx.x * (long long)WARPS + threadIdx.x / 32; }

KERNEL(layer_norm_forward, 256)
(const real* x, const real* weight, const real* bias, real* y, float* mean, float* rstd, long long rows, int columns,
 float eps) {
    long long row = row_of_warp();
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += row * columns;
    y += row * columns;
    float sum = 0.f, squares = 0.f;
    for (int c = lane; c < columns; c += 32) sum += widen(x[c]);
    float m = warp_sum(sum) / columns;
    for (int c = lane; c < columns; c += 32) squares += (widen(x[c]) - m) * (widen(x[c]) - m);
    float r = 1.f / sqrtf(warp_sum(squares) / columns + eps);
    for (int c = lane; c < columns; c += 32)
        y[c] = narrow<real>((widen(x[c]) - m) * r * widen(weight[c]) + widen(bias[c]));
    if (lane == 0) mean[row] = m, rstd[row] = r;
}

// With x̂ = (x − mean)·rstd and g = dy·weight: dx = rstd·(g − mean(g) − x̂·mean(g·x̂)).
KERNEL(layer_norm_backward, 256)
(const real* x, const real* weight, const float* mean, const float* rstd, const real* dy, real* dx, long long rows,
 int columns, int accumulate) {
    long long row = row_of_warp();
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += row * columns;
    dy += row * columns;
    dx += row * columns;
    float m = mean[row], r = rstd[row], sum = 0.f, projection = 0.f;
    for (int c = lane; c < columns; c += 32) {
        float g = __fmul_rn(widen(dy[c]), widen(weight[c]));
        sum += g;
        projection += g * (widen(x[c]) - m) * r;
    }
    sum = warp_sum(sum) / columns;
    projection = warp_sum(projection) / columns;
    for (int c = lane; c < columns; c += 32) {
        float d = r * (__fmul_rn(widen(dy[c]), widen(weight[c])) - sum - (widen(x[c]) - m) * r * projection);
        dx[c] = narrow<real>((accumulate ? widen(dx[c]) : 0.f) + d);
    }
}

// Adds up the warps' sums; the first warp gets them.
__device__ __forceinline__ float across_warps(float* part, float sum) {
    part[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < 32)
        for (int warp = 1; warp < WARPS; ++warp) sum += part[warp * 32 + threadIdx.x];
    return sum;
}

// partial[block] = (Σ dy·x̂, Σ dy) over the block's `chunk` rows.
KERNEL(layer_norm_partial_sums, 256)
(const real* x, const float* mean, const float* rstd, const real* dy, long long rows, int columns, int chunk,
 float* partial) {
    SHARED(float, weights, WARPS * 32);
    SHARED(float, biases, WARPS * 32);
    int column = blockIdx.y * 32 + threadIdx.x % 32;
    long long first = blockIdx.x * (long long)chunk, end = first + chunk < rows ? first + chunk : rows;
    float weight = 0.f, bias = 0.f;
    if (column < columns) {
#pragma unroll 4
        for (long long row = first + threadIdx.x / 32; row < end; row += WARPS) {
            float d = widen(dy[row * columns + column]);
            weight += d * (widen(x[row * columns + column]) - mean[row]) * rstd[row];
            bias += d;
        }
    }
    weights[threadIdx.x] = weight;
    bias = across_warps(biases, bias);  // its barrier serves for both
    if (threadIdx.x >= 32 || column >= columns) return;
    for (int warp = 1; warp < WARPS; ++warp) weight += weights[warp * 32 + threadIdx.x];
    partial += blockIdx.x * 2ll * columns + column;
    partial[0] = weight;
    partial[columns] = bias;
}

// Adds up the partial sums, one gradient a blockIdx.y; a null gradient is not wanted.
KERNEL(layer_norm_sums, 256)
(const float* partial, int parts, int columns, float* d_weight, int accumulate_weight, float* d_bias,
 int accumulate_bias) {
    SHARED(float, part, WARPS * 32);
    int column = blockIdx.x * 32 + threadIdx.x % 32;
    partial += blockIdx.y * columns + column;
    float sum = 0.f;
    if (column < columns)
        for (int i = threadIdx.x / 32; i < parts; i += WARPS) sum += partial[i * 2ll * columns];
    sum = across_warps(part, sum);
    float* to = blockIdx.y == 0 ? d_weight : d_bias;
    if (threadIdx.x >= 32 || column >= columns || !to) return;
    to[column] = ((blockIdx.y == 0 ? accumulate_weight : accumulate_bias) ? to[column] : 0.f) + sum;
}
