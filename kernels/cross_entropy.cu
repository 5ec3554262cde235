// loss = mean over the targets that are not `ignore` of lse(logits) − logits[target]; 0 where there is none.
// One warp a row.
#include "mean_loss.cuh"
#include "numbers.cuh"

// lse = max + ln Σ e^(x − max), and the row's loss. A NaN among the logits is dropped by the maximum, not by the sum.
KERNEL(cross_entropy_lse, 256)
(const real* logits, const int* targets, float* lse, float* token_losses, long long rows, int columns, int ignore) {
    long long row = blockIdx.x * 8ll + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    logits += row * columns;
    float highest = -INFINITY, sum = 0.f;
    for (int c = lane; c < columns; c += 32) highest = fmaxf(highest, widen(logits[c]));
    highest = warp_max(highest);
    for (int c = lane; c < columns; c += 32) sum += expf(widen(logits[c]) - highest);
    sum = warp_sum(sum);
    if (lane != 0) return;
    int target = targets[row];
    float l = highest + logf(sum);
    lse[row] = l;
    token_losses[row] = target == ignore ? 0.f : l - widen(logits[target]);
}

KERNEL(cross_entropy_mean, 256)
(const float* token_losses, const int* targets, long long rows, int ignore, float* loss, float* count) {
    mean_loss(token_losses, targets, rows, ignore, loss, count);
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
