// Softmax attention, forward; T×S never in memory (FlashAttention-2: Dao 2023, algorithm 1).
//
//   x = q·kᵀ,  y = score(x),  lse = log Σ exp(y),  out = Σ exp(y − lse)·v, in one pass over the keys: a row's sum and
//   output are rescaled when its maximum grows. Exponentials are 2^(y·log2 e).
//
// What a score is, and who sees which key, is in softmax_attention.cuh. FORWARD names the tiles.
#include "softmax_attention.cuh"
#if TENSOR_CORES
typedef Tiles<FORWARD> Forward;
#else
typedef Tiles Forward;
#endif

// With few queries and many keys the keys are split among gridDim.z blocks; each leaves its part of out and lse in
// `partial` and `lse`, one part after another, for softmax_attention_merge.
KERNEL(softmax_attention_forward, Forward::THREADS)
(Sizes s, Options o, RealView q, RealView k, RealView v, RealView out, float* partial, float* lse) {
    typedef Forward T;
    DYNAMIC_SHARED(char, memory);
    Work w;
    if (!find<T::M>(w, s, o, s.heads, false)) return;
    int h = w.h, kv = h / (s.heads / s.kv_heads), last_row = min(w.first + T::M, w.queries) - 1;
    Rows<KEY_COLUMNS> queries(memory, T::M), keys(memory, T::N);
    Rows<VALUE_COLUMNS> values(memory, T::N);
    Matrix all_keys = matrix(k, w, kv, w.k0, w.there, s.key_dim), all_values = matrix(v, w, kv, w.k0, w.there, s.value_dim);
    const float unit = IN_UNITS_OF(o.scale), factor = unit * LOG2_E;

    float sum[T::ROWS][T::width(VALUE_COLUMNS)] = {}, top[T::ROWS], total[T::ROWS] = {};
    int begin[T::ROWS], end[T::ROWS];
#pragma unroll
    for (int i = 0; i < T::ROWS; ++i) {
        int t = w.first + T::row(i);
        top[i] = -INFINITY;
        begin[i] = first_key(w, o, t);
        end[i] = t < w.queries ? end_key(w, s, o, t) : 0;
    }
    int s0 = first_key(w, o, w.first), last = end_key(w, s, o, last_row);
    if (partial) {
        int tiles = (max(last - s0, 0) + T::N - 1) / T::N, share = (tiles + gridDim.z - 1) / gridDim.z * T::N;
        s0 += blockIdx.z * share;
        last = min(last, s0 + share);
    }
    if (s0 < last) {
        T::load<T::M>(queries, matrix(q, w, h, w.q0, w.queries, s.key_dim), w.first);
        T::load<T::N>(keys, all_keys, s0);
    }
    for (; s0 < last; s0 += T::N) {
        T::arrived<0>();  // the keys are there; the values before them have been read
        T::load<T::N>(values, all_values, s0);
        float p[T::ROWS][T::COLUMNS];
        T::scores(p, queries, keys);
        bool whole = w.first + T::M <= w.queries && first_key(w, o, last_row) <= s0 && s0 + T::N <= end_key(w, s, o, w.first);
        if (SCORED || !TENSOR_CORES || !whole)
#pragma unroll
            for (int i = 0; i < T::ROWS; ++i)
#pragma unroll
                for (int j = 0; j < T::COLUMNS; ++j) {
                    int t = w.first + T::row(i), key = s0 + T::column(j);
                    p[i][j] = begin[i] <= key && key < end[i] ? score(o, w, h, p[i][j], t, key) : -INFINITY;
                }
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            float highest = -INFINITY;
#pragma unroll
            for (int j = 0; j < T::COLUMNS; ++j) highest = fmaxf(highest, p[i][j]);
            highest = fmaxf(top[i], T::row_max(highest));
            // A row that has seen no key yet keeps −inf; 0 stands in so that −inf − (−inf) is never formed.
            float base = highest == -INFINITY ? 0.f : highest;
            float shrink = exponential(top[i], base, factor);
            top[i] = highest;
            total[i] *= shrink;
#pragma unroll
            for (int j = 0; j < T::width(VALUE_COLUMNS); ++j) sum[i][j] *= shrink;
#pragma unroll
            for (int j = 0; j < T::COLUMNS; ++j) {
                p[i][j] = exponential(p[i][j], base, factor);
                total[i] += p[i][j];
                if (DROPOUT) p[i][j] *= kept(s, o, w, h, w.first + T::row(i), s0 + T::column(j));
            }
        }
        T::arrived<0>();  // the values are there; the keys have been read
        if (s0 + T::N < last) T::load<T::N>(keys, all_keys, s0 + T::N);
        T::apply(sum, p, values);
    }
#pragma unroll
    for (int i = 0; i < T::ROWS; ++i) {
        int t = w.first + T::row(i);
        float all = T::row_sum(total[i]);
        if (t >= w.queries) continue;
        float inverse = all == 0.f ? 0.f : 1.f / all;
        // Of several parts each has room for all rows.
        long long flat = row_of(s, w, h, t) + blockIdx.z * ((long long)s.batch * s.heads * s.queries);
        real* row = partial ? nullptr : out.at(w.b, h, w.q0 + t);
#pragma unroll
        for (int j = 0; j < T::width(VALUE_COLUMNS); ++j) {
            int column = T::output_column<VALUE_COLUMNS>(j);
            if (column >= s.value_dim) continue;
            if (partial) partial[flat * s.value_dim + column] = sum[i][j] * inverse;
            else row[column] = narrow<real>(sum[i][j] * inverse);
        }
        if (T::column(0) == 0 && blockIdx.y == 0) lse[flat] = all == 0.f ? -INFINITY : top[i] * unit + logf(all);
    }
}

// out = Σ exp(lseₙ − lse)·outₙ with lse = log Σ exp(lseₙ): a warp a row.
KERNEL(softmax_attention_merge, 256)(Sizes s, const float* partial, const float* part_lse, int parts, RealView out, float* lse) {
    long long rows = (long long)s.batch * s.heads * s.queries, row = blockIdx.x * 8ll + threadIdx.x / 32;
    if (row >= rows) return;
    float top = -INFINITY, total = 0.f;
    for (int n = 0; n < parts; ++n) top = fmaxf(top, part_lse[n * rows + row]);
    float base = top == -INFINITY ? 0.f : top;
    for (int n = 0; n < parts; ++n) total += exp2_approx(LOG2_E * (part_lse[n * rows + row] - base));
    real* to = out.at(row / s.queries / s.heads, row / s.queries % s.heads, row % s.queries);
    for (int c = threadIdx.x % 32; c < s.value_dim; c += 32) {
        float sum = 0.f;
        for (int n = 0; n < parts; ++n) {
            float weight = exp2_approx(LOG2_E * (part_lse[n * rows + row] - base));
            sum = fmaf(weight, partial[(n * rows + row) * s.value_dim + c], sum);
        }
        to[c] = narrow<real>(total == 0.f ? 0.f : sum / total);
    }
    if (threadIdx.x % 32 == 0) lse[row] = total == 0.f ? -INFINITY : top + logf(total);
}

// The softmax weights themselves, before dropout, from q, k and lse: into zeros, as hidden ones are not written.
KERNEL(softmax_attention_weights, Forward::THREADS)
(Sizes s, Options o, RealView q, RealView k, const float* lse, RealView weights) {
    typedef Forward T;
    DYNAMIC_SHARED(char, memory);
    Work w;
    if (!find<T::M>(w, s, o, s.heads, false)) return;
    int h = w.h, last = end_key(w, s, o, min(w.first + T::M, w.queries) - 1);
    Rows<KEY_COLUMNS> queries(memory, T::M), keys(memory, T::N);
    const float factor = IN_UNITS_OF(o.scale) * LOG2_E;
    for (int s0 = first_key(w, o, w.first); s0 < last; s0 += T::N) {
        T::load<T::M>(queries, matrix(q, w, h, w.q0, w.queries, s.key_dim), w.first);
        T::load<T::N>(keys, matrix(k, w, h / (s.heads / s.kv_heads), w.k0, w.there, s.key_dim), s0);
        T::arrived<0>();
        float p[T::ROWS][T::COLUMNS];
        T::scores(p, queries, keys);
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            int t = w.first + T::row(i);
            if (t >= w.queries) continue;
            float base = base_of(lse[row_of(s, w, h, t)]);
            int from = first_key(w, o, t), to = end_key(w, s, o, t);
            real* row = weights.at(w.b, h, w.q0 + t) + w.k0;
#pragma unroll
            for (int j = 0; j < T::COLUMNS; ++j) {
                int key = s0 + T::column(j);
                if (from <= key && key < to) row[key] = narrow<real>(weight(score(o, w, h, p[i][j], t, key), base, factor));
            }
        }
        T::finished();
    }
}
