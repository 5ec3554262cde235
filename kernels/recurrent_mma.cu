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
    const real *from = of(in.weight, at.direction), *gates = of(in.gates, at.direction), *bias = of(in.bias, at.direction);
    for (int i = threadIdx.x; i < GATES * UNITS * width; i += WARPS * 32) {
        int k = i % width, unit = at.first_unit + i / width % UNITS, gate = i / width / UNITS;
        shared.weights[i / width * row_pitch(width) + k] =
            unit < H && k < H ? from[((long long)gate * H + unit) * H + k] : narrow<real>(0.f);
    }
    if (first == 0) without_steps(in, at, last, UNITS);
    for (int s = first; s < min(end, at.steps); ++s) {
        const float* before = state + (s + 1) % 2 * (long long)in.directions * in.batch * H;
        float* after = state + s % 2 * (long long)in.directions * in.batch * H;
        auto state_before = [&](int b, int k) {
            long long i = at.state(in, b) + k;
            return s > 0 ? __ldcg(before + i) : in.initial ? widen(in.initial[i]) : 0.f;
        };
        if (s > first) await(arrived + at.team, (unsigned)(s - first) * at.slices);
        int b = at.b - at.row + at.warp;  // a warp reads a sequence
        bool runs = s < Place::length_of(in, b);
        for (int k = threadIdx.x % 32; k < width; k += 32) {
            shared.tile[at.warp * row_pitch(width) + k] = narrow<real>(runs && k < H ? state_before(b, k) : 0.f);
        }
        __syncthreads();
        const bool running = own.exists && s < own.length;
        const long long step = at.step(in, own.b, own.length, s);
        // Read before the products, which take as long as the memory.
        float a[GATES] = {}, c[GATES] = {}, h = 0.f;
        if (running) {
            h = state_before(own.b, own.unit);
#pragma unroll
            for (int g = 0; g < GATES; ++g) {
                int j = g * H + own.unit;
                a[g] = widen(gates[step * GATES * H + j]);
                c[g] = bias ? widen(bias[j]) : 0.f;
            }
        }
        products<GATES>(shared, width);
        __syncthreads();
        if (running) {
#pragma unroll
            for (int g = 0; g < GATES; ++g) c[g] += all_products<GATES>(shared, g, own);
            const long long i = at.state(in, own.b) + own.unit;
            real* kept = saved + (at.direction * (long long)in.batch * in.length + step) * SAVED * H + own.unit;
            h = cell(a, c, h, kept, H);
            after[i] = h;
            out[(step * in.directions + at.direction) * H + own.unit] = narrow<real>(h);
            if (s == own.length - 1) last[i] = narrow<real>(h);
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
    const real* from = of(in.weight, at.direction);
    real* d_gates = of(to.d_gates, at.direction);
    const bool adds = at.direction ? to.accumulate[1] : to.accumulate[0];
    const long long of_direction = at.direction * (long long)in.batch * in.length;
    // Unit by unit down the columns of W_hh.
    for (int i = threadIdx.x; i < UNITS * width; i += WARPS * 32) {
        int j = i / UNITS, u = i % UNITS, unit = at.first_unit + u;
        shared.weights[u * row_pitch(width) + j] =
            unit < H && j < columns ? from[(long long)j * H + unit] : narrow<real>(0.f);
    }
    for (int turn = first; turn < min(end, at.steps + 1); ++turn) {
        const int s = at.steps - 1 - turn, later = s + 1;
        const bool running = own.exists && s >= 0 && s < own.length, carries = turn > 0 && later < own.length;
        if (turn > first) await(arrived + at.team, (unsigned)(turn - first) * at.slices);
        if (turn > 0) {
            int b = at.b - at.row + at.warp, length = Place::length_of(in, b);  // a warp reads a sequence
            const float* gradients = to.products + (of_direction + at.step(in, b, length, later)) * columns;
            for (int j = threadIdx.x % 32; j < width; j += 32) {
                shared.tile[at.warp * row_pitch(width) + j] =
                    narrow<real>(later < length && j < columns ? __ldcg(gradients + j) : 0.f);
            }
            __syncthreads();
        }
        const long long i = at.state(in, own.b) + own.unit, step = at.step(in, own.b, own.length, s);
        // Read before the products, which take as long as the memory.
        float d = 0.f, before = 0.f, after = 0.f, kept[SAVED] = {};
        if (running) {
            long long here = (step * in.directions + at.direction) * H + own.unit;
            after = widen(to.out[here]);
            d = to.d_out ? widen(to.d_out[here]) : 0.f;
#pragma unroll
            for (int k = 0; k < SAVED && CELL == 0; ++k) {
                kept[k] = widen(to.saved[((of_direction + step) * SAVED + k) * H + own.unit]);
            }
            if (s > 0) {
                long long earlier = at.step(in, own.b, own.length, s - 1);
                before = widen(to.out[(earlier * in.directions + at.direction) * H + own.unit]);
            } else if (in.initial) {
                before = widen(in.initial[i]);
            }
        }
        if (turn > 0) {
            products<1>(shared, width);
            __syncthreads();
        }
        if (own.exists) {
            float carried = carries ? to.carried[i] + all_products<1>(shared, 0, own)
                            : to.d_last ? widen(to.d_last[i]) : 0.f;
            if (running) {
                float a[GATES], c[GATES];
                to.carried[i] = cell_backward(carried + d, kept, before, after, a, c);
                to.before[(of_direction + step) * H + own.unit] = before;
#pragma unroll
                for (int g = 0; g < GATES; ++g) {
                    to.products[(of_direction + step) * columns + g * H + own.unit] = c[g];
                    if (!d_gates) continue;
                    real* into = d_gates + step * columns + g * H + own.unit;
                    *into = narrow<real>((adds ? widen(*into) : 0.f) + a[g]);
                }
            } else if (s < 0 && to.d_initial) {
                to.d_initial[i] = narrow<real>((to.accumulate_initial ? widen(to.d_initial[i]) : 0.f) + carried);
            }
        }
        if (turn + 1 < min(end, at.steps + 1)) signal(arrived + at.team);
    }
}
