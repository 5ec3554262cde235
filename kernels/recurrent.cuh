// What the recurrence's kernels have in common: sizes, a thread's place, the cells. recurrent.cu says how work is divided.
// Defines: CELL (0: GRU; Elman with 1: tanh, 2: relu, 3: identity).
#pragma once
#include "numbers.cuh"

#ifndef CELL
#define CELL 0
#endif
static constexpr int WARPS = 8, ROWS = 8, PARTS = 4, GATES = CELL == 0 ? 3 : 1, SAVED = 4;
static_assert(WARPS == ROWS, "a warp reads a sequence's state");

// Mirrors `Inputs` in src/ops/recurrent/gpu.rs. Pointers by direction; `initial` and `lengths` may be null.
struct Inputs {
    const real *gates[2], *weight[2], *bias[2];
    const real* initial;
    const int* lengths;
    int batch, length, hidden, directions;
    int units, first_team;  // units of a block; the team of the grid's first block
};

// Where this thread stands.
struct Place {
    int direction, first_unit, slices, warp, row, part;
    int b, length, steps;  // the lane's sequence and its length; the longest of the team
    unsigned team;

    __device__ __forceinline__ Place(const Inputs& in) {
        slices = (in.hidden + in.units - 1) / in.units;
        first_unit = blockIdx.x % slices * in.units;
        team = in.first_team + blockIdx.x / slices;
        direction = team % in.directions;
        warp = threadIdx.x / 32;
        row = threadIdx.x % 32 / PARTS;
        part = threadIdx.x % PARTS;
        b = team / in.directions * ROWS + row;
        length = length_of(in, b);
        steps = length;
        // Every warp has every sequence of the team.
        for (int lanes = 16; lanes > 0; lanes >>= 1) steps = max(steps, __shfl_xor_sync(FULL_WARP, steps, lanes));
    }
    static __device__ __forceinline__ int length_of(const Inputs& in, int b) {
        return b >= in.batch ? 0 : in.lengths ? in.lengths[b] : in.length;
    }
    // Where the s-th step of a sequence lies in (B,T), for this direction.
    __device__ __forceinline__ long long step(const Inputs& in, int b, int length, int s) const {
        return b * (long long)in.length + (direction ? length - 1 - s : s);
    }
    __device__ __forceinline__ long long state(const Inputs& in, int b) const {
        return (direction * (long long)in.batch + b) * in.hidden;
    }
};

template <class T>
__device__ __forceinline__ T* of(T* const (&pointers)[2], int direction) {
    return direction ? pointers[1] : pointers[0];
}

// Rows in shared memory are padded to whole turns of the four parts, which are also the steps of `mma`.
__device__ __forceinline__ int padded(int n) { return (n + 15) / 16 * 16; }

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// Of a unit, what x gives its gates, in a, and the bias of h's part, in c.
__device__ __forceinline__ void read_gates(const real* gates, const real* bias, int hidden, int unit, float* a, float* c) {
#pragma unroll
    for (int g = 0; g < GATES; ++g) {
        int j = g * hidden + unit;
        a[g] = widen(gates[j]);
        c[g] = bias ? widen(bias[j]) : 0.f;
    }
}

// The new state of a unit; what is saved goes to `saved`, a row of H for each number.
__device__ __forceinline__ float cell(const float* a, const float* c, float h, real* saved, int hidden) {
#if CELL == 0
    float r = sigmoid(a[0] + c[0]), z = sigmoid(a[1] + c[1]), n = tanhf(a[2] + r * c[2]);
    float kept[SAVED] = {r, z, n, c[2]};
#pragma unroll
    for (int k = 0; k < SAVED; ++k) saved[(long long)k * hidden] = narrow<real>(kept[k]);
    return (1.f - z) * n + z * h;
#else
    float x = a[0] + c[0];
    return CELL == 1 ? tanhf(x) : CELL == 2 && x < 0.f ? 0.f : x;
#endif
}

// Its derivative: from the gradient `d` of the new state those of the gates of x and of h; returns that of the state
// before, as far as it does not go through W_hh.
__device__ __forceinline__ float cell_backward(float d, const float* saved, float before, float after, float* a, float* c) {
#if CELL == 0
    float r = saved[0], z = saved[1], n = saved[2];
    float dn = d * (1.f - z) * (1.f - n * n);
    a[0] = c[0] = dn * saved[3] * r * (1.f - r);
    a[1] = c[1] = d * (before - n) * z * (1.f - z);
    a[2] = dn;
    c[2] = dn * r;
    return d * z;
#else
    a[0] = c[0] = CELL == 1 ? d * (1.f - after * after) : CELL == 2 && !(after > 0.f) ? 0.f : d;
    return 0.f;
#endif
}

// The last state of sequences without a step is the first.
__device__ __forceinline__ void without_steps(const Inputs& in, const Place& at, real* last, int units) {
    if (at.b >= in.batch || at.length > 0) return;
    for (int unit = at.first_unit + threadIdx.x % PARTS + PARTS * at.warp; unit < min(at.first_unit + units, in.hidden);
         unit += PARTS * WARPS) {
        long long i = at.state(in, at.b) + unit;
        last[i] = in.initial ? in.initial[i] : narrow<real>(0.f);
    }
}

// W_hh into shared memory, zeros past it: forward the rows of this block's units, gate by gate; backward down the columns,
// unit by unit.
__device__ __forceinline__ void load_rows(const Inputs& in, const Place& at, real* weights, int units, int width, int pitch) {
    const real* from = of(in.weight, at.direction);
    for (int i = threadIdx.x; i < GATES * units * width; i += WARPS * 32) {
        int k = i % width, unit = at.first_unit + i / width % units, gate = i / width / units;
        bool exists = unit < in.hidden && k < in.hidden;
        weights[i / width * pitch + k] = exists ? from[((long long)gate * in.hidden + unit) * in.hidden + k] : narrow<real>(0.f);
    }
}
__device__ __forceinline__ void load_columns(const Inputs& in, const Place& at, real* weights, int units, int width,
                                             int pitch) {
    const real* from = of(in.weight, at.direction);
    for (int i = threadIdx.x; i < units * width; i += WARPS * 32) {
        int j = i / units, u = i % units, unit = at.first_unit + u;
        bool exists = unit < in.hidden && j < GATES * in.hidden;
        weights[u * pitch + j] = exists ? from[(long long)j * in.hidden + unit] : narrow<real>(0.f);
    }
}

// States (D,B,H) in f32 before step s and after it: those of even steps and of odd ones take turns.
struct States {
    const float* before;
    float* after;
    const real* initial;

    __device__ __forceinline__ States(const Inputs& in, float* state, int s) {
        long long size = in.directions * (long long)in.batch * in.hidden;
        before = s > 0 ? state + (s + 1) % 2 * size : nullptr;
        after = state + s % 2 * size;
        initial = in.initial;
    }
    // Written by other blocks, hence not through this one's L1.
    __device__ __forceinline__ float at(long long i) const {
        return before ? __ldcg(before + i) : initial ? widen(initial[i]) : 0.f;
    }
};

// What a step forward writes of one unit.
struct Written {
    real *out, *last, *saved;

    __device__ __forceinline__ void step(const Inputs& in, const Place& at, const States& states, int b, int length, int unit,
                                         int s, const float* a, const float* c, float h) const {
        const long long i = at.state(in, b) + unit, step = at.step(in, b, length, s);
        real* kept = saved + (at.direction * (long long)in.batch * in.length + step) * SAVED * in.hidden + unit;
        h = cell(a, c, h, kept, in.hidden);
        states.after[i] = h;
        out[(step * in.directions + at.direction) * in.hidden + unit] = narrow<real>(h);
        if (s == length - 1) last[i] = narrow<real>(h);
    }
};

// Gradients: of the gates of x in d_gates by direction (null: not needed), added where `accumulate` says so, likewise
// d_initial; products (D,B,T,G·H) of W_hh·h + b_hh; before (D,B,T,H): the state before each step; carried (D,B,H)
// between steps. d_out and d_last may be null.
struct Gradients {
    const real *out, *saved, *d_out, *d_last;
    real *d_gates[2], *d_initial;
    float *products, *before, *carried;
    int accumulate[2], accumulate_initial, unused;

    // The gradient of W_hh·h + b_hh of the step after s, which comes back through W_hh; null where there is none.
    __device__ __forceinline__ const float* later(const Inputs& in, const Place& at, int b, int length, int s) const {
        if (s + 1 >= length) return nullptr;
        long long of_direction = at.direction * (long long)in.batch * in.length;
        return products + (of_direction + at.step(in, b, length, s + 1)) * GATES * in.hidden;
    }
};

// One unit of one sequence at step s, backward. What it reads is asked for before the products, which take as long as the
// memory.
struct CellGradient {
    long long i, step, of_direction;
    bool running, carries;
    float d = 0.f, before = 0.f, after = 0.f, saved[SAVED] = {};

    __device__ __forceinline__ CellGradient(const Inputs& in, const Gradients& to, const Place& at, bool own, int b, int length,
                                            int unit, int s) {
        const int H = in.hidden;
        of_direction = at.direction * (long long)in.batch * in.length;
        i = at.state(in, b) + unit;
        step = at.step(in, b, length, s);
        running = own && s >= 0 && s < length;
        carries = s + 1 < length;
        if (!running) return;
        long long here = (step * in.directions + at.direction) * H + unit;
        after = widen(to.out[here]);
        d = to.d_out ? widen(to.d_out[here]) : 0.f;
#pragma unroll
        for (int k = 0; k < SAVED && CELL == 0; ++k) {
            saved[k] = widen(to.saved[((of_direction + step) * SAVED + k) * H + unit]);
        }
        if (s > 0) {
            long long earlier = at.step(in, b, length, s - 1);
            before = widen(to.out[(earlier * in.directions + at.direction) * H + unit]);
        } else if (in.initial) {
            before = widen(in.initial[i]);
        }
    }

    // With the sum of what comes back through W_hh from the step after.
    __device__ __forceinline__ void write(const Inputs& in, const Gradients& to, const Place& at, int unit, int s,
                                          float sum) const {
        float carried = carries ? to.carried[i] + sum : to.d_last ? widen(to.d_last[i]) : 0.f;
        if (running) {
            const int H = in.hidden, columns = GATES * H;
            real* d_gates = of(to.d_gates, at.direction);
            const bool adds = at.direction ? to.accumulate[1] : to.accumulate[0];
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
};
