// loss = mean over the targets that are not `ignore` of lse(logits) − logits[target]; 0 where there is none.
// One warp a row; the mean is taken by one block, in a fixed order.
#include "numbers.cuh"

// lse = max + ln Σ e^(x − max). A NaN among the logits is dropped by the maximum, but not by the sum.
KERNEL(cross_entropy_lse, 256)(const real* logits, float* lse, long long rows, int columns) {
    long long row = blockIdx.x * 8ll + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    logits += row * columns;
    float highest = -INFINITY, sum = 0.f;
    for (int c = lane; c < columns; c += 32) highest = fmaxf(highest, widen(logits[c]));
    highest = warp_max(highest);
    for (int c = lane; c < columns; c += 32) sum += expf(widen(logits[c]) - highest);
    sum = warp_sum(sum);
    if (lane == 0) lse[row] = highest + logf(sum);
}

KERNEL(cross_entropy_mean, 256)
(const real* logits, const int* targets, const float* lse, long long rows, int columns, int ignore, float* loss,
 float* count) {
    SHARED(float, sums, 256);
    SHARED(float, counts, 256);
    float sum = 0.f, n = 0.f;
    for (long long row = threadIdx.x; row < rows; row += 256) {
        if (targets[row] == ignore) continue;
        sum += lse[row] - widen(logits[row * columns + targets[row]]);
        n += 1.f;
    }
    sums[threadIdx.x] = sum;
    counts[threadIdx.x] = n;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        sums[threadIdx.x] += sums[threadIdx.x + half];
        counts[threadIdx.x] += counts[threadIdx.x + half];
    }
    if (threadIdx.x != 0) return;
    *loss = counts[0] > 0.f ? sums[0] / counts[0] : 0.f;
    *count = counts[0];
}

// dx = (softmax(x) − onehot(target))·dloss/count, 0 where the target is ignored.
KERNEL(cross_entropy_backward, 256)
(const real* logits, const int* targets, const float* lse, const float* count, const float* d_loss, real* dx,
 long long rows, int columns, int ignore, int accumulate) {
    long long row = blockIdx.x * 8ll + threadIdx.x / 32;
    if (row >= rows) return;
    int target = targets[row];
    float l = lse[row], scale = *d_loss / *count;
    for (int c = threadIdx.x % 32; c < columns; c += 32) {
        long long at = row * columns + c;
        float d = target == ignore ? 0.f : (expf(widen(logits[at]) - l) - (c == target ? 1.f : 0.f)) * scale;
        dx[at] = narrow<real>((accumulate ? widen(dx[at]) : 0.f) + d);
    }
}
