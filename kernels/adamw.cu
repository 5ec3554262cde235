// AdamW (Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019), in the order of torch.optim.AdamW; and
// Adam (Kingma, Ba, ICLR 2015), in that of torch.optim.Adam. AdamW's decay shrinks a parameter beside the step, Adam's
// is the gradient of an L2 penalty: one of the two factors is 0.
// hyper = [learning rate, 1 − β1^t, 1 − β2^t, …]. The first `decayed` elements have weight decay.
#include "prelude.cuh"

KERNEL(adamw, 256)
(float* parameters, const float* gradients, float* m, float* v, const float* hyper, long long n, long long decayed,
 float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float shrink, float l2) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    float rate = hyper[0], g = gradients[i], theta = parameters[i];
    if (i < decayed) {
        g += l2 * theta;
        theta *= 1.f - rate * shrink;
    }
    float first = m[i] + one_minus_beta1 * (g - m[i]);
    float second = v[i] * beta2 + one_minus_beta2 * g * g;
    m[i] = first;
    v[i] = second;
    parameters[i] = theta - rate / hyper[1] * (first / (sqrtf(second) / sqrtf(hyper[2]) + eps));
}
