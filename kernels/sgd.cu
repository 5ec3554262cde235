// Gradient descent, in the order of torch.optim.SGD: weight decay is part of the gradient; momentum has no dampening.
// hyper = [learning rate, …]. The first `decayed` elements have weight decay.
#include "prelude.cuh"

KERNEL(sgd, 256)
(float* parameters, const float* gradients, const float* hyper, long long n, long long decayed, float weight_decay_l2) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    float g = gradients[i], theta = parameters[i];
    if (i < decayed) g += weight_decay_l2 * theta;
    parameters[i] = theta - hyper[0] * g;
}

KERNEL(sgd_momentum, 256)
(float* parameters, const float* gradients, float* direction, const float* hyper, long long n, long long decayed,
 float weight_decay_l2, float momentum) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= n) return;
    float g = gradients[i], theta = parameters[i];
    if (i < decayed) g += weight_decay_l2 * theta;
    float towards = direction[i] * momentum + g;
    direction[i] = towards;
    parameters[i] = theta - hyper[0] * towards;
}
