// The gradient of a table whose rows were gathered by the tokens (B,T) of sequences with lengths (B).
#pragma once
#include "numbers.cuh"

// Whether place i of all B·T is before its sequence's length.
__device__ __forceinline__ bool is_valid(const int* lengths, long long i, int length) {
    return i % length < lengths[i / length];
}

// d_table[token] += Σ row(place)·scale(place) over the token's valid places, in their order. A warp a place and 128
// columns: the one at a token's first place adds up all of them, the others find an earlier one and leave. So nothing
// is added by two warps, and memory holds the same bits after every run. A lane looks at one place of 32.
// Row: `at(place)`, the row that is added, of `columns` elements, and `scale(place)`.
template <class Row>
__device__ __forceinline__ void table_gradient(const int* tokens, const int* lengths, Row row, float* d_table,
                                               long long count, int length, int columns) {
    constexpr int WIDTH = 4;
    long long i = blockIdx.x * 8ll + threadIdx.x / 32;
    int lane = threadIdx.x % 32, first_column = blockIdx.y * 32 * WIDTH + lane;
    if (i >= count || !is_valid(lengths, i, length)) return;
    int token = tokens[i];
    float sum[WIDTH] = {};
    for (long long base = 0; base < count; base += 32) {
        long long place = base + lane;
        bool same = place < count && is_valid(lengths, place, length) && tokens[place] == token;
        unsigned int found = __ballot_sync(FULL_WARP, same);
        if (base + 32 <= i ? found != 0 : base <= i && (found & ((1u << (i - base)) - 1)) != 0) return;
        for (; found; found &= found - 1) {
            long long at = base + __ffs(found) - 1;
            float scale = row.scale(at);
#pragma unroll
            for (int w = 0; w < WIDTH; ++w) {
                int c = first_column + 32 * w;
                if (c < columns) sum[w] += scale * widen(row.at(at)[c]);
            }
        }
    }
#pragma unroll
    for (int w = 0; w < WIDTH; ++w)
        if (first_column + 32 * w < columns) d_table[(long long)token * columns + first_column + 32 * w] += sum[w];
}
