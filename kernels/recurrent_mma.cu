// The recurrence on tensor cores, in 16 bits (sm_80 and later): recurrent.cu's division among blocks and its signals, with
// products by `mma`. Its A are rows of W_hh, 16 hidden units (forward: of each gate); its B are the team's 8 sequences.
// What enters a product, the state or the gradients of the gates, is rounded to 16 bits; everything else stays in f32.
// A block owns UNITS units. A warp takes every eighth 16 columns of the sum; the warps' parts meet in shared memory, where
// each thread of the first four warps adds up those of one unit and sequence.
// Defines: CELL (recurrent.cuh).
#include "mma.cuh"
#include "recurrent.cuh"

static constexpr int UNITS = 16, CELLS = UNITS * ROWS;
// Of a warp's sums, from one sequence to the next: those that a warp writes at once lie in different banks, and so do
// those of sequences r and r + 4, which it reads at once.
static constexpr int SUMS = UNITS + 4;

// Rows of 16-bit numbers; an odd number of 16-byte units, so that the 8 rows of ldmatrix lie in different banks.
__device__ __forceinline__ int row_pitch(int width) { return width + 8; }

// Shared memory of a block: the sequences' rows, rows of weights (MATRICES times UNITS), the warps' sums.
struct Shared {
    real *tile, *weights;
    float* sums;

    __device__ __forceinline__ Shared(unsigned char* memory, int width, int matrices) {
        tile = reinterpret_cast<real*>(memory);
        weights = tile + ROWS * row_pitch(width);
        sums = reinterpret_cast<float*>(weights + matrices * UNITS * row_pitch(width));
    }
};

// Where this thread's cell stands, of those threads that have one.
struct Owned {
    int row, u, unit, b, length;
    bool exists;

    __device__ __forceinline__ Owned(const Inputs& in, const Place& at) {
        int lane = threadIdx.x % 32;
        row = (threadIdx.x / 32 + lane / 16 * 4) % ROWS;
        u = lane % 16;
        unit = at.first_unit + u;
        b = at.b - at.row + row;
        length = Place::length_of(in, b);
        exists = threadIdx.x < CELLS && unit < in.hidden && b < in.batch;
    }
};

// This warp's share of Σ_k weights[m·UNITS + unit][k]·tile[row][k], for each matrix m, to shared memory.
template <int MATRICES>
__device__ __forceinline__ void products(const Shared& at, int width) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, pitch = row_pitch(width);
    // Each lane names the row of 16 bytes that ldmatrix reads for it: of A rows 0–15, then the next 8 columns; of B both.
    const real* from_a = at.weights + lane % 16 * pitch + lane / 16 * 8;
    const real* from_b = at.tile + lane % 8 * pitch + lane / 8 % 2 * 8;
    float sum[MATRICES][4] = {};
#pragma unroll 2
    for (int k = 16 * warp; k < width; k += 16 * WARPS) {
        uint32_t left[4], right[2];
        ldmatrix_x2(right, from_b + k);
#pragma unroll
        for (int m = 0; m < MATRICES; ++m) {
            ldmatrix_x4(left, from_a + m * UNITS * pitch + k);
            mma_16x8x16<real>(sum[m], left, right);
        }
    }
#pragma unroll
    for (int m = 0; m < MATRICES; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int unit = lane / 4 + i / 2 * 8, row = lane % 4 * 2 + i % 2;
            at.sums[((warp * MATRICES + m) * ROWS + row) * SUMS + unit] = sum[m][i];
        }
}

// All warps' shares, in their order.
template <int MATRICES>
__device__ __forceinline__ float all_products(const Shared& at, int m, const Owned& own) {
    float sum = 0.f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) sum += at.sums[((warp * MATRICES + m) * ROWS + own.row) * SUMS + own.u];
    return sum;
}

// As `forward` of recurrent.cu, all steps.
KERNEL(recurrent_mma_forward, 256)
(Inputs in, real* out, real* last, real* saved, float* state, unsigned* arrived, int first, int end) {
    DYNAMIC_SHARED(unsigned char, memory);
    const int H = in.hidden, width = padded(H);
    const Shared shared(memory, width, GATES);
    const Place at(in);
    const Owned own(in, at);
    const Written to = {out, last, saved};
    const real *gates = of(in.gates, at.direction), *bias = of(in.bias, at.direction);
    load_rows(in, at, shared.weights, UNITS, width, row_pitch(width));
    if (first == 0) without_steps(in, at, last, UNITS);
    for (int s = first; s < min(end, at.steps); ++s) {
        const States states(in, state, s);
        if (s > first) await(arrived + at.team, (unsigned)(s - first) * at.slices);
        int b = at.b - at.row + at.warp;  // a warp reads a sequence
        bool runs = s < Place::length_of(in, b);
        for (int k = threadIdx.x % 32; k < width; k += 32) {
            float h = runs && k < H ? states.at(at.state(in, b) + k) : 0.f;
            shared.tile[at.warp * row_pitch(width) + k] = narrow<real>(h);
        }
        __syncthreads();
        const bool running = own.exists && s < own.length;
        // Read before the products, which take as long as the memory.
        float a[GATES] = {}, c[GATES] = {}, h = 0.f;
        if (running) {
            h = states.at(at.state(in, own.b) + own.unit);
            read_gates(gates + at.step(in, own.b, own.length, s) * GATES * H, bias, H, own.unit, a, c);
        }
        products<GATES>(shared, width);
        __syncthreads();
        if (running) {
#pragma unroll
            for (int g = 0; g < GATES; ++g) c[g] += all_products<GATES>(shared, g, own);
            to.step(in, at, states, own.b, own.length, own.unit, s, a, c, h);
        }
        if (s + 1 < min(end, at.steps)) signal(arrived + at.team);
    }
}

// As `backward` of recurrent.cu, all turns.
KERNEL(recurrent_mma_backward, 256)(Inputs in, Gradients to, unsigned* arrived, int first, int end) {
    DYNAMIC_SHARED(unsigned char, memory);
    const int H = in.hidden, columns = GATES * H, width = padded(columns);
    const Shared shared(memory, width, 1);
    const Place at(in);
    const Owned own(in, at);
    load_columns(in, at, shared.weights, UNITS, width, row_pitch(width));
    for (int turn = first; turn < min(end, at.steps + 1); ++turn) {
        const int s = at.steps - 1 - turn;
        if (turn > first) await(arrived + at.team, (unsigned)(turn - first) * at.slices);
        if (turn > 0) {
            int b = at.b - at.row + at.warp;  // a warp reads a sequence
            const float* later = to.later(in, at, b, Place::length_of(in, b), s);
            for (int j = threadIdx.x % 32; j < width; j += 32) {
                float gradient = later && j < columns ? __ldcg(later + j) : 0.f;
                shared.tile[at.warp * row_pitch(width) + j] = narrow<real>(gradient);
            }
            __syncthreads();
        }
        const CellGradient cell(in, to, at, own.exists, own.b, own.length, own.unit, s);
        if (turn > 0) {
            products<1>(shared, width);
            __syncthreads();
        }
        if (own.exists) cell.write(in, to, at, own.unit, s, turn > 0 ? all_products<1>(shared, 0, own) : 0.f);
        if (turn + 1 < min(end, at.steps + 1)) signal(arrived + at.team);
    }
}
