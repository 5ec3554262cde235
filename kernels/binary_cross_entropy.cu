// loss = mean over the targets y that are not `ignore` of max(z,0) − z·y + ln(1 + e^−|z|); 0 where there is none.
#include "mean_loss.cuh"
#include "numbers.cuh"

KERNEL(binary_cross_entropy_terms, 256)(const real* logits, const int* targets, float* terms, long long n, int ignore) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    float z = widen(logits[i]);
    int target = targets[i];
    // Not fmaxf, which would drop a NaN.
    terms[i] = target == ignore ? 0.f : (z < 0.f ? 0.f : z) - z * target + log1pf(expf(-fabsf(z)));
}

KERNEL(binary_cross_entropy_mean, 256)
(const float* terms, const int* targets, long long n, int ignore, float* loss, float* count) {
    mean_loss(terms, targets, n, ignore, loss, count);
}

// dz = (σ(z) − y)·dloss/count, 0 where the target is ignored.
KERNEL(binary_cross_entropy_backward, 256)
(const real* logits, const int* targets, const float* count, const float* d_loss, real* dz, long long n, int ignore,
 int accumulate) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    int target = targets[i];
    float z = widen(logits[i]), e = expf(-fabsf(z)), d = 0.f;
    if (target != ignore) d = ((z < 0.f ? e : 1.f) / (1.f + e) - target) * (*d_loss / *count);
    dz[i] = narrow<real>((accumulate ? widen(dz[i]) : 0.f) + d);
}
