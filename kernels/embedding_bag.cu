// y[b] = Σ table[token[b,t]] over t < length[b], or their mean, + bias.
#include "table_gradient.cuh"

// A thread an element of y: neighbours read neighbouring columns of the same row.
KERNEL(embedding_bag_forward, 256)
(const int* tokens, const int* lengths, const real* table, const real* bias, real* y, long long n, int length,
 int columns, int mean) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    long long b = i / columns;
    int c = (int)(i % columns), count = lengths[b];
    float sum = 0.f;
    for (int t = 0; t < count; ++t) sum += widen(table[(long long)tokens[b * length + t] * columns + c]);
    if (mean && count > 0) sum /= count;
    y[i] = narrow<real>(sum + (bias ? widen(bias[c]) : 0.f));
}

// Every token of a sequence adds the sequence's gradient.
struct SequenceRow {
    const real* dy;
    const int* lengths;
    int length, columns, mean;
    __device__ __forceinline__ const real* at(long long i) const { return dy + i / length * columns; }
    __device__ __forceinline__ float scale(long long i) const { return mean ? 1.f / lengths[i / length] : 1.f; }
};

KERNEL(embedding_bag_backward_table, 256)
(const int* tokens, const int* lengths, const real* dy, float* d_table, long long count, int length, int columns,
 int mean) {
    SequenceRow row = {dy, lengths, length, columns, mean};
    table_gradient(tokens, lengths, row, d_table, count, length, columns);
}

// d_bias += Σ dy: a thread a column.
KERNEL(embedding_bag_backward_bias, 256)(const real* dy, float* d_bias, int batch, int columns) {
    long long c = blockIdx.x * 256ll + threadIdx.x;
    if (c >= columns) return;
    float sum = 0.f;
    for (int b = 0; b < batch; ++b) sum += widen(dy[(long long)b * columns + c]);
    d_bias[c] += sum;
}
