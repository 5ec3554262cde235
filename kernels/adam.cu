// Adam (Kingma, Ba, ICLR 2015), in the order of torch.optim.Adam: weight decay is part of the gradient.
// hyper = [learning rate, 1 − β1^t, 1 − β2^t, …]. The first `decayed` elements have weight decay.
#include "prelude.cuh"

KERNEL(adam, 256)
(float* parameters, const float* gradients, float* m, float* v, const float* hyper, long long n, long long decayed,
 float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float weight_decay_l2) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    float g = gradients[i], theta = parameters[i];
    if (i < decayed) g += weight_decay_l2 * theta;
    float first = m[i] + one_minus_beta1 * (g - m[i]);
    float second = v[i] * beta2 + one_minus_beta2 * g * g;
    m[i] = first;
    v[i] = second;
    parameters[i] = theta - hyper[0] / hyper[1] * (first / (sqrtf(second) / sqrtf(hyper[2]) + eps));
}
