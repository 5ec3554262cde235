// C = op(A)·op(B) + beta·C, summed in f32: a 64×64 tile of C a block, 16×16 threads with 4×4 elements each,
// A and B staged through shared memory 16 columns of the inner axis at a time.
// Defines: TRANSPOSE_A, TRANSPOSE_B (1: the stored matrix is the operand's transpose); PRODUCT (in what C is stored;
// as A and B unless given).
#include "numbers.cuh"

#ifndef PRODUCT
#define PRODUCT real
#endif

static constexpr int TILE = 64, DEPTH = 16;

// Loads rows r0..r0+64 of an operand, inner columns k0..k0+16, as tile[k][row]; zeros outside.
// `across` says that the rows lie along memory, so that neighbouring threads take neighbouring rows.
template <bool across>
__device__ __forceinline__ void load_tile(float* tile, const real* from, long long ld, int r0, int rows, int k0, int k) {
#pragma unroll
    for (int i = 0; i < TILE * DEPTH / 256; ++i) {
        int e = i * 256 + threadIdx.x;
        int row = across ? e % TILE : e / DEPTH, depth = across ? e / TILE : e % DEPTH;
        bool inside = r0 + row < rows && k0 + depth < k;
        long long at = across ? (k0 + depth) * ld + r0 + row : (r0 + row) * ld + k0 + depth;
        tile[depth * (TILE + 4) + row] = inside ? widen(from[at]) : 0.f;
    }
}

KERNEL(matmul, 256)
(int m, int n, int k, const real* a, long long lda, const real* b, long long ldb, PRODUCT* c, long long ldc, float beta) {
    SHARED(float, tile_a, DEPTH * (TILE + 4));
    SHARED(float, tile_b, DEPTH * (TILE + 4));
    int m0 = blockIdx.x * TILE, n0 = blockIdx.y * TILE;
    int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    float sum[4][4] = {};
    for (int k0 = 0; k0 < k; k0 += DEPTH) {
        load_tile<TRANSPOSE_A>(tile_a, a, lda, m0, m, k0, k);
        load_tile<!TRANSPOSE_B>(tile_b, b, ldb, n0, n, k0, k);
        __syncthreads();
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            float x[4], y[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = tile_a[d * (TILE + 4) + row + i];
#pragma unroll
            for (int j = 0; j < 4; ++j) y[j] = tile_b[d * (TILE + 4) + column + j];
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (m0 + row + i >= m || n0 + column + j >= n) continue;
            PRODUCT* to = c + (m0 + row + i) * ldc + n0 + column + j;
            // β = 0 overwrites: C may hold NaN.
            *to = narrow<PRODUCT>(sum[i][j] + (beta == 0.f ? 0.f : beta * widen(*to)));
        }
}
