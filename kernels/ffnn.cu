// out = g(x·W1ᵀ + b1)·W2ᵀ + b2, for widths at which the hidden layer stays on chip. The formulas are in src/ops/ffnn.rs.
// A block takes ROWS rows, a warp TURNS of them: its lanes are hidden units, UNITS each. The rows of x and of W1 come by
// CHUNK inputs at a time.
// Defines: ACTIVATION (activation.cuh), UNITS (hidden units of a lane: 1 to 4).
#ifndef ACTIVATION
#define ACTIVATION 4
#endif
#ifndef UNITS
#define UNITS 1
#endif
#include "activation.cuh"
#include "numbers.cuh"

static constexpr int WARPS = 8, THREADS = 32 * WARPS, TURNS = 4, ROWS = WARPS * TURNS, CHUNK = 32;
static constexpr int PITCH = CHUNK + 1, HIDDEN = 32 * UNITS, MOST_OUTPUTS = 32;
static_assert(MOST_OUTPUTS <= CHUNK, "a row of dy fits in a row of the tile");

// Mirrors `Inputs` in src/ops/ffnn/gpu.rs.
struct Inputs {
    const real *x, *weight_1, *bias_1, *weight_2, *bias_2;
    long long rows;
    int inputs, hidden, outputs, unused;
};

// Shared memory of a block: rows of x (of dy), of a weight, and the hidden layer.
struct Tiles {
    float *x, *weight, *hidden;
};
#define TILES(name)                        \
    SHARED(float, x_tile, ROWS * PITCH);       \
    SHARED(float, weight_tile, HIDDEN * PITCH); \
    SHARED(float, hidden_tile, ROWS * HIDDEN);  \
    const Tiles name = {x_tile, weight_tile, hidden_tile}

// `count` rows of a matrix from `row` on, the columns from `column` on, to a tile; zeros beyond the matrix.
__device__ __forceinline__ void load(float* to, int count, const real* from, long long row, long long rows, int column,
                                     int columns) {
    for (int i = threadIdx.x; i < count * CHUNK; i += THREADS) {
        int r = i / CHUNK, c = column + i % CHUNK;
        to[r * PITCH + i % CHUNK] = row + r < rows && c < columns ? widen(from[(row + r) * columns + c]) : 0.f;
    }
}

// A warp's row, and a lane's hidden unit.
__device__ __forceinline__ int row_of(int turn) { return threadIdx.x / 32 * TURNS + turn; }
__device__ __forceinline__ int unit_of(int u) { return threadIdx.x % 32 + 32 * u; }

// z ← x·W1ᵀ + b1 of the block's rows.
__device__ __forceinline__ void sums(const Inputs& in, const Tiles& tiles, long long first, float (&z)[TURNS][UNITS]) {
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        float bias = unit_of(u) < in.hidden ? widen(in.bias_1[unit_of(u)]) : 0.f;
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) z[turn][u] = bias;
    }
    for (int column = 0; column < in.inputs; column += CHUNK) {
        __syncthreads();
        load(tiles.x, ROWS, in.x, first, in.rows, column, in.inputs);
        load(tiles.weight, HIDDEN, in.weight_1, 0, in.hidden, column, in.inputs);
        __syncthreads();
#pragma unroll 8
        for (int c = 0; c < CHUNK; ++c) {
            float w[UNITS];
#pragma unroll
            for (int u = 0; u < UNITS; ++u) w[u] = tiles.weight[unit_of(u) * PITCH + c];
#pragma unroll
            for (int turn = 0; turn < TURNS; ++turn) {
                float x = tiles.x[row_of(turn) * PITCH + c];
#pragma unroll
                for (int u = 0; u < UNITS; ++u) z[turn][u] += x * w[u];
            }
        }
    }
}

// h ← g(z) to the hidden tile, slope ← g′(z).
__device__ __forceinline__ void activate_all(const Tiles& tiles, const float (&z)[TURNS][UNITS], float (&slope)[TURNS][UNITS]) {
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn)
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            tiles.hidden[row_of(turn) * HIDDEN + unit_of(u)] = activate(z[turn][u], slope[turn][u]);
        }
}

KERNEL(ffnn_forward, 256)(Inputs in, real* out) {
    TILES(tiles);
    const long long first = blockIdx.x * (long long)ROWS;
    float z[TURNS][UNITS], slope[TURNS][UNITS];
    sums(in, tiles, first, z);
    activate_all(tiles, z, slope);
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * in.outputs; i += THREADS) {
        int r = i / in.outputs, o = i % in.outputs;
        if (first + r >= in.rows) break;
        float sum = widen(in.bias_2[o]);
        for (int j = 0; j < in.hidden; ++j) {
            sum += tiles.hidden[r * HIDDEN + j] * widen(in.weight_2[(long long)o * in.hidden + j]);
        }
        out[(first + r) * in.outputs + o] = narrow<real>(sum);
    }
}

// Adds to a block's own partial sum; the block's first tile writes.
__device__ __forceinline__ void keep(float* partial, bool first, float sum) { *partial = first ? sum : *partial + sum; }

// dz (rows,hidden), dx where it is not null, and this block's sums for dW2 (outputs,hidden), db2 and db1, one behind the
// other in its row of `partial`. A block takes every gridDim.x-th tile of rows.
KERNEL(ffnn_backward, 256)(Inputs in, const real* dy, real* dz, real* dx, int accumulate, float* partial) {
    TILES(tiles);
    const int H = in.hidden, O = in.outputs;
    partial += blockIdx.x * (long long)(O * H + O + H);
    for (long long first = blockIdx.x * (long long)ROWS; first < in.rows; first += gridDim.x * (long long)ROWS) {
        const bool begins = first == blockIdx.x * (long long)ROWS;
        float z[TURNS][UNITS], slope[TURNS][UNITS];
        sums(in, tiles, first, z);
        activate_all(tiles, z, slope);
        __syncthreads();
        load(tiles.x, ROWS, dy, first, in.rows, 0, O);
        // W2 (outputs,hidden) as rows of hidden units.
        for (int i = threadIdx.x; i < HIDDEN * O; i += THREADS) {
            int j = i % HIDDEN, o = i / HIDDEN;
            tiles.weight[j * PITCH + o] = j < H ? widen(in.weight_2[(long long)o * H + j]) : 0.f;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < O * H + O; i += THREADS) {
            int o = i < O * H ? i / H : i - O * H;
            float sum = 0.f;
            for (int r = 0; r < ROWS; ++r) {
                sum += tiles.x[r * PITCH + o] * (i < O * H ? tiles.hidden[r * HIDDEN + i % H] : 1.f);
            }
            keep(partial + i, begins, sum);
        }
        __syncthreads();
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn)
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
                float d = 0.f;
                for (int o = 0; o < O; ++o) d += tiles.x[row_of(turn) * PITCH + o] * tiles.weight[unit_of(u) * PITCH + o];
                d *= slope[turn][u];
                tiles.hidden[row_of(turn) * HIDDEN + unit_of(u)] = d;
                if (first + row_of(turn) < in.rows && unit_of(u) < H) {
                    dz[(first + row_of(turn)) * H + unit_of(u)] = narrow<real>(d);
                }
            }
        __syncthreads();
        for (int j = threadIdx.x; j < H; j += THREADS) {
            float sum = 0.f;
            for (int r = 0; r < ROWS; ++r) sum += tiles.hidden[r * HIDDEN + j];
            keep(partial + O * H + O + j, begins, sum);
        }
        for (int column = 0; dx && column < in.inputs; column += CHUNK) {
            __syncthreads();
            load(tiles.weight, HIDDEN, in.weight_1, 0, H, column, in.inputs);
            __syncthreads();
            int c = column + threadIdx.x % 32;
            float sum[TURNS] = {};
            for (int j = 0; j < H; ++j) {
                float w = tiles.weight[j * PITCH + threadIdx.x % 32];
#pragma unroll
                for (int turn = 0; turn < TURNS; ++turn) sum[turn] += tiles.hidden[row_of(turn) * HIDDEN + j] * w;
            }
#pragma unroll
            for (int turn = 0; turn < TURNS; ++turn) {
                if (first + row_of(turn) >= in.rows || c >= in.inputs) continue;
                real* to = dx + (first + row_of(turn)) * in.inputs + c;
                *to = narrow<real>((accumulate ? widen(*to) : 0.f) + sum[turn]);
            }
        }
    }
}

// Where the sums of dW2, db2 and db1 go, and whether they are added; null: not wanted.
struct Targets {
    float* to[3];
    int accumulate[3], unused;
};

// Adds up the blocks' partial sums.
KERNEL(ffnn_sums, 256)(const float* partial, int parts, int hidden, int outputs, Targets targets) {
    const int all = outputs * hidden + outputs + hidden, i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= all) return;
    float sum = 0.f;
    for (int part = 0; part < parts; ++part) sum += partial[part * (long long)all + i];
    const int which = i < outputs * hidden ? 0 : i < outputs * hidden + outputs ? 1 : 2;
    float* to = which == 0 ? targets.to[0] : which == 1 ? targets.to[1] : targets.to[2];
    const int adds = which == 0 ? targets.accumulate[0] : which == 1 ? targets.accumulate[1] : targets.accumulate[2];
    if (!to) return;
    to += which == 0 ? i : which == 1 ? i - outputs * hidden : i - outputs * hidden - outputs;
    *to = (adds ? *to : 0.f) + sum;
}
