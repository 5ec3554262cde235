// x[t] = table[token[t]] (+ positions[t]); a = softmax over t < length of x·H; y = Σ a[i,t]·x[t] for each head i.
// A block of 256 threads a sequence: 8 warps share the scores, then the heads' softmaxes, then all threads the columns.
#include "table_gradient.cuh"

// One sequence's rows.
struct Rows {
    const int* tokens;
    const real* table;
    const real* positions;
    int width;
    __device__ __forceinline__ float at(int t, int e) const {
        float x = widen(table[(long long)tokens[t] * width + e]);
        return positions ? x + widen(positions[(long long)t * width + e]) : x;
    }
};

// The weights past the length are zeros; without a token so are the averages.
KERNEL(head_pooling_forward, 256)
(const int* tokens, const int* lengths, const real* table, const real* heads, const real* positions, real* y,
 float* weights, int length, int width, int count) {
    long long b = blockIdx.x;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, valid = lengths[b];
    Rows x = {tokens + b * length, table, positions, width};
    weights += b * count * length;
    y += b * count * width;
    for (int pair = warp; pair < valid * count; pair += 8) {
        int t = pair / count, i = pair % count;
        float s = 0.f;
        for (int e = lane; e < width; e += 32) s += x.at(t, e) * widen(heads[e * count + i]);
        s = warp_sum(s);
        if (lane == 0) weights[i * length + t] = s;
    }
    __syncthreads();
    for (int i = warp; i < count; i += 8) {
        float* a = weights + i * length;
        float highest = -INFINITY, sum = 0.f;
        for (int t = lane; t < valid; t += 32) highest = fmaxf(highest, a[t]);
        highest = warp_max(highest);
        for (int t = lane; t < valid; t += 32) sum += expf(a[t] - highest);
        sum = warp_sum(sum);
        for (int t = lane; t < length; t += 32) a[t] = t < valid ? expf(a[t] - highest) / sum : 0.f;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < count * width; k += 256) {
        int i = k / width, e = k % width;
        float sum = 0.f;
        for (int t = 0; t < valid; ++t) sum += weights[i * length + t] * x.at(t, e);
        y[k] = narrow<real>(sum);
    }
}

// ds = a·(g·x − g·y), this sequence's dH[i,e] = Σ ds·x, and dx[t] = Σ a·g + ds·H where it is asked for.
KERNEL(head_pooling_backward, 256)
(const int* tokens, const int* lengths, const real* table, const real* heads, const real* positions, const real* y,
 const float* weights, const real* dy, float* ds, float* d_h, float* dx, int length, int width, int count) {
    long long b = blockIdx.x;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, valid = lengths[b];
    Rows x = {tokens + b * length, table, positions, width};
    weights += b * count * length;
    ds += b * count * length;
    y += b * count * width;
    dy += b * count * width;
    d_h += b * count * width;
    for (int pair = warp; pair < valid * count; pair += 8) {
        int t = pair / count, i = pair % count;
        float s = 0.f;
        for (int e = lane; e < width; e += 32) s += widen(dy[i * width + e]) * (x.at(t, e) - widen(y[i * width + e]));
        s = warp_sum(s);
        if (lane == 0) ds[i * length + t] = weights[i * length + t] * s;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < count * width; k += 256) {
        int i = k / width, e = k % width;
        float sum = 0.f;
        for (int t = 0; t < valid; ++t) sum += ds[i * length + t] * x.at(t, e);
        d_h[k] = sum;
    }
    if (!dx) return;
    dx += b * length * width;
    for (int k = threadIdx.x; k < valid * width; k += 256) {
        int t = k / width, e = k % width;
        float sum = 0.f;
        for (int i = 0; i < count; ++i)
            sum += weights[i * length + t] * widen(dy[i * width + e]) + ds[i * length + t] * widen(heads[e * count + i]);
        dx[k] = sum;
    }
}

// dH[e,i] += Σ over the sequences, in their order: a thread an element.
KERNEL(head_pooling_backward_heads, 256)(const float* d_h, float* d_heads, int batch, int width, int count) {
    long long k = blockIdx.x * 256ll + threadIdx.x;
    if (k >= (long long)width * count) return;
    float sum = 0.f;
    for (int b = 0; b < batch; ++b) sum += d_h[(long long)b * count * width + k];
    d_heads[k % width * count + k / width] += sum;
}

// Every token adds its own dx.
struct TokenRow {
    const float* dx;
    int width;
    __device__ __forceinline__ const float* at(long long i) const { return dx + i * width; }
    __device__ __forceinline__ float scale(long long) const { return 1.f; }
};

KERNEL(head_pooling_backward_table, 256)
(const int* tokens, const int* lengths, const float* dx, float* d_table, long long count, int length, int width) {
    TokenRow row = {dx, width};
    table_gradient(tokens, lengths, row, d_table, count, length, width);
}

// d_positions[t] += Σ dx[b,t] over the sequences that reach t: a thread an element.
KERNEL(head_pooling_backward_positions, 256)
(const float* dx, const int* lengths, float* d_positions, int batch, long long n, int width) {
    long long k = blockIdx.x * 256ll + threadIdx.x;
    if (k >= n) return;
    float sum = 0.f;
    for (int b = 0; b < batch; ++b)
        if (k / width < lengths[b]) sum += dx[b * n + k];
    d_positions[k] += sum;
}
