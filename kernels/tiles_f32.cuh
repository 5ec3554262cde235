// Tiles of a product of two sets of rows, on ordinary arithmetic units in f32: for f32 itself, for head sizes that
// tensor cores' tiles do not reach, and for GPUs without them. tiles_mma.cuh has the same interface.
//
// A block has 256 threads as 16×16 and owns M = 64 rows, which it meets with N = 64 others at a time. Thread (ty, tx) =
// (thread / 16, thread % 16) owns rows 4·ty … 4·ty+3 of a tile and, of its columns, tx, tx + 16, tx + 32, … So the 16
// threads of one row group are half a warp: sums and maxima over a row are shuffles, and what a row group writes to
// shared memory it alone reads again.
// Rows of any length: scores are summed over pieces of DEPTH columns; what is written is cut into slices of D columns,
// blockIdx.y, each recomputing the scores.
#pragma once
#include "numbers.cuh"
#include "prelude.cuh"

// What rows come from: one batch's and head's part of a tensor.
struct Matrix {
    const real* data;
    long long row;
    int rows, columns;
};

// Rows stay where they are: `scores` and `apply` stage what they need, in the block's shared memory.
template <int D> struct Rows {
    float* staged;
    Matrix matrix;
    int first;
    __device__ __forceinline__ Rows(char*& memory, int) : staged(reinterpret_cast<float*>(memory)) {}
};

struct Tiles {
    static constexpr int THREADS = 256, M = 64, N = 64;
    static constexpr int ROWS = 4, COLUMNS = 4;                        // of a tile's M×N numbers, a thread's
    static __device__ constexpr int width(int columns) { return columns / 16; }  // of so many columns, a thread's

    // Where a thread's numbers lie; `output_column` of a slice of D.
    static __device__ __forceinline__ int row(int i) { return threadIdx.x / 16 * 4 + i; }
    static __device__ __forceinline__ int column(int j) { return threadIdx.x % 16 + 16 * j; }
    template <int D> static __device__ __forceinline__ int output_column(int j) { return blockIdx.y * D + column(j); }

    // Threads of one group have the same rows.
    static __device__ __forceinline__ int group() { return threadIdx.x / 16; }

    // Sum and maximum over the threads that share a row.
    static __device__ __forceinline__ float row_sum(float x) {
        for (int lanes = 8; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(FULL_WARP, x, lanes);
        return x;
    }
    static __device__ __forceinline__ float row_max(float x) {
        for (int lanes = 8; lanes > 0; lanes >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, lanes));
        return x;
    }

    template <int COUNT, int D> static __device__ __forceinline__ void load(Rows<D>& to, const Matrix& m, int first) {
        to.matrix = m;
        to.first = first;
    }
    template <int PENDING> static __device__ __forceinline__ void arrived() {}
    static __device__ __forceinline__ void finished() {}

    // p[i][j] = Σ_d a[row(i)][d]·b[column(j)][d].
    template <int D>
    static __device__ __forceinline__ void scores(float (&p)[ROWS][COLUMNS], const Rows<D>& a, const Rows<D>& b) {
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) p[i][j] = 0.f;
        int depth = a.matrix.columns;
        for (int d0 = 0; d0 < depth; d0 += DEPTH) {
            __syncthreads();  // what was staged before has been read
            stage<DEPTH>(a.staged, PITCH, a, d0);
            stage<DEPTH>(a.staged + M * PITCH, PITCH, b, d0);
            arrive();
            const float* x = a.staged + threadIdx.x / 16 * 4 * PITCH;
            const float* y = a.staged + (M + threadIdx.x % 16) * PITCH;
            int steps = min(DEPTH, depth - d0);
#pragma unroll 2
            for (int d = 0; d < steps; d += 4) {
                float4 u[ROWS], v[COLUMNS];
#pragma unroll
                for (int i = 0; i < ROWS; ++i) u[i] = *reinterpret_cast<const float4*>(x + i * PITCH + d);
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) v[j] = *reinterpret_cast<const float4*>(y + j * 16 * PITCH + d);
#pragma unroll
                for (int i = 0; i < ROWS; ++i)
#pragma unroll
                    for (int j = 0; j < COLUMNS; ++j) {
                        p[i][j] = fmaf(u[i].x, v[j].x, p[i][j]);
                        p[i][j] = fmaf(u[i].y, v[j].y, p[i][j]);
                        p[i][j] = fmaf(u[i].z, v[j].z, p[i][j]);
                        p[i][j] = fmaf(u[i].w, v[j].w, p[i][j]);
                    }
            }
        }
    }

    // sum[i][c] += Σ_s w[i][s]·b[s][output_column(c)], with the weights of all of a row's threads.
    template <int D>
    static __device__ __forceinline__ void apply(float (&sum)[ROWS][D / 16], const float (&w)[ROWS][COLUMNS], const Rows<D>& b) {
        float* weights = stage_slice(b);
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) weights[row(i) * WEIGHT_PITCH + column(j)] = w[i][j];
        apply_staged(sum, b);
    }

    // Σ_i w[i][q]·b[i][c] over all rows i of the tile, for the c of the block's slice: calls add(q, c, sum) for each number.
    template <int D, class Add>
    static __device__ __forceinline__ void apply_transposed(const float (&w)[ROWS][COLUMNS], const Rows<N>&, const Rows<D>& b, Add add) {
        float sum[ROWS][D / 16] = {}, *weights = stage_slice(b);
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j)
            *reinterpret_cast<float4*>(weights + column(j) * WEIGHT_PITCH + row(0)) = make_float4(w[0][j], w[1][j], w[2][j], w[3][j]);
        apply_staged(sum, b);
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < D / 16; ++j) add(row(i), output_column<D>(j), sum[i][j]);
    }

  private:
    static constexpr int DEPTH = 32;              // columns staged at a time for scores
    static constexpr int PITCH = DEPTH + 4;       // float4 reads of 8 neighbouring rows then touch all 32 banks once
    static constexpr int WEIGHT_PITCH = N + 4;    // the tile of weights lies where the pieces for scores were

    // Starts copying the block's slice of b's rows; gives where the weights are to lie.
    template <int D> static __device__ __forceinline__ float* stage_slice(const Rows<D>& b) {
        __syncthreads();  // what was staged before has been read
        stage<D>(b.staged + 2 * M * PITCH, D, b, blockIdx.y * D);
        return b.staged;
    }
    // sum[i][c] += Σ_s weights[row(i)][s]·b[s][output_column(c)], both staged.
    template <int D> static __device__ __forceinline__ void apply_staged(float (&sum)[ROWS][D / 16], const Rows<D>& b) {
        const float *weights = b.staged, *rows = b.staged + 2 * M * PITCH;
        arrive();
#pragma unroll 2
        for (int s = 0; s < N; s += 4) {
            float4 u[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) u[i] = *reinterpret_cast<const float4*>(weights + row(i) * WEIGHT_PITCH + s);
#pragma unroll
            for (int j = 0; j < D / 16; ++j) {
                const float* x = rows + s * D + column(j);
#pragma unroll
                for (int i = 0; i < ROWS; ++i) {
                    sum[i][j] = fmaf(u[i].x, x[0], sum[i][j]);
                    sum[i][j] = fmaf(u[i].y, x[D], sum[i][j]);
                    sum[i][j] = fmaf(u[i].z, x[2 * D], sum[i][j]);
                    sum[i][j] = fmaf(u[i].w, x[3 * D], sum[i][j]);
                }
            }
        }
    }

    // Copies 64 rows, columns column0 … column0 + WIDTH − 1, as f32; beyond the matrix come zeros.
    template <int WIDTH, int D>
    static __device__ __forceinline__ void stage(float* to, int pitch, const Rows<D>& rows, int column0) {
        const Matrix& m = rows.matrix;
        bool wide = (((unsigned long long)m.data | (unsigned long long)(m.row * sizeof(real))) & 15) == 0 && m.columns % 4 == 0;
#pragma unroll 1  // unrolled, the addresses of many copies in flight cost registers that the products need
        for (int e = threadIdx.x; e < M * WIDTH / 4; e += THREADS) {
            int r = e / (WIDTH / 4), c = e % (WIDTH / 4) * 4;
            bool in_row = rows.first + r < m.rows;
            const real* source = m.data + (in_row ? (rows.first + r) * m.row : 0);
            float* target = to + r * pitch + c;
            if constexpr (sizeof(real) == 4) {
                if (wide) {
                    bool valid = in_row && column0 + c < m.columns;
                    cp_async_16(target, source + (valid ? column0 + c : 0), valid);
                    continue;
                }
            }
#pragma unroll 1
            for (int i = 0; i < 4; ++i) {
                bool valid = in_row && column0 + c + i < m.columns;
                if constexpr (sizeof(real) == 4)
                    cp_async_4(target + i, source + (valid ? column0 + c + i : 0), valid);
                else
                    target[i] = valid ? widen(source[column0 + c + i]) : 0.f;
            }
        }
    }
    static __device__ __forceinline__ void arrive() {
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
    }
};
