// One token of linear attention as a recurrent network: a block of 128 threads a head, in f32.
//   forward   S ← S + φ(k)vᵀ, z ← z + φ(k) (from zeros at position 0), out = φ(q)ᵀS / φ(q)ᵀz.
//   backward  with d = φ(q)ᵀz, p = φ(q)/d and o = dout·out: dφ(q) = (S·dout − o·z)/d, dφ(k) = p·(dout·v − o),
//             dv = dout·Σ pᵢφ(kᵢ). What earlier tokens left in S and z has no gradient.
// A state is stored as S (Dk×Dv), then z (Dk). Define: FEATURE_MAP.
#include "feature_map.cuh"

static constexpr int THREADS = 128;

// Σ over the block's threads, the same for all.
__device__ __forceinline__ float block_sum(float* part, float x) {
    x = warp_sum(x);
    __syncthreads();  // what was summed before has been read
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.f;
    for (int w = 0; w < THREADS / 32; ++w) sum += part[w];
    return sum;
}

KERNEL(linear_attention_step_forward, THREADS)
(View q, View k, View v, const int* position, View out, float* states, int heads, int key_dim, int value_dim) {
    SHARED(float, part, THREADS / 32);
    int b = blockIdx.x / heads, h = blockIdx.x % heads;
    const float *query = q.at(b, h, 0), *key = k.at(b, h, 0), *value = v.at(b, h, 0);
    float* s = states + (long long)blockIdx.x * key_dim * (value_dim + 1);
    float* z = s + (long long)key_dim * value_dim;
    bool first = *position == 0;
    float sum = 0.f;
    for (int i = threadIdx.x; i < key_dim; i += THREADS) {
        z[i] = (first ? 0.f : z[i]) + feature(key[i]);
        sum += feature(query[i]) * z[i];
    }
    float d = block_sum(part, sum);
    for (int j = threadIdx.x; j < value_dim; j += THREADS) {
        float above = 0.f;
        for (int i = 0; i < key_dim; ++i) {
            float* at = s + (long long)i * value_dim + j;
            *at = (first ? 0.f : *at) + feature(key[i]) * value[j];
            above += feature(query[i]) * *at;
        }
        out.at(b, h, 0)[j] = d == 0.f ? 0.f : above / d;
    }
}

__device__ __forceinline__ void put(const View& to, int b, int h, int i, float x, int accumulate) {
    if (!to.data) return;
    float* at = to.at(b, h, 0) + i;
    *at = (accumulate ? *at : 0.f) + x;
}

KERNEL(linear_attention_step_backward, THREADS)
(View q, View k, View v, const float* states, View d_out, View dq, int accumulate_q, View dk, int accumulate_k, View dv,
 int accumulate_v, int heads, int key_dim, int value_dim) {
    SHARED(float, part, THREADS / 32);
    int b = blockIdx.x / heads, h = blockIdx.x % heads;
    const float *query = q.at(b, h, 0), *key = k.at(b, h, 0), *value = v.at(b, h, 0), *g = d_out.at(b, h, 0);
    const float* s = states + (long long)blockIdx.x * key_dim * (value_dim + 1);
    const float* z = s + (long long)key_dim * value_dim;
    float below = 0.f, above = 0.f, meet = 0.f, along = 0.f;
    for (int i = threadIdx.x; i < key_dim; i += THREADS) {
        float f = feature(query[i]), row = 0.f;
        for (int j = 0; j < value_dim; ++j) row += s[(long long)i * value_dim + j] * g[j];
        below += f * z[i];
        above += f * row;
        meet += f * feature(key[i]);
    }
    for (int j = threadIdx.x; j < value_dim; j += THREADS) along += g[j] * value[j];
    float d = block_sum(part, below), inverse = d == 0.f ? 0.f : 1.f / d;
    float o = block_sum(part, above) * inverse, w = block_sum(part, meet) * inverse;
    along = block_sum(part, along);
    for (int i = threadIdx.x; i < key_dim; i += THREADS) {
        float f = feature(query[i]), e = feature(key[i]), row = 0.f;
        for (int j = 0; j < value_dim; ++j) row += s[(long long)i * value_dim + j] * g[j];
        put(dq, b, h, i, (row - o * z[i]) * inverse * slope(f), accumulate_q);
        put(dk, b, h, i, f * inverse * (along - o) * slope(e), accumulate_k);
    }
    for (int j = threadIdx.x; j < value_dim; j += THREADS) put(dv, b, h, j, g[j] * w, accumulate_v);
}
