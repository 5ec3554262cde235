// Pairs (i, i + D/2) of a row turned by the position's angle i: row t of `angles` holds D/2 cosines, then D/2 sines.
// The same kernel turns gradients back, with sign −1. A thread a pair, in the order of y's memory (B,T,H,D).
#include "numbers.cuh"

KERNEL(rotary, 256)
(RealView x, const float* angles, RealView y, long long pairs, int length, int heads, int half, float sign,
 int accumulate) {
    long long pair = blockIdx.x * 256ll + threadIdx.x;
    if (pair >= pairs) return;
    int i = pair % half;
    long long row = pair / half;
    int h = row % heads;
    row /= heads;
    int t = row % length, b = row / length;
    const real* from = x.at(b, h, t) + i;
    real* to = y.at(b, h, t) + i;
    const float* angle = angles + (long long)t * 2 * half + i;
    float cosine = angle[0], sine = sign * angle[half], first = widen(from[0]), second = widen(from[half]);
    float turned[2] = {first * cosine - second * sine, second * cosine + first * sine};
    to[0] = narrow<real>((accumulate ? widen(to[0]) : 0.f) + turned[0]);
    to[half] = narrow<real>((accumulate ? widen(to[half]) : 0.f) + turned[1]);
}
