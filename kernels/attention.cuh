// What the attention kernels in f32 arithmetic share: sizes, visibility, and the two products on 64×64 tiles.
//
// A block has 256 threads as 16×16. Thread (ty, tx) = (thread / 16, thread % 16) owns rows 4·ty … 4·ty+3 of a tile
// and, of its columns, tx, tx + 16, tx + 32, … So the 16 threads of one row group are half a warp: sums and
// maxima over a row are shuffles, and what a row group writes to shared memory it alone reads again.
#pragma once
#include "numbers.cuh"

// A tensor as it is stored; shared memory holds f32.
typedef ViewOf<real> RealView;

// Mirrors `KernelSizes` in src/ops/attention.rs.
struct Sizes {
    int batch, heads, kv_heads, queries, keys, key_dim, value_dim, causal;
};

// How many keys, from the first on, query t sees: bottom-right causal alignment by the padded number of keys.
__device__ __forceinline__ int visible_keys(const Sizes& s, const int* lengths, int b, int t) {
    int keys = lengths ? min(lengths[b], s.keys) : s.keys;
    return s.causal ? max(0, min(keys, t + 1 + s.keys - s.queries)) : keys;
}

static constexpr int TILE = 64;         // rows and columns of a tile of scores
static constexpr int DEPTH = 32;        // inner columns staged at a time
static constexpr int PITCH = DEPTH + 4; // float4 reads of 8 neighbouring rows then touch all 32 banks once
static constexpr int WEIGHT_PITCH = TILE + 4;
static constexpr int CHUNK = TILE * PITCH;

// Starts copying rows row0 … row0+63 and columns column0 … column0+WIDTH−1 of a matrix to shared memory;
// beyond `rows` and `columns` come zeros. 16 bytes at a time where the rows are so aligned.
template <int WIDTH>
__device__ __forceinline__ void load_rows(float* to, int pitch, const float* from, long long stride, int row0, int rows,
                                          int column0, int columns) {
    bool wide = (((unsigned long long)from | (unsigned long long)(stride * 4)) & 15) == 0 && columns % 4 == 0;
#pragma unroll 1  // unrolled, the addresses of many copies in flight cost registers that the products need
    for (int e = threadIdx.x; e < TILE * WIDTH / 4; e += 256) {
        int row = e / (WIDTH / 4), column = e % (WIDTH / 4) * 4;
        bool in_row = row0 + row < rows;
        const float* source = from + (in_row ? (row0 + row) * stride : 0);
        float* target = to + row * pitch + column;
        if (wide) {
            bool valid = in_row && column0 + column < columns;
            cp_async_16(target, source + (valid ? column0 + column : 0), valid);
        } else {
#pragma unroll 1
            for (int i = 0; i < 4; ++i) {
                bool valid = in_row && column0 + column + i < columns;
                cp_async_4(target + i, source + (valid ? column0 + column + i : 0), valid);
            }
        }
    }
}

// The same from 16 bits, widened on the way and hence not asynchronous.
template <int WIDTH, class T>
__device__ __forceinline__ void load_rows(float* to, int pitch, const T* from, long long stride, int row0, int rows,
                                          int column0, int columns) {
    bool wide = (((unsigned long long)from | (unsigned long long)(stride * 2)) & 15) == 0 && columns % 8 == 0;
#pragma unroll 1
    for (int e = threadIdx.x; e < TILE * WIDTH / 8; e += 256) {
        int row = e / (WIDTH / 8), column = e % (WIDTH / 8) * 8;
        bool in_row = row0 + row < rows;
        const T* source = from + (in_row ? (row0 + row) * stride + column0 + column : 0);
        float* target = to + row * pitch + column;
        if (wide) {
            uint4 all = {0, 0, 0, 0};
            if (in_row && column0 + column < columns) all = *reinterpret_cast<const uint4*>(source);
            const uint32_t pairs[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                target[2 * i] = widen(T{(unsigned short)pairs[i]});
                target[2 * i + 1] = widen(T{(unsigned short)(pairs[i] >> 16)});
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < 8; ++i)
                target[i] = in_row && column0 + column + i < columns ? widen(source[i]) : 0.f;
        }
    }
}

// scores[i][j] = Σ_d a[row0_a + 4·ty + i][d] · b[row0_b + tx + 16·j][d]. `chunks` holds 2·CHUNK floats; on return
// all threads are done with it. Copies started before this call have arrived, for all threads, when it returns.
__device__ __forceinline__ void tile_scores(float (&scores)[4][4], float* chunks, const real* a, long long stride_a,
                                            int row0_a, int rows_a, const real* b, long long stride_b, int row0_b,
                                            int rows_b, int depth) {
    int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) scores[i][j] = 0.f;
    for (int d0 = 0; d0 < depth; d0 += DEPTH) {
        load_rows<DEPTH>(chunks, PITCH, a, stride_a, row0_a, rows_a, d0, depth);
        load_rows<DEPTH>(chunks + CHUNK, PITCH, b, stride_b, row0_b, rows_b, d0, depth);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        const float* x = chunks + ty * 4 * PITCH;
        const float* y = chunks + CHUNK + tx * PITCH;
        int steps = min(DEPTH, depth - d0);
#pragma unroll 2
        for (int d = 0; d < steps; d += 4) {
            float4 p[4], q[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) p[i] = *reinterpret_cast<const float4*>(x + i * PITCH + d);
#pragma unroll
            for (int j = 0; j < 4; ++j) q[j] = *reinterpret_cast<const float4*>(y + j * 16 * PITCH + d);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    scores[i][j] = fmaf(p[i].x, q[j].x, scores[i][j]);
                    scores[i][j] = fmaf(p[i].y, q[j].y, scores[i][j]);
                    scores[i][j] = fmaf(p[i].z, q[j].z, scores[i][j]);
                    scores[i][j] = fmaf(p[i].w, q[j].w, scores[i][j]);
                }
        }
        __syncthreads();
    }
}

// Writes this thread's part of a 64×64 tile of weights to shared memory, where its row group will read it.
__device__ __forceinline__ void put_weights(float* weights, const float (&w)[4][4]) {
    int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) weights[(ty * 4 + i) * WEIGHT_PITCH + tx + 16 * j] = w[i][j];
    __syncwarp();
}

// sum[i][j] += Σ_s weights[4·ty + i][s] · rows[s][tx + 16·j] over the tile's 64 rows.
template <int WIDTH>
__device__ __forceinline__ void tile_apply(float (&sum)[4][WIDTH / 16], const float* weights, const float* rows) {
    int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll 2
    for (int s = 0; s < TILE; s += 4) {
        float4 w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) w[i] = *reinterpret_cast<const float4*>(weights + (ty * 4 + i) * WEIGHT_PITCH + s);
#pragma unroll
        for (int j = 0; j < WIDTH / 16; ++j) {
            const float* x = rows + s * WIDTH + tx + 16 * j;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sum[i][j] = fmaf(w[i].x, x[0], sum[i][j]);
                sum[i][j] = fmaf(w[i].y, x[WIDTH], sum[i][j]);
                sum[i][j] = fmaf(w[i].z, x[2 * WIDTH], sum[i][j]);
                sum[i][j] = fmaf(w[i].w, x[3 * WIDTH], sum[i][j]);
            }
        }
    }
}

// Sum and maximum over the 16 threads of a row group.
__device__ __forceinline__ float row_sum(float x) {
    for (int lanes = 8; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(FULL_WARP, x, lanes);
    return x;
}
__device__ __forceinline__ float row_max(float x) {
    for (int lanes = 8; lanes > 0; lanes >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, lanes));
    return x;
}
