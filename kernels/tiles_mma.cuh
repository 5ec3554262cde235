// Tiles of a product of two sets of rows, on tensor cores: 16-bit numbers, or f32 rounded to TF32; sums in f32.
//
// A block owns M rows, 16·MT of them a warp, and meets N others at a time. The numbers of a tile lie in registers as
// `mma` leaves them: thread (g, t) = (lane / 4, lane % 4) holds rows g and g + 8 of each 16, and columns 2t and 2t + 1
// of each 8. So a row is shared by 4 threads, and weights are in place as the next product's left operand.
// tiles_f32.cuh has the same interface on ordinary arithmetic units.
#pragma once
#include "mma.cuh"

// What rows come from: one batch's and head's part of a tensor.
struct Matrix {
    const real* data;
    long long row;
    int rows, columns;
};

static constexpr int CHUNK = 16 / sizeof(real);  // numbers in 16 bytes; a step of `mma` takes two such chunks of a row

// Rows in shared memory, D numbers each (zeros beyond the matrix). Their pitch is an odd number of 16-byte units, so
// that the 8 rows that ldmatrix reads at once, and those of a column, lie in different banks.
template <int D> struct Rows {
    static constexpr int PITCH = D + CHUNK;
    real* at;
    __device__ __forceinline__ Rows(char*& memory, int rows) : at(reinterpret_cast<real*>(memory)) {
        memory += rows * PITCH * sizeof(real);
    }
};

template <int MT, int WARPS, int N_> struct Tiles {
    static constexpr int THREADS = 32 * WARPS, M = 16 * MT * WARPS, N = N_;
    static constexpr int ROWS = 2 * MT, COLUMNS = N / 4;  // of a tile's M×N numbers, a thread's
    static __device__ constexpr int width(int columns) { return columns / 4; }  // of so many columns, a thread's

    // Where a thread's numbers lie.
    static __device__ __forceinline__ int row(int i) {
        return threadIdx.x / 32 * 16 * MT + 16 * (i / 2) + 8 * (i % 2) + threadIdx.x % 32 / 4;
    }
    static __device__ __forceinline__ int column(int j) { return 8 * (j / 2) + 2 * (threadIdx.x % 4) + j % 2; }
    template <int D> static __device__ __forceinline__ int output_column(int j) { return column(j); }

    // Threads of one group have the same rows.
    static __device__ __forceinline__ int group() { return threadIdx.x / 32 * 8 + threadIdx.x % 32 / 4; }

    // Sum and maximum over the threads that share a row.
    static __device__ __forceinline__ float row_sum(float x) {
        x += __shfl_xor_sync(FULL_WARP, x, 1);
        return x + __shfl_xor_sync(FULL_WARP, x, 2);
    }
    static __device__ __forceinline__ float row_max(float x) {
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
        return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
    }

    // Starts copying COUNT rows from row `first` on; `arrived` waits for them.
    template <int COUNT, int D> static __device__ __forceinline__ void load(Rows<D>& to, const Matrix& m, int first) {
        constexpr int CHUNKS = D / CHUNK;
        bool wide = (((unsigned long long)m.data | (unsigned long long)(m.row * sizeof(real))) & 15) == 0 && m.columns % CHUNK == 0;
        if (wide) {
#pragma unroll 4
            for (int e = threadIdx.x; e < COUNT * CHUNKS; e += THREADS) {
                int r = e / CHUNKS, c = e % CHUNKS * CHUNK;
                bool inside = first + r < m.rows && c < m.columns;
                cp_async_16(to.at + r * Rows<D>::PITCH + c, m.data + (inside ? (first + r) * m.row + c : 0), inside);
            }
        } else {
#pragma unroll 1
            for (int e = threadIdx.x; e < COUNT * D; e += THREADS) {
                int r = e / D, c = e % D;
                bool inside = first + r < m.rows && c < m.columns;
                to.at[r * Rows<D>::PITCH + c] = inside ? m.data[(first + r) * m.row + c] : narrow<real>(0.f);
            }
        }
        cp_async_commit();
    }
    // All rows but those of the PENDING last loads are there, for all threads, and all threads have come this far.
    template <int PENDING> static __device__ __forceinline__ void arrived() {
        cp_async_wait<PENDING>();
        __syncthreads();
    }
    // All threads are done with what is about to be overwritten.
    static __device__ __forceinline__ void finished() { __syncthreads(); }

    // p[i][j] = Σ_d a[row(i)][d]·b[column(j)][d].
    template <int D>
    static __device__ __forceinline__ void scores(float (&p)[ROWS][COLUMNS], const Rows<D>& a, const Rows<D>& b) {
        constexpr int PITCH = Rows<D>::PITCH;
        int lane = threadIdx.x % 32;
        // Each lane names the row of 16 bytes that ldmatrix reads for it: of A rows 0–15 and then the next chunk, of B
        // both chunks of rows 0–7 and then rows 8–15.
        const real* from_a = a.at + (threadIdx.x / 32 * 16 * MT + lane % 16) * PITCH + lane / 16 * CHUNK;
        const real* from_b = b.at + (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * CHUNK;
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) p[i][j] = 0.f;
#pragma unroll 4  // all at once, the loads ahead of their products would cost the registers of the sums
        for (int d = 0; d < D; d += 2 * CHUNK) {
            uint32_t left[MT][4];
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                ldmatrix_x4(left[m], from_a + 16 * m * PITCH + d);
                rounded(left[m]);
            }
#pragma unroll
            for (int n = 0; n < N; n += 16) {
                uint32_t right[4];
                ldmatrix_x4(right, from_b + n * PITCH + d);
                rounded(right);
#pragma unroll
                for (int m = 0; m < MT; ++m) {
                    multiply<COLUMNS>(p, m, n / 4, left[m], right[0], right[1]);
                    multiply<COLUMNS>(p, m, n / 4 + 2, left[m], right[2], right[3]);
                }
            }
        }
    }

    // sum[i][c] += Σ_s w[i][s]·b[s][output_column(c)], with the weights of all of a row's threads.
    template <int D>
    static __device__ __forceinline__ void apply(float (&sum)[ROWS][D / 4], const float (&w)[ROWS][COLUMNS], const Rows<D>& b) {
        constexpr int PITCH = Rows<D>::PITCH;
        constexpr int STEP = 2 * CHUNK;
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int s = 0; s < N; s += STEP) {
            uint32_t left[MT][4];
#pragma unroll
            for (int m = 0; m < MT; ++m) as_left(left[m], w, m, s);
            if constexpr (sizeof(real) == 2) {
                const real* from = b.at + (s + lane % 16) * PITCH + lane / 16 * 8;
#pragma unroll
                for (int c = 0; c < D; c += 16) {
                    uint32_t right[4];
                    ldmatrix_x4_transposed(right, from + c);
#pragma unroll
                    for (int m = 0; m < MT; ++m) {
                        multiply<D / 4>(sum, m, c / 4, left[m], right[0], right[1]);
                        multiply<D / 4>(sum, m, c / 4 + 2, left[m], right[2], right[3]);
                    }
                }
            } else {
                // ldmatrix cannot transpose 32-bit numbers. Rows 2t and 2t + 1 belong to the columns of `as_left`.
                const real* from = b.at + (s + 2 * (lane % 4)) * PITCH + lane / 4;
#pragma unroll
                for (int c = 0; c < D; c += 8) {
                    uint32_t right[2] = {to_tf32(widen(from[c])), to_tf32(widen(from[PITCH + c]))};
#pragma unroll
                    for (int m = 0; m < MT; ++m) multiply<D / 4>(sum, m, c / 4, left[m], right[0], right[1]);
                }
            }
        }
    }

    // Σ_i w[i][q]·b[i][c] over all rows i of the tile, those of the other warps too: calls add(q, c, sum) for each number.
    // `stage` has M rows, in which the weights are handed over; it and b may be overwritten after `finished`.
    template <int D, class Add>
    static __device__ __forceinline__ void apply_transposed(const float (&w)[ROWS][COLUMNS], const Rows<N>& stage, const Rows<D>& b,
                                                            Add add) {
        constexpr int PITCH = Rows<D>::PITCH, STAGE_PITCH = Rows<N>::PITCH, STEP = 2 * CHUNK;
        // The warps share the result's groups of 16 rows and, where there are fewer of those, its columns.
        constexpr int GROUPS = N / 16, SHARES = WARPS > GROUPS ? WARPS / GROUPS : 1;
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMNS; j += 2) {
                real* to = stage.at + row(i) * STAGE_PITCH + column(j);
                if constexpr (sizeof(real) == 2) *reinterpret_cast<uint32_t*>(to) = pack<real>(w[i][j], w[i][j + 1]);
                else to[0] = w[i][j], to[1] = w[i][j + 1];
            }
        __syncthreads();
#pragma unroll 1
        for (int item = threadIdx.x / 32; item < GROUPS * SHARES; item += WARPS) {
            int q = item % GROUPS * 16;
            uint32_t left[M / STEP][4];
#pragma unroll
            for (int s = 0; s < M; s += STEP) {
                uint32_t(&a)[4] = left[s / STEP];
                if constexpr (sizeof(real) == 2) {
                    // Rows s … in memory are the operand's columns: first both groups of 8 rows of it, then the next 8 columns.
                    ldmatrix_x4_transposed(a, stage.at + (s + lane % 8 + lane / 16 * 8) * STAGE_PITCH + q + lane / 8 % 2 * 8);
                } else {
                    // The operand's column t is the tile's row 2t, and t + 4 its 2t + 1, as in `as_left`.
                    const real* from = stage.at + (s + 2 * (lane % 4)) * STAGE_PITCH + q + lane / 4;
                    a[0] = to_tf32(widen(from[0]));
                    a[1] = to_tf32(widen(from[8]));
                    a[2] = to_tf32(widen(from[STAGE_PITCH]));
                    a[3] = to_tf32(widen(from[STAGE_PITCH + 8]));
                }
            }
#pragma unroll 1  // a piece of the result at a time: its registers are needed by the sums that stay
            for (int c = item / GROUPS * 16; c < D; c += 16 * SHARES) {
                float sum[2][4] = {};
#pragma unroll
                for (int s = 0; s < M; s += STEP) {
                    if constexpr (sizeof(real) == 2) {
                        uint32_t right[4];
                        ldmatrix_x4_transposed(right, b.at + (s + lane % 16) * PITCH + lane / 16 * 8 + c);
                        uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
                        mma_16x8x16<real>(sum[0], left[s / STEP], first);
                        mma_16x8x16<real>(sum[1], left[s / STEP], second);
                    } else {
                        const real* from = b.at + (s + 2 * (lane % 4)) * PITCH + lane / 4 + c;
#pragma unroll
                        for (int n = 0; n < 2; ++n) {
                            uint32_t right[2] = {to_tf32(widen(from[8 * n])), to_tf32(widen(from[PITCH + 8 * n]))};
                            mma_16x8x8_tf32(sum[n], left[s / STEP], right);
                        }
                    }
                }
#pragma unroll
                for (int n = 0; n < 2; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) add(q + lane / 4 + e / 2 * 8, c + 8 * n + lane % 4 * 2 + e % 2, sum[n][e]);
            }
        }
    }

  private:
    // One `mma` on 16 rows and 8 columns: those of row group m, from a thread's column j on.
    template <int WIDTH>
    static __device__ __forceinline__ void multiply(float (&p)[ROWS][WIDTH], int m, int j, const uint32_t (&left)[4], uint32_t b0,
                                                    uint32_t b1) {
        float d[4] = {p[2 * m][j], p[2 * m][j + 1], p[2 * m + 1][j], p[2 * m + 1][j + 1]};
        uint32_t right[2] = {b0, b1};
        if constexpr (sizeof(real) == 2) mma_16x8x16<real>(d, left, right);
        else mma_16x8x8_tf32(d, left, right);
        p[2 * m][j] = d[0];
        p[2 * m][j + 1] = d[1];
        p[2 * m + 1][j] = d[2];
        p[2 * m + 1][j + 1] = d[3];
    }

    // Columns s … of row group m as a left operand: in TF32 a step has 8 columns, of which the operand's column t is the
    // tile's 2t, and t + 4 its 2t + 1, as that is what the thread holds; the rows of the right operand follow.
    static __device__ __forceinline__ void as_left(uint32_t (&left)[4], const float (&w)[ROWS][COLUMNS], int m, int s) {
        const float *upper = w[2 * m] + s / 4, *lower = w[2 * m + 1] + s / 4;
        if constexpr (sizeof(real) == 2) {
            left[0] = pack<real>(upper[0], upper[1]);
            left[1] = pack<real>(lower[0], lower[1]);
            left[2] = pack<real>(upper[2], upper[3]);
            left[3] = pack<real>(lower[2], lower[3]);
        } else {
            left[0] = to_tf32(upper[0]);
            left[1] = to_tf32(lower[0]);
            left[2] = to_tf32(upper[1]);
            left[3] = to_tf32(lower[1]);
        }
    }

    // f32 from memory is rounded to nearest: the tensor core would cut off what TF32 has no room for.
    static __device__ __forceinline__ void rounded(uint32_t (&x)[4]) {
        if constexpr (sizeof(real) == 4)
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = to_tf32(__uint_as_float(x[i]));
    }
};
