// y[b,t] = table[token[b,t]] + positions[t].
#include "numbers.cuh"

// A warp a token.
KERNEL(embedding_forward, 256)
(const int* tokens, const real* table, const real* positions, real* y, long long count, int length, int columns) {
    long long i = blockIdx.x * 8ll + threadIdx.x / 32;
    if (i >= count) return;
    const real* row = table + (long long)tokens[i] * columns;
    const real* position = positions + i % length * columns;
    for (int c = threadIdx.x % 32; c < columns; c += 32)
        y[i * columns + c] = narrow<real>(widen(row[c]) + (positions ? widen(position[c]) : 0.f));
}

// d_table[token] += Σ dy over the token's occurrences, in their order. A warp a position and 128 columns: the one
// at a token's first occurrence adds up all of them, the others find an earlier one and leave. So nothing is
// added by two warps, and memory holds the same bits after every run. A lane looks at one token of 32.
KERNEL(embedding_backward_table, 256)(const int* tokens, const real* dy, float* d_table, long long count, int columns) {
    constexpr int WIDTH = 4, BATCH = 4;
    long long i = blockIdx.x * 8ll + threadIdx.x / 32;
    int lane = threadIdx.x % 32, first_column = blockIdx.y * 32 * WIDTH + lane;
    if (i >= count) return;
    int token = tokens[i];
    float sum[WIDTH] = {};
    for (long long base = 0; base < count; base += 32) {
        unsigned int found = __ballot_sync(FULL_WARP, base + lane < count && tokens[base + lane] == token);
        if (base + 32 <= i ? found != 0 : base <= i && (found & ((1u << (i - base)) - 1)) != 0) return;
        // Several rows at a time, so that their loads overlap.
        while (found) {
            float d[BATCH][WIDTH];
#pragma unroll
            for (int b = 0; b < BATCH; ++b) {
                const real* row = dy + (base + __ffs(found) - 1) * columns;
#pragma unroll
                for (int w = 0; w < WIDTH; ++w)
                    d[b][w] = found && first_column + 32 * w < columns ? widen(row[first_column + 32 * w]) : 0.f;
                found &= found - 1;
            }
#pragma unroll
            for (int b = 0; b < BATCH; ++b)
#pragma unroll
                for (int w = 0; w < WIDTH; ++w) sum[w] += d[b][w];
        }
    }
#pragma unroll
    for (int w = 0; w < WIDTH; ++w)
        if (first_column + 32 * w < columns) d_table[(long long)token * columns + first_column + 32 * w] += sum[w];
}

// d_positions[t] += Σ dy[b,t] over the batch: a thread an element.
KERNEL(embedding_backward_positions, 256)(const real* dy, float* d_positions, int batch, long long n) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    float sum = 0.f;
    for (int b = 0; b < batch; ++b) sum += widen(dy[b * n + i]);
    d_positions[i] += sum;
}
