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
    real* weights = reinterpret_cast<real*>(tile + ROWS * row_pitch);
    const real *from = of(in.weight, at.direction), *gates = of(in.gates, at.direction), *bias = of(in.bias, at.direction);
    if (ON_CHIP) {
        for (int i = threadIdx.x; i < GATES * in.units * width; i += WARPS * 32) {
            int k = i % width, unit = at.first_unit + i / width % in.units, gate = i / width / in.units;
            weights[i] = unit < H && k < H ? from[((long long)gate * H + unit) * H + k] : narrow<real>(0.f);
        }
    }
    if (first == 0) without_steps(in, at, last, in.units);
    for (int s = first; s < min(end, at.steps); ++s) {
        const float* before = state + (s + 1) % 2 * (long long)in.directions * in.batch * H;
        float* after = state + s % 2 * (long long)in.directions * in.batch * H;
        // The state of sequence b before this step; written by other blocks, hence not through this one's L1.
        auto state_before = [&](int b, int k) {
            long long i = at.state(in, b) + k;
            return s > 0 ? __ldcg(before + i) : in.initial ? widen(in.initial[i]) : 0.f;
        };
        if (s > first) await(arrived + at.team, (unsigned)(s - first) * at.slices);
        if (ON_CHIP) {
            int b = at.b - at.row + at.warp;  // a warp reads a sequence
            bool runs = s < Place::length_of(in, b);
            for (int k = threadIdx.x % 32; k < width; k += 32) {
                tile[at.warp * row_pitch + k] = runs && k < H ? state_before(b, k) : 0.f;
            }
            __syncthreads();
        }
        for (int u = at.warp; u < in.units && at.first_unit + u < H; u += WARPS) {
            int unit = at.first_unit + u;
            const bool own = !at.part && s < at.length;
            const long long step = at.step(in, at.b, at.length, s);
            // Read before the sums, which take as long as the memory.
            float a[GATES] = {}, c[GATES] = {};
            if (own) {
#pragma unroll
                for (int g = 0; g < GATES; ++g) {
                    int j = g * H + unit;
                    a[g] = widen(gates[step * GATES * H + j]);
                    // The parts' sum begins with the bias.
                    c[g] = bias ? widen(bias[j]) : 0.f;
                }
            }
            if (ON_CHIP) {
#pragma unroll 2
                for (int k = 4 * at.part; k < width; k += 4 * PARTS) {
                    float4 h = load4(tile + at.row * row_pitch + k);
#pragma unroll
                    for (int g = 0; g < GATES; ++g) c[g] += dot(h, load4(weights + (g * in.units + u) * width + k));
                }
            } else if (s < at.length) {
                for (int k = at.part; k < H; k += PARTS) {
                    float h = state_before(at.b, k);
#pragma unroll
                    for (int g = 0; g < GATES; ++g) c[g] += h * widen(from[((long long)g * H + unit) * H + k]);
                }
            }
#pragma unroll
            for (int g = 0; g < GATES; ++g) c[g] = sum_parts(c[g]);
            if (!own) continue;
            const long long i = at.state(in, at.b) + unit;
            real* kept = saved + (at.direction * (long long)in.batch * in.length + step) * SAVED * H + unit;
            float h = cell(a, c, ON_CHIP ? tile[at.row * row_pitch + unit] : state_before(at.b, unit), kept, H);
            after[i] = h;
            out[(step * in.directions + at.direction) * H + unit] = narrow<real>(h);
            if (s == at.length - 1) last[i] = narrow<real>(h);
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
    real* d_gates = of(to.d_gates, at.direction);
    const bool adds = at.direction ? to.accumulate[1] : to.accumulate[0];
    const long long of_direction = at.direction * (long long)in.batch * in.length;
    if (ON_CHIP) {
        // Unit by unit down the columns of W_hh.
        for (int i = threadIdx.x; i < in.units * width; i += WARPS * 32) {
            int j = i / in.units, u = i % in.units, unit = at.first_unit + u;
            weights[u * width + j] = unit < H && j < columns ? from[(long long)j * H + unit] : narrow<real>(0.f);
        }
    }
    for (int turn = first; turn < min(end, at.steps + 1); ++turn) {
        int s = at.steps - 1 - turn, later = s + 1;
        bool running = s >= 0 && s < at.length, carries = turn > 0 && later < at.length;
        if (turn > first) await(arrived + at.team, (unsigned)(turn - first) * at.slices);
        if (ON_CHIP && turn > 0) {
            int b = at.b - at.row + at.warp, length = Place::length_of(in, b);  // a warp reads a sequence
            const float* products = to.products + (of_direction + at.step(in, b, length, later)) * columns;
            for (int j = threadIdx.x % 32; j < width; j += 32) {
                tile[at.warp * row_pitch + j] = later < length && j < columns ? __ldcg(products + j) : 0.f;
            }
            __syncthreads();
        }
        for (int u = at.warp; u < in.units && at.first_unit + u < H; u += WARPS) {
            int unit = at.first_unit + u;
            const bool own = !at.part && at.b < in.batch;
            const long long i = at.state(in, at.b) + unit, step = at.step(in, at.b, at.length, s);
            // Read before the sum, which takes as long as the memory.
            float d = 0.f, before = 0.f, after = 0.f, saved[SAVED] = {};
            if (own && running) {
                long long here = (step * in.directions + at.direction) * H + unit;
                after = widen(to.out[here]);
                d = to.d_out ? widen(to.d_out[here]) : 0.f;
#pragma unroll
                for (int k = 0; k < SAVED && CELL == 0; ++k) {
                    saved[k] = widen(to.saved[((of_direction + step) * SAVED + k) * H + unit]);
                }
                if (s > 0) {
                    long long earlier = at.step(in, at.b, at.length, s - 1);
                    before = widen(to.out[(earlier * in.directions + at.direction) * H + unit]);
                } else if (in.initial) {
                    before = widen(in.initial[i]);
                }
            }
            float sum = 0.f;
            if (ON_CHIP && turn > 0) {
#pragma unroll 4
                for (int j = 4 * at.part; j < width; j += 4 * PARTS) {
                    sum += dot(load4(tile + at.row * row_pitch + j), load4(weights + u * width + j));
                }
            } else if (!ON_CHIP && carries) {
                const float* products = to.products + (of_direction + at.step(in, at.b, at.length, later)) * columns;
                for (int j = at.part; j < columns; j += PARTS) sum += products[j] * widen(from[(long long)j * H + unit]);
            }
            sum = sum_parts(sum);
            if (!own) continue;
            float carried = carries ? to.carried[i] + sum : to.d_last ? widen(to.d_last[i]) : 0.f;
            if (running) {
                float a[GATES], c[GATES];
                to.carried[i] = cell_backward(carried + d, saved, before, after, a, c);
                to.before[(of_direction + step) * H + unit] = before;
#pragma unroll
                for (int g = 0; g < GATES; ++g) {
                    to.products[(of_direction + step) * columns + g * H + unit] = c[g];
                    if (!d_gates) continue;
                    real* into = d_gates + step * columns + g * H + unit;
                    *into = narrow<real>((adds ? widen(*into) : 0.f) + a[g]);
                }
            } else if (s < 0 && to.d_initial) {
                to.d_initial[i] = narrow<real>((to.accumulate_initial ? widen(to.d_initial[i]) : 0.f) + carried);
            }
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
