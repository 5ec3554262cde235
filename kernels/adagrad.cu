// Adagrad (Duchi, Hazan, Singer, JMLR 2011), as torch.optim.Adagrad with lr_decay 0: weight decay is part of the gradient.
// hyper = [learning rate, …]. The first `decayed` elements have weight decay.
#include "prelude.cuh"

KERNEL(adagrad, 256)
(float* parameters, const float* gradients, float* sum, const float* hyper, long long n, long long decayed, float eps,
 float weight_decay_l2) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    float g = gradients[i], theta = parameters[i];
    if (i < decayed) g += weight_decay_l2 * theta;
    float squares = sum[i] + g * g;
    sum[i] = squares;
    parameters[i] = theta - hyper[0] * (g / (sqrtf(squares) + eps));
}
