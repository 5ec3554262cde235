// Recurrences over time: GRU and Elman. The formulas are in src/ops/recurrent.rs.
// A team of blocks takes ROWS sequences of one direction; each block owns some hidden units, and of W_hh what they need,
// which it keeps in shared memory over all steps (ON_CHIP). The blocks of a team exchange the state (backward: the
// gradients of the gates) through global memory and wait for each other at every step, so they must all run at once.
// Otherwise a launch is one step, and weights are read from memory.
// A warp takes one unit at a time: its lanes are ROWS sequences by PARTS quarters of the sum.
// On tensor cores: recurrent_mma.cu.
// Defines: CELL (recurrent.cuh).
#include "recurrent.cuh"

// Rows of the tile are also padded so that the sequences' rows lie in different banks.
__device__ __forceinline__ int pitch(int n) { return ((n + 15) / 16 | 1) * 16; }

template <bool ON_CHIP>
__device__ __forceinline__ float* shared_memory() {
    if (!ON_CHIP) return nullptr;
    DYNAMIC_SHARED(float, tile);
    return tile;
}

__device__ __forceinline__ float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
template <class T>
__device__ __forceinline__ float4 load4(const T* from) {
    uint2 both = *reinterpret_cast<const uint2*>(from);
    T x = {(unsigned short)both.x}, y = {(unsigned short)(both.x >> 16)};
    T z = {(unsigned short)both.y}, w = {(unsigned short)(both.y >> 16)};
    return make_float4(widen(x), widen(y), widen(z), widen(w));
}

// The sum over the parts, in all of them.
__device__ __forceinline__ float sum_parts(float x) {
    for (int lanes = 1; lanes < PARTS; lanes *= 2) x += __shfl_xor_sync(FULL_WARP, x, lanes);
    return x;
}

// out (B,T,D·H), last (D,B,H), saved (D,B,T,SAVED,H); state: 2 × (D,B,H) in f32, that of even steps and that of odd ones;
// arrived: a counter for each team, 0 at the launch. Steps `first` to `end`, as far as the team has them.
template <bool ON_CHIP>
__device__ __forceinline__ void forward(const Inputs& in, real* out, real* last, real* saved, float* state,
                                        unsigned* arrived, int first, int end) {
    float* tile = shared_memory<ON_CHIP>();
    const int H = in.hidden, width = padded(H), row_pitch = pitch(H);
    const Place at(in);
    const Written to = {out, last, saved};
    real* weights = reinterpret_cast<real*>(tile + ROWS * row_pitch);
    const real *from = of(in.weight, at.direction), *gates = of(in.gates, at.direction), *bias = of(in.bias, at.direction);
    if (ON_CHIP) load_rows(in, at, weights, in.units, width, width);
    if (first == 0) without_steps(in, at, last, in.units);
    for (int s = first; s < min(end, at.steps); ++s) {
        const States states(in, state, s);
        if (s > first) await(arrived + at.team, (unsigned)(s - first) * at.slices);
        if (ON_CHIP) {
            int b = at.b - at.row + at.warp;  // a warp reads a sequence
            bool runs = s < Place::length_of(in, b);
            for (int k = threadIdx.x % 32; k < width; k += 32) {
                tile[at.warp * row_pitch + k] = runs && k < H ? states.at(at.state(in, b) + k) : 0.f;
            }
            __syncthreads();
        }
        for (int u = at.warp; u < in.units && at.first_unit + u < H; u += WARPS) {
            int unit = at.first_unit + u;
            const bool own = !at.part && s < at.length;
            const long long of_sequence = at.state(in, at.b);
            // Read before the sums, which take as long as the memory. The parts' sum begins with the bias.
            float a[GATES] = {}, c[GATES] = {};
            if (own) read_gates(gates + at.step(in, at.b, at.length, s) * GATES * H, bias, H, unit, a, c);
            if (ON_CHIP) {
#pragma unroll 2
                for (int k = 4 * at.part; k < width; k += 4 * PARTS) {
                    float4 h = load4(tile + at.row * row_pitch + k);
#pragma unroll
                    for (int g = 0; g < GATES; ++g) c[g] += dot(h, load4(weights + (g * in.units + u) * width + k));
                }
            } else if (s < at.length) {
                for (int k = at.part; k < H; k += PARTS) {
                    float h = states.at(of_sequence + k);
#pragma unroll
                    for (int g = 0; g < GATES; ++g) c[g] += h * widen(from[((long long)g * H + unit) * H + k]);
                }
            }
#pragma unroll
            for (int g = 0; g < GATES; ++g) c[g] = sum_parts(c[g]);
            if (!own) continue;
            float h = ON_CHIP ? tile[at.row * row_pitch + unit] : states.at(of_sequence + unit);
            to.step(in, at, states, at.b, at.length, unit, s, a, c, h);
        }
        if (s + 1 < min(end, at.steps)) signal(arrived + at.team);
    }
}

// Turns `first` to `end`: turn i carries the gradient back through W_hh to step s = steps − 1 − i, and goes through
// that step's cell. The turn after the last step leaves the gradient of h_0.
template <bool ON_CHIP>
__device__ __forceinline__ void backward(const Inputs& in, const Gradients& to, unsigned* arrived, int first, int end) {
    float* tile = shared_memory<ON_CHIP>();
    const int H = in.hidden, columns = GATES * H, width = padded(columns), row_pitch = pitch(columns);
    const Place at(in);
    real* weights = reinterpret_cast<real*>(tile + ROWS * row_pitch);
    const real* from = of(in.weight, at.direction);
    if (ON_CHIP) load_columns(in, at, weights, in.units, width, width);
    for (int turn = first; turn < min(end, at.steps + 1); ++turn) {
        int s = at.steps - 1 - turn;
        if (turn > first) await(arrived + at.team, (unsigned)(turn - first) * at.slices);
        if (ON_CHIP && turn > 0) {
            int b = at.b - at.row + at.warp;  // a warp reads a sequence
            const float* later = to.later(in, at, b, Place::length_of(in, b), s);
            for (int j = threadIdx.x % 32; j < width; j += 32) {
                tile[at.warp * row_pitch + j] = later && j < columns ? __ldcg(later + j) : 0.f;
            }
            __syncthreads();
        }
        for (int u = at.warp; u < in.units && at.first_unit + u < H; u += WARPS) {
            int unit = at.first_unit + u;
            const bool own = !at.part && at.b < in.batch;
            const CellGradient cell(in, to, at, own, at.b, at.length, unit, s);
            const float* later = to.later(in, at, at.b, at.length, s);
            float sum = 0.f;
            if (ON_CHIP && turn > 0) {
#pragma unroll 4
                for (int j = 4 * at.part; j < width; j += 4 * PARTS) {
                    sum += dot(load4(tile + at.row * row_pitch + j), load4(weights + u * width + j));
                }
            } else if (!ON_CHIP && later) {
                for (int j = at.part; j < columns; j += PARTS) sum += later[j] * widen(from[(long long)j * H + unit]);
            }
            sum = sum_parts(sum);
            if (own) cell.write(in, to, at, unit, s, sum);
        }
        if (turn + 1 < min(end, at.steps + 1)) signal(arrived + at.team);
    }
}

KERNEL(recurrent_forward, 256)
(Inputs in, real* out, real* last, real* saved, float* state, unsigned* arrived, int first, int end) {
    forward<true>(in, out, last, saved, state, arrived, first, end);
}
KERNEL(recurrent_forward_step, 256)
(Inputs in, real* out, real* last, real* saved, float* state, unsigned* arrived, int first, int end) {
    forward<false>(in, out, last, saved, state, arrived, first, end);
}
KERNEL(recurrent_backward, 256)(Inputs in, Gradients to, unsigned* arrived, int first, int end) {
    backward<true>(in, to, arrived, first, end);
}
KERNEL(recurrent_backward_step, 256)(Inputs in, Gradients to, unsigned* arrived, int first, int end) {
    backward<false>(in, to, arrived, first, end);
}
