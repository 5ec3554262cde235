// Heads times their norms, forward and backward, in four kernels that both share:
//   rows: sums[b,h,t] = Σ a·b over the columns: squares of y forward, dz·y backward.
//   scan: sums over a scope: running along t (forward or from the end), per sequence, or over the batch.
//   ratios: from c = dz·y to dn/n, n's gradient over n.
//   scale: z = w·x, backward also + g·y.
// sums and norms are (B,H,T), contiguous. Which order additions take depends on the shapes alone.
#include "numbers.cuh"

// Scopes; what is neither is the sequence.
static constexpr int PREFIX = 0, BATCH = 2;

// The row of this warp: (b, t, h) in the order of merged heads.
struct Row {
    int b, h, t;
    __device__ __forceinline__ Row(long long row, int heads, int length)
        : b((int)(row / heads / length)), h((int)(row % heads)), t((int)(row / heads % length)) {}
    __device__ __forceinline__ long long at(int head, int heads, int length) const {
        return ((long long)b * heads + head) * length + t;
    }
};

// Rows at or past their sequence's length count 0, where lengths are given.
KERNEL(reweight_heads_rows, 256)
(RealView a, RealView b, const int* lengths, float* sums, long long rows, int heads, int length, int columns) {
    long long index = blockIdx.x * 8ll + threadIdx.x / 32;
    if (index >= rows) return;
    Row row(index, heads, length);
    const real *x = a.at(row.b, row.h, row.t), *y = b.at(row.b, row.h, row.t);
    float sum = 0.f;
    for (int c = threadIdx.x % 32; c < columns; c += 32) sum += widen(x[c]) * widen(y[c]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        sums[row.at(row.h, heads, length)] = lengths && row.t >= lengths[row.b] ? 0.f : sum;
}

// A warp a (b, h); over the batch, a warp a head. `root`: roots of the sums are stored.
KERNEL(reweight_heads_scan, 256)
(float* values, int batch, int heads, int length, int scope, int from_end, int root) {
    int unit = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (unit >= (scope == BATCH ? heads : batch * heads)) return;
    if (scope == PREFIX) {
        float* line = values + (long long)unit * length;
        float before = 0.f;
        for (int base = 0; base < length; base += 32) {
            int t = from_end ? length - 1 - base - lane : base + lane;
            bool inside = base + lane < length;
            float sum = inside ? line[t] : 0.f;
            for (int lanes = 1; lanes < 32; lanes *= 2) {
                float left = __shfl_up_sync(FULL_WARP, sum, lanes);
                if (lane >= lanes) sum += left;
            }
            sum += before;
            before = __shfl_sync(FULL_WARP, sum, 31);
            if (inside) line[t] = root ? sqrtf(sum) : sum;
        }
        return;
    }
    int sequences = scope == BATCH ? batch : 1;
    long long stride = (long long)heads * length;
    float* first = values + (long long)unit * length;
    float sum = 0.f;
    for (int b = 0; b < sequences; ++b)
        for (int t = lane; t < length; t += 32) sum += first[b * stride + t];
    sum = warp_sum(sum);
    if (root) sum = sqrtf(sum);
    for (int b = 0; b < sequences; ++b)
        for (int t = lane; t < length; t += 32) first[b * stride + t] = sum;
}

// c ← dn/n, 0 where n is 0. A thread a (b, t).
KERNEL(reweight_heads_ratios, 256)
(const float* norms, float* c, long long places, int heads, int length, int relative) {
    long long place = blockIdx.x * 256ll + threadIdx.x;
    if (place >= places) return;
    long long first = place / length * heads * length + place % length;
    float norm_sum = 0.f, product = 0.f;
    if (relative) {
        for (int h = 0; h < heads; ++h) {
            norm_sum += norms[first + (long long)h * length];
            product += c[first + (long long)h * length] * norms[first + (long long)h * length];
        }
    }
    for (int h = 0; h < heads; ++h) {
        long long i = first + (long long)h * length;
        float n = norms[i], dn = c[i];
        if (relative) dn = norm_sum == 0.f ? 0.f : heads * (dn - product / norm_sum) / norm_sum;
        c[i] = n == 0.f ? 0.f : dn / n;
    }
}

// z ← w·x, and where `g` is given + g·y for rows that count. A warp a row.
KERNEL(reweight_heads_scale, 256)
(RealView x, RealView y, const float* norms, const float* g, const int* lengths, RealView z, long long rows, int heads,
 int length, int columns, int relative, int accumulate) {
    long long index = blockIdx.x * 8ll + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (index >= rows) return;
    Row row(index, heads, length);
    float weight = norms[row.at(row.h, heads, length)];
    if (relative) {
        float sum = 0.f;
        for (int h = lane; h < heads; h += 32) sum += norms[row.at(h, heads, length)];
        sum = warp_sum(sum);
        weight = sum == 0.f ? 1.f : heads * weight / sum;
    }
    float through = g && !(lengths && row.t >= lengths[row.b]) ? g[row.at(row.h, heads, length)] : 0.f;
    const real *from = x.at(row.b, row.h, row.t), *own = g ? y.at(row.b, row.h, row.t) : from;
    real* to = z.at(row.b, row.h, row.t);
    for (int c = lane; c < columns; c += 32) {
        float sum = weight * widen(from[c]) + (g ? through * widen(own[c]) : 0.f);
        to[c] = narrow<real>((accumulate ? widen(to[c]) : 0.f) + sum);
    }
}
