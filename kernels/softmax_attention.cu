// Softmax attention in f32 arithmetic, forward and backward; T×S never in memory (FlashAttention-2: Dao 2023, algorithms 1 and 2).
//
//   forward   s = scale·q·kᵀ,  lse = log Σ exp(s),  out = Σ exp(s − lse)·v, in one pass over the keys: a row's sum and
//             output are rescaled when its maximum grows. Exponentials are 2^(x·log2 e); the maximum, or lse, is taken
//             off before that factor, as rounding the product of a large score would cost its digits.
//   backward  p = exp(s − lse) again, delta = Σ dout∘out − dlse, ds = p∘(dout·vᵀ − delta);
//             dv = pᵀ·dout, dq = scale·ds·k, dk = scale·dsᵀ·q. Two kernels, so that no sum needs atomics.
//
// Any head size: scores are summed over chunks of 32 columns; columns of what is written are cut into slices of
// COLUMNS (a define: 16, 32, 64 or 128), blockIdx.y, each recomputing the scores.
#include "attention.cuh"

static constexpr int EACH = COLUMNS / 16;  // columns of a slice that a thread owns
static constexpr float LOG2_E = 1.4426950408889634f;

// The start of one batch's and head's rows.
__device__ __forceinline__ const real* head(const RealView& x, int b, int h) {
    return x.data + b * x.batch + h * x.head;
}

KERNEL(softmax_attention_forward, 256)
(Sizes s, float scale, RealView q, RealView k, RealView v, RealView out, float* lse, const int* lengths) {
    DYNAMIC_SHARED(float, shared);
    float *chunks = shared, *weights = shared, *values = shared + 2 * CHUNK;
    int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    int tiles = (s.queries + TILE - 1) / TILE;
    int t0 = blockIdx.x % tiles * TILE, bh = blockIdx.x / tiles, b = bh / s.heads, h = bh % s.heads;
    int kv = h / (s.heads / s.kv_heads), column0 = blockIdx.y * COLUMNS;

    float sum[4][EACH] = {}, top[4], total[4] = {};
    int visible[4];
    for (int i = 0; i < 4; ++i) {
        top[i] = -INFINITY;
        visible[i] = visible_keys(s, lengths, b, t0 + ty * 4 + i);
    }
    // The last row sees most.
    int end = visible_keys(s, lengths, b, min(t0 + TILE, s.queries) - 1);
    for (int s0 = 0; s0 < end; s0 += TILE) {
        __syncthreads();  // the previous tile's weights and values have been read
        load_rows<COLUMNS>(values, COLUMNS, head(v, b, kv), v.row, s0, s.keys, column0, s.value_dim);
        float p[4][4];
        tile_scores(p, chunks, head(q, b, h), q.row, t0, s.queries, head(k, b, kv), k.row, s0, s.keys, s.key_dim);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float highest = -INFINITY;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                p[i][j] = s0 + tx + 16 * j < visible[i] ? p[i][j] * scale : -INFINITY;
                highest = fmaxf(highest, p[i][j]);
            }
            highest = fmaxf(top[i], row_max(highest));
            // A row that has seen no key yet keeps −inf; 0 stands in so that −inf − (−inf) is never formed.
            float base = highest == -INFINITY ? 0.f : highest;
            float shrink = exp2_approx(LOG2_E * (top[i] - base));
            top[i] = highest;
            total[i] *= shrink;
#pragma unroll
            for (int j = 0; j < EACH; ++j) sum[i][j] *= shrink;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                p[i][j] = exp2_approx(LOG2_E * (p[i][j] - base));
                total[i] += p[i][j];
            }
        }
        put_weights(weights, p);
        tile_apply<COLUMNS>(sum, weights, values);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int t = t0 + ty * 4 + i;
        float all = row_sum(total[i]);
        if (t >= s.queries) continue;
        float inverse = visible[i] > 0 ? 1.f / all : 0.f;
        real* row = out.at(b, h, t);
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            int column = column0 + tx + 16 * j;
            if (column < s.value_dim) row[column] = narrow<real>(sum[i][j] * inverse);
        }
        if (tx == 0 && blockIdx.y == 0)
            lse[(long long)bh * s.queries + t] = visible[i] > 0 ? top[i] + logf(all) : -INFINITY;
    }
}

// delta = Σ dout∘out − dlse, a warp a row. dout or dlse may be absent.
KERNEL(softmax_attention_delta, 256)(Sizes s, RealView out, RealView d_out, const float* d_lse, float* delta) {
    long long row = blockIdx.x * 8ll + threadIdx.x / 32;
    if (row >= (long long)s.batch * s.heads * s.queries) return;
    int lane = threadIdx.x % 32;
    int t = row % s.queries, h = row / s.queries % s.heads, b = row / s.queries / s.heads;
    float sum = 0.f;
    if (d_out.data)
        for (int c = lane; c < s.value_dim; c += 32)
            sum = fmaf(widen(out.at(b, h, t)[c]), widen(d_out.at(b, h, t)[c]), sum);
    sum = warp_sum(sum);
    if (lane == 0) delta[row] = sum - (d_lse ? d_lse[row] : 0.f);
}

// Adds to, or overwrites, this thread's part of a slice of gradient rows.
__device__ __forceinline__ void put_gradient(const RealView& d, int b, int h, int row0, int rows, int column0,
                                             int columns, const float (&sum)[4][EACH], float factor, int accumulate) {
    int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (row0 + ty * 4 + i >= rows) continue;
        real* to = d.at(b, h, row0 + ty * 4 + i);
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            int column = column0 + tx + 16 * j;
            if (column < columns)
                to[column] = narrow<real>(sum[i][j] * factor + (accumulate ? widen(to[column]) : 0.f));
        }
    }
}

KERNEL(softmax_attention_dq, 256)
(Sizes s, float scale, RealView q, RealView k, RealView v, RealView d_out, const float* lse, const float* delta,
 RealView dq, int accumulate, const int* lengths) {
    DYNAMIC_SHARED(float, shared);
    float *chunks = shared, *weights = shared, *keys = shared + 2 * CHUNK;
    int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    int tiles = (s.queries + TILE - 1) / TILE;
    int t0 = blockIdx.x % tiles * TILE, bh = blockIdx.x / tiles, b = bh / s.heads, h = bh % s.heads;
    int kv = h / (s.heads / s.kv_heads), column0 = blockIdx.y * COLUMNS;

    float sum[4][EACH] = {}, row_lse[4], row_delta[4];
    int visible[4];
    for (int i = 0; i < 4; ++i) {
        int t = min(t0 + ty * 4 + i, s.queries - 1);
        visible[i] = visible_keys(s, lengths, b, t);
        row_lse[i] = lse[(long long)bh * s.queries + t];
        row_delta[i] = delta[(long long)bh * s.queries + t];
    }
    int end = visible_keys(s, lengths, b, min(t0 + TILE, s.queries) - 1);
    for (int s0 = 0; s0 < end; s0 += TILE) {
        __syncthreads();  // the previous tile's weights and keys have been read
        load_rows<COLUMNS>(keys, COLUMNS, head(k, b, kv), k.row, s0, s.keys, column0, s.key_dim);
        float p[4][4], ds[4][4] = {};
        tile_scores(p, chunks, head(q, b, h), q.row, t0, s.queries, head(k, b, kv), k.row, s0, s.keys, s.key_dim);
        if (d_out.data)
            tile_scores(ds, chunks, head(d_out, b, h), d_out.row, t0, s.queries, head(v, b, kv), v.row, s0, s.keys,
                        s.value_dim);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                bool seen = s0 + tx + 16 * j < visible[i];
                float weight = exp2_approx(LOG2_E * fmaf(p[i][j], scale, -row_lse[i]));
                ds[i][j] = seen ? weight * (ds[i][j] - row_delta[i]) : 0.f;
            }
        put_weights(weights, ds);
        tile_apply<COLUMNS>(sum, weights, keys);
    }
    put_gradient(dq, b, h, t0, s.queries, column0, s.key_dim, sum, scale, accumulate);
}

// Rows of a tile are keys here and its columns queries, of every query head of the group in turn.
KERNEL(softmax_attention_dkdv, 256)
(Sizes s, float scale, RealView q, RealView k, RealView v, RealView d_out, const float* lse, const float* delta,
 RealView dk, int accumulate_dk, RealView dv, int accumulate_dv, const int* lengths) {
    DYNAMIC_SHARED(float, shared);
    float *chunks = shared, *weights = shared, *rows = shared + 2 * CHUNK;
    int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    int tiles = (s.keys + TILE - 1) / TILE, group = s.heads / s.kv_heads;
    int s0 = blockIdx.x % tiles * TILE, b = blockIdx.x / tiles / s.kv_heads, kv = blockIdx.x / tiles % s.kv_heads;
    int column0 = blockIdx.y * COLUMNS;
    // The first query that sees key s0 when causal: t + keys − queries ≥ s0.
    int first = s.causal ? max(0, s0 + s.queries - s.keys) / TILE * TILE : 0;
    bool any = s0 < visible_keys(s, lengths, b, s.queries - 1);

    float sum_k[4][EACH] = {}, sum_v[4][EACH] = {};
    for (int h = kv * group; any && h < (kv + 1) * group; ++h) {
        long long bh = (long long)b * s.heads + h;
        for (int t0 = first; t0 < s.queries; t0 += TILE) {
            float p[4][4], ds[4][4] = {};
            __syncthreads();  // the previous tile's weights and rows have been read
            if (d_out.data) load_rows<COLUMNS>(rows, COLUMNS, head(d_out, b, h), d_out.row, t0, s.queries, column0, s.value_dim);
            tile_scores(p, chunks, head(k, b, kv), k.row, s0, s.keys, head(q, b, h), q.row, t0, s.queries, s.key_dim);
            if (d_out.data)
                tile_scores(ds, chunks, head(v, b, kv), v.row, s0, s.keys, head(d_out, b, h), d_out.row, t0, s.queries,
                            s.value_dim);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                int t = t0 + tx + 16 * j;
                bool inside = t < s.queries;
                float column_lse = inside ? lse[bh * s.queries + t] : 0.f;
                float column_delta = inside ? delta[bh * s.queries + t] : 0.f;
                int visible = inside ? visible_keys(s, lengths, b, t) : 0;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    bool seen = s0 + ty * 4 + i < visible;
                    p[i][j] = seen ? exp2_approx(LOG2_E * fmaf(p[i][j], scale, -column_lse)) : 0.f;
                    ds[i][j] = seen ? p[i][j] * (ds[i][j] - column_delta) : 0.f;
                }
            }
            if (d_out.data) {
                put_weights(weights, p);
                tile_apply<COLUMNS>(sum_v, weights, rows);
                __syncthreads();  // rows of dout make way for rows of q
            }
            load_rows<COLUMNS>(rows, COLUMNS, head(q, b, h), q.row, t0, s.queries, column0, s.key_dim);
            cp_async_commit();
            put_weights(weights, ds);
            cp_async_wait<0>();
            __syncthreads();
            tile_apply<COLUMNS>(sum_k, weights, rows);
        }
    }
    if (dk.data) put_gradient(dk, b, kv, s0, s.keys, column0, s.key_dim, sum_k, scale, accumulate_dk);
    if (dv.data) put_gradient(dv, b, kv, s0, s.keys, column0, s.value_dim, sum_v, 1.f, accumulate_dv);
}
