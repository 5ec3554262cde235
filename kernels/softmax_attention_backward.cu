// Softmax attention, backward; T×S never in memory (FlashAttention-2: Dao 2023, algorithm 2).
//
//   p = exp(y − lse) again, delta = Σ dout∘out − dlse, dy = p∘(dout·vᵀ − delta), dx = dy·∂y/∂x;
//   dv = pᵀ·dout, dq = dx·k, dk = dxᵀ·q.
//
// In two kernels, so that no sum needs atomics and results are the same bit for bit: dq's blocks own queries, those of dk
// and dv own keys, and each forms p and dx for itself: 3 and 4 products of T×S×D.
// UNORDERED: in one, where the blocks that own keys add to dq too, in whatever order they come: 5 products. Their sums
// are in f32, in memory of their own; another kernel rounds them to what is stored.
// A block of dk and dv whose registers do not hold both sums is two (PARTS): 8 products, or UNORDERED 6.
//
// What a score is, and who sees which key, is in softmax_attention.cuh. DQ and DKDV name the tiles.
#include "softmax_attention.cuh"
#if TENSOR_CORES
typedef Tiles<DQ> Dq;
typedef Tiles<DKDV> Dkdv;
#else
typedef Tiles Dq, Dkdv;
#endif

// delta = Σ dout∘out − dlse, a warp a row. dout or dlse may be absent.
KERNEL(softmax_attention_delta, 256)(Sizes s, RealView out, RealView d_out, const float* d_lse, float* delta) {
    long long row = blockIdx.x * 8ll + threadIdx.x / 32;
    if (row >= (long long)s.batch * s.heads * s.queries) return;
    int lane = threadIdx.x % 32;
    int t = row % s.queries, h = row / s.queries % s.heads, b = row / s.queries / s.heads;
    float sum = 0.f;
    if (d_out.data)
        for (int c = lane; c < s.value_dim; c += 32) sum = fmaf(widen(out.at(b, h, t)[c]), widen(d_out.at(b, h, t)[c]), sum);
    sum = warp_sum(sum);
    if (lane == 0) delta[row] = sum - (d_lse ? d_lse[row] : 0.f);
}

// Adds to, or overwrites, this thread's part of gradient rows.
template <class T, int D>
__device__ __forceinline__ void put(const RealView& d, const Work& w, int row0, int rows, int columns,
                                    const float (&sum)[T::ROWS][T::width(D)], float factor, int accumulate) {
#pragma unroll
    for (int i = 0; i < T::ROWS; ++i) {
        int r = w.first + T::row(i);
        if (r >= rows) continue;
        real* to = d.at(w.b, w.h, row0 + r);
#pragma unroll
        for (int j = 0; j < T::width(D); ++j) {
            int column = T::template output_column<D>(j);
            if (column < columns) to[column] = narrow<real>(sum[i][j] * factor + (accumulate ? widen(to[column]) : 0.f));
        }
    }
}

KERNEL(softmax_attention_dq, Dq::THREADS)
(Sizes s, Options o, RealView q, RealView k, RealView v, RealView d_out, const float* lse, const float* delta, RealView dq, int accumulate) {
#if !UNORDERED
    typedef Dq T;
    DYNAMIC_SHARED(char, memory);
    Work w;
    if (!find<T::M>(w, s, o, s.heads, false)) return;
    int h = w.h, kv = h / (s.heads / s.kv_heads), last_row = min(w.first + T::M, w.queries) - 1;
    Rows<KEY_COLUMNS> queries(memory, T::M), keys(memory, T::N);
    Rows<VALUE_COLUMNS> d_outs(memory, T::M), values(memory, T::N);
    Matrix all_keys = matrix(k, w, kv, w.k0, w.there, s.key_dim), all_values = matrix(v, w, kv, w.k0, w.there, s.value_dim);
    const float factor = IN_UNITS_OF(o.scale) * LOG2_E;

    float sum[T::ROWS][T::width(KEY_COLUMNS)] = {}, base[T::ROWS], row_delta[T::ROWS];
    int begin[T::ROWS], end[T::ROWS];
#pragma unroll
    for (int i = 0; i < T::ROWS; ++i) {
        int t = min(w.first + T::row(i), w.queries - 1);
        begin[i] = first_key(w, o, t);
        end[i] = end_key(w, s, o, t);
        base[i] = base_of(lse[row_of(s, w, h, t)]);
        row_delta[i] = delta[row_of(s, w, h, t)];
    }
    int s0 = first_key(w, o, w.first), last = end_key(w, s, o, last_row);
    if (s0 < last) {
        T::load<T::M>(queries, matrix(q, w, h, w.q0, w.queries, s.key_dim), w.first);
        if (d_out.data) T::load<T::M>(d_outs, matrix(d_out, w, h, w.q0, w.queries, s.value_dim), w.first);
    }
    for (; s0 < last; s0 += T::N) {
        T::load<T::N>(keys, all_keys, s0);
        T::load<T::N>(values, all_values, s0);
        T::arrived<0>();
        float x[T::ROWS][T::COLUMNS], dx[T::ROWS][T::COLUMNS] = {};
        T::scores(x, queries, keys);
        if (d_out.data) T::scores(dx, d_outs, values);
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i)
#pragma unroll
            for (int j = 0; j < T::COLUMNS; ++j) {
                int t = w.first + T::row(i), key = s0 + T::column(j);
                bool seen = begin[i] <= key && key < end[i] && t < w.queries;
                float p = seen ? weight(score(o, w, h, x[i][j], t, key), base[i], factor) : 0.f;
                if (DROPOUT) dx[i][j] *= kept(s, o, w, h, t, key);
                dx[i][j] = seen ? p * (dx[i][j] - row_delta[i]) * slope(o, x[i][j]) : 0.f;
            }
        T::apply(sum, dx, keys);
        T::finished();
    }
    put<T, KEY_COLUMNS>(dq, w, w.q0, w.queries, s.key_dim, sum, o.scale, accumulate);
#endif
}

// dq from the sums that UNORDERED blocks left: a thread a number.
KERNEL(softmax_attention_dq_of_sums, 256)(Sizes s, Options o, const float* sum_dq, RealView dq, int accumulate) {
    long long i = blockIdx.x * 256ll + threadIdx.x, row = i / s.key_dim;
    if (row >= (long long)s.batch * s.heads * s.queries) return;
    real* to = dq.at(row / s.queries / s.heads, row / s.queries % s.heads, row % s.queries) + i % s.key_dim;
    *to = narrow<real>(sum_dq[i] * o.scale + (accumulate ? widen(*to) : 0.f));
}

// Rows of a tile are keys here and its columns queries, of every query head of the group in turn. sum_dq: where UNORDERED,
// (B,H,T,Dk) in f32, to which dq without its scale is added; or nothing.
template <bool WITH_DK, bool WITH_DV>
__device__ __forceinline__ void dkdv(char* memory, const Sizes& s, const Options& o, const RealView& q, const RealView& k, const RealView& v,
                                     const RealView& d_out, const float* lse, const float* delta, const RealView& dk,
                                     int accumulate_dk, const RealView& dv, int accumulate_dv, float* sum_dq) {
    typedef Dkdv T;
    Work w;
    if (!find<T::M>(w, s, o, s.kv_heads, true)) return;
    int group = s.heads / s.kv_heads;
    Rows<KEY_COLUMNS> keys(memory, T::M), queries(memory, T::N);
    Rows<VALUE_COLUMNS> values(memory, T::M), d_outs(memory, T::N);
    Rows<T::N> stage(memory, UNORDERED ? T::M : 0);
    const float factor = IN_UNITS_OF(o.scale) * LOG2_E;

    // The queries that see any of these keys, s0 … s1 − 1: t + keys − queries reaches the first one, and is not beyond
    // the window of the last.
    int s0 = w.first, s1 = min(s0 + T::M, w.there), ahead = w.queries - w.keys, begin = 0, end = s0 < s1 ? w.queries : 0;
    if (s.causal) begin = max(begin, s0 + ahead);
#if WINDOW
    begin = max(begin, s0 + ahead - o.right);
    end = min(end, s1 + ahead + o.left);
#endif
    float sum_k[T::ROWS][T::width(KEY_COLUMNS)] = {}, sum_v[T::ROWS][T::width(VALUE_COLUMNS)] = {};
    if (begin < end) {
        T::load<T::M>(keys, matrix(k, w, w.h, w.k0, w.there, s.key_dim), s0);
        if (WITH_DK && d_out.data) T::load<T::M>(values, matrix(v, w, w.h, w.k0, w.there, s.value_dim), s0);
    }
    for (int h = w.h * group; h < (w.h + 1) * group; ++h) {
        for (int t0 = begin; t0 < end; t0 += T::N) {
            T::load<T::N>(queries, matrix(q, w, h, w.q0, w.queries, s.key_dim), t0);
            if (d_out.data) T::load<T::N>(d_outs, matrix(d_out, w, h, w.q0, w.queries, s.value_dim), t0);
            T::arrived<0>();
            float x[T::ROWS][T::COLUMNS], dx[T::ROWS][T::COLUMNS] = {};
            T::scores(x, keys, queries);
            if (WITH_DK && d_out.data) T::scores(dx, values, d_outs);
#pragma unroll
            for (int j = 0; j < T::COLUMNS; ++j) {
                int t = t0 + T::column(j), inside = min(t, w.queries - 1);
                float base = base_of(lse[row_of(s, w, h, inside)]), column_delta = delta[row_of(s, w, h, inside)];
                int from = first_key(w, o, t), to = t < w.queries ? end_key(w, s, o, t) : 0;
#pragma unroll
                for (int i = 0; i < T::ROWS; ++i) {
                    int key = s0 + T::row(i);
                    bool seen = from <= key && key < to;
                    float p = seen ? weight(score(o, w, h, x[i][j], t, key), base, factor) : 0.f;
                    float z = DROPOUT ? kept(s, o, w, h, t, key) : 1.f;
                    dx[i][j] = seen ? p * (dx[i][j] * z - column_delta) * slope(o, x[i][j]) : 0.f;
                    x[i][j] = p * z;
                }
            }
            if (WITH_DV && d_out.data) T::apply(sum_v, x, d_outs);
            if (WITH_DK) T::apply(sum_k, dx, queries);
#if UNORDERED
            if (WITH_DK)
                T::apply_transposed(dx, stage, keys, [&](int column, int c, float x) {
                    int t = t0 + column;
                    if (t < w.queries && c < s.key_dim) atomicAdd(sum_dq + row_of(s, w, h, t) * s.key_dim + c, x);
                });
#endif
            T::finished();
        }
    }
    if (WITH_DK && dk.data) put<T, KEY_COLUMNS>(dk, w, w.k0, w.keys, s.key_dim, sum_k, o.scale, accumulate_dk);
    if (WITH_DV && dv.data) put<T, VALUE_COLUMNS>(dv, w, w.k0, w.keys, s.value_dim, sum_v, 1.f, accumulate_dv);
}

// Where the registers do not hold both sums, PARTS is 2 and blockIdx.z tells which of them a block makes.
KERNEL(softmax_attention_dkdv, Dkdv::THREADS)
(Sizes s, Options o, RealView q, RealView k, RealView v, RealView d_out, const float* lse, const float* delta, RealView dk, int accumulate_dk,
 RealView dv, int accumulate_dv, float* sum_dq) {
    DYNAMIC_SHARED(char, memory);
    if (PARTS == 1) dkdv<true, true>(memory, s, o, q, k, v, d_out, lse, delta, dk, accumulate_dk, dv, accumulate_dv, sum_dq);
    else if (blockIdx.z == 0) dkdv<true, false>(memory, s, o, q, k, v, d_out, lse, delta, dk, accumulate_dk, dv, accumulate_dv, sum_dq);
    else dkdv<false, true>(memory, s, o, q, k, v, d_out, lse, delta, dk, accumulate_dk, dv, accumulate_dv, sum_dq);
}

// dbias = Σ p∘(dout·vᵀ − delta) over the axes that the bias is broadcast along: its strides there are 0. A block makes
// one tile of it.
KERNEL(softmax_attention_dbias, Dq::THREADS)
(Sizes s, Options o, RealView q, RealView k, RealView v, RealView d_out, const float* lse, const float* delta, RealView d_bias, int accumulate) {
#if BIAS
    typedef Dq T;
    DYNAMIC_SHARED(char, memory);
    float* partial = reinterpret_cast<float*>(memory);
    int key_tiles = (s.keys + T::N - 1) / T::N, query_tiles = (s.queries + T::M - 1) / T::M, place = blockIdx.x;
    int s0 = place % key_tiles * T::N, first_tile = 0, b = 0, h = 0, batches = s.batch, heads = s.heads;
    place /= key_tiles;
    if (o.bias_query) first_tile = place % query_tiles, place /= query_tiles, query_tiles = first_tile + 1;
    if (o.bias_head) h = place % s.heads, place /= s.heads, heads = h + 1;
    if (o.bias_batch) b = place, batches = b + 1;
    const int first_head = h;
    Rows<KEY_COLUMNS> queries(memory, T::M), keys(memory, T::N);
    Rows<VALUE_COLUMNS> d_outs(memory, T::M), values(memory, T::N);
    const float factor = IN_UNITS_OF(o.scale) * LOG2_E;

    float sum[T::ROWS][T::COLUMNS] = {};
    for (; b < batches; ++b)
        for (h = first_head; h < heads; ++h)
            for (int tile = first_tile; tile < query_tiles; ++tile) {
                int kv = h / (s.heads / s.kv_heads), t0 = tile * T::M;
                // All rows of the tensors: those of packed sequences that do not belong together are hidden below.
                Work all = {b, h, t0, 0, 0, s.queries, s.keys, s.keys};
                T::finished();
                T::load<T::M>(queries, matrix(q, all, h, 0, s.queries, s.key_dim), t0);
                T::load<T::N>(keys, matrix(k, all, kv, 0, s.keys, s.key_dim), s0);
                if (d_out.data) T::load<T::M>(d_outs, matrix(d_out, all, h, 0, s.queries, s.value_dim), t0);
                if (d_out.data) T::load<T::N>(values, matrix(v, all, kv, 0, s.keys, s.value_dim), s0);
                T::arrived<0>();
                float x[T::ROWS][T::COLUMNS], dx[T::ROWS][T::COLUMNS] = {};
                T::scores(x, queries, keys);
                if (d_out.data) T::scores(dx, d_outs, values);
#pragma unroll
                for (int i = 0; i < T::ROWS; ++i) {
                    int t = min(t0 + T::row(i), s.queries - 1);
                    Work w = sequence_of(all, s, o, t);
                    float base = base_of(lse[row_of(s, all, h, t)]), row_delta = delta[row_of(s, all, h, t)];
                    t -= w.q0;
                    int from = first_key(w, o, t), to = t0 + T::row(i) < s.queries ? end_key(w, s, o, t) : 0;
#pragma unroll
                    for (int j = 0; j < T::COLUMNS; ++j) {
                        int key = s0 + T::column(j) - w.k0;
                        if (from > key || key >= to) continue;
                        float p = weight(score(o, w, h, x[i][j], t, key), base, factor);
                        if (DROPOUT) dx[i][j] *= kept(s, o, w, h, t, key);
                        sum[i][j] += p * (dx[i][j] - row_delta);
                    }
                }
            }
    if (o.bias_query) {
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i)
#pragma unroll
            for (int j = 0; j < T::COLUMNS; ++j) {
                int t = first_tile * T::M + T::row(i), key = s0 + T::column(j);
                if (t >= s.queries || key >= s.keys) continue;
                real* to = d_bias.at(batches - 1, heads - 1, t) + key;
                *to = narrow<real>(sum[i][j] + (accumulate ? widen(*to) : 0.f));
            }
        return;
    }
    // The sum over all queries: a thread's rows, then in shared memory the groups of threads with different rows.
    __syncthreads();
#pragma unroll
    for (int j = 0; j < T::COLUMNS; ++j) {
        float rows = 0.f;
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) rows += sum[i][j];
        partial[T::group() * T::N + T::column(j)] = rows;
    }
    __syncthreads();
    for (int j = threadIdx.x; j < T::N && s0 + j < s.keys; j += T::THREADS) {
        float all = 0.f;
        for (int g = 0; g < T::M / T::ROWS; ++g) all += partial[g * T::N + j];
        real* to = d_bias.at(batches - 1, heads - 1, 0) + s0 + j;
        *to = narrow<real>(all + (accumulate ? widen(*to) : 0.f));
    }
#endif
}
