// Softmax attention, forward and backward; T×S never in memory (FlashAttention-2: Dao 2023, algorithms 1 and 2).
//
//   forward   x = q·kᵀ,  y = score(x),  lse = log Σ exp(y),  out = Σ exp(y − lse)·v, in one pass over the keys: a row's
//             sum and output are rescaled when its maximum grows. Exponentials are 2^(y·log2 e).
//   backward  p = exp(y − lse) again, delta = Σ dout∘out − dlse, dy = p∘(dout·vᵀ − delta), dx = dy·∂y/∂x;
//             dv = pᵀ·dout, dq = dx·k, dk = dxᵀ·q. Two kernels, so that no sum needs atomics.
//
// The products are those of tiles_mma.cuh or, without TENSOR_CORES, of tiles_f32.cuh. Defines: FORWARD, DQ and DKDV name
// the tiles of each kernel (groups of 16 rows a warp, warps, columns), KEY_COLUMNS and VALUE_COLUMNS how many numbers of a
// row are held or written at once, FEATURES the bits of what is to change scores or hide keys: the others cost nothing.
#include "numbers.cuh"
#if TENSOR_CORES
#include "tiles_mma.cuh"
typedef Tiles<FORWARD> Forward;
typedef Tiles<DQ> Dq;
typedef Tiles<DKDV> Dkdv;
#else
#include "tiles_f32.cuh"
typedef Tiles Forward, Dq, Dkdv;
#endif

// Mirrors `features` in src/ops/softmax_attention/gpu.rs.
#define SOFTCAP (FEATURES & 1)
#define ALIBI (FEATURES & 2)
#define BIAS (FEATURES & 4)
#define MASK (FEATURES & 8)
#define WINDOW (FEATURES & 16)
#define DROPOUT (FEATURES & 32)
#define PACKED (FEATURES & 64)

static constexpr float LOG2_E = 1.4426950408889634f;

// Mirrors `KernelSizes` in src/ops/attention.rs.
struct Sizes {
    int batch, heads, kv_heads, queries, keys, key_dim, value_dim, causal;
};

// Mirrors `Options` in src/ops/softmax_attention/gpu.rs. Strides are 0 along axes that are broadcast.
struct Options {
    const int *lengths, *starts_q, *starts_k, *rng, *mask;
    const real *bias, *slopes;
    long long mask_batch, mask_head, mask_query, bias_batch, bias_head, bias_query;
    float scale, softcap, drop, keep;  // drop: the probability; keep: what the others are multiplied with
    int left, right, sequences, stream;
};

// --- Which rows, and what they see ----------------------------------------------------------------

// A block's part of the work: `first` is its first row of one head of one sequence. A sequence is a batch's, or of
// several that are packed along T and S: from q0 and k0 on.
struct Work {
    int b, h, first, q0, k0, queries, keys;
    int there;  // keys that key_lengths leaves
};

// The block's work, M rows of queries (or of keys); false where blocks are more than rows.
template <int M> __device__ __forceinline__ bool find(Work& w, const Sizes& s, const Options& o, int heads, bool of_keys) {
#if PACKED
    int most = (of_keys ? s.keys : s.queries) / M + o.sequences, tile = blockIdx.x % most;
    w.b = 0;
    w.h = blockIdx.x / most;
    for (int n = 0; n < o.sequences; ++n) {
        w.q0 = o.starts_q[n];
        w.k0 = o.starts_k[n];
        w.queries = o.starts_q[n + 1] - w.q0;
        w.there = w.keys = o.starts_k[n + 1] - w.k0;
        int tiles = ((of_keys ? w.keys : w.queries) + M - 1) / M;
        w.first = tile * M;
        if (tile < tiles) return true;
        tile -= tiles;
    }
    return false;
#else
    int tiles = ((of_keys ? s.keys : s.queries) + M - 1) / M, tile = blockIdx.x % tiles;
    // Under a causal mask the last queries see most: they go first, and the light ones fill the gaps at the end.
    w.first = (of_keys ? tile : tiles - 1 - tile) * M;
    w.b = blockIdx.x / tiles / heads;
    w.h = blockIdx.x / tiles % heads;
    w.q0 = w.k0 = 0;
    w.queries = s.queries;
    w.keys = s.keys;
    w.there = o.lengths ? min(o.lengths[w.b], s.keys) : s.keys;
    return true;
#endif
}

// The sequence that query t of all belongs to.
__device__ __forceinline__ Work sequence_of(Work w, const Sizes& s, const Options& o, int t) {
#if PACKED
    int n = 0;
    while (o.starts_q[n + 1] <= t) ++n;
    w.q0 = o.starts_q[n];
    w.k0 = o.starts_k[n];
    w.queries = o.starts_q[n + 1] - w.q0;
    w.there = w.keys = o.starts_k[n + 1] - w.k0;
#else
    if (o.lengths) w.there = min(o.lengths[w.b], s.keys);
#endif
    return w;
}

// Query t sees the keys from first_key to end_key − 1; both grow with t. Bottom-right: the last query is aligned with
// the last key, of the padded lengths.
__device__ __forceinline__ int first_key(const Work& w, const Options& o, int t) {
#if WINDOW
    return max(0, t + w.keys - w.queries - o.left);
#else
    return 0;
#endif
}
__device__ __forceinline__ int end_key(const Work& w, const Sizes& s, const Options& o, int t) {
    int diagonal = t + w.keys - w.queries, end = w.there;
    if (s.causal) end = min(end, diagonal + 1);
#if WINDOW
    end = min(end, diagonal + o.right + 1);
#endif
    return max(end, 0);
}

// A head's rows of the block's sequence.
__device__ __forceinline__ Matrix matrix(const RealView& x, const Work& w, int h, int row0, int rows, int columns) {
    return {x.at(w.b, h, row0), x.row, rows, columns};
}
__device__ __forceinline__ long long row_of(const Sizes& s, const Work& w, int h, int t) {
    return ((long long)w.b * s.heads + h) * s.queries + w.q0 + t;
}

// --- What becomes of a product --------------------------------------------------------------------

// Scores are kept as plain products as long as nothing but their scale changes them (a positive one, so that the largest
// stays the largest); it is then part of the exponential's one multiplication.
#define SCORED (SOFTCAP || ALIBI || BIAS || MASK)
#if SCORED || !TENSOR_CORES
#define IN_UNITS_OF(scale) 1.f
#else
#define IN_UNITS_OF(scale) (scale)
#endif

// The score of query t and key s, of which x is the product.
__device__ __forceinline__ float score(const Options& o, const Work& w, int h, float x, int t, int s) {
#if SCORED || !TENSOR_CORES
    x *= o.scale;
#endif
#if SOFTCAP
    x = o.softcap * tanhf(x / o.softcap);
#endif
#if ALIBI
    x -= widen(o.slopes[h]) * fabsf((float)(t + w.keys - w.queries - s));
#endif
#if BIAS
    x += widen(o.bias[w.b * o.bias_batch + h * o.bias_head + (w.q0 + t) * o.bias_query + w.k0 + s]);
#endif
#if MASK
    if (!o.mask[w.b * o.mask_batch + h * o.mask_head + (w.q0 + t) * o.mask_query + w.k0 + s]) x = -INFINITY;
#endif
    return x;
}

// ∂score/∂x, without the factor `scale`, which dq and dk get at the end.
__device__ __forceinline__ float slope(const Options& o, float x) {
#if SOFTCAP
    float capped = tanhf(x * o.scale / o.softcap);
    return 1.f - capped * capped;
#else
    return 1.f;
#endif
}

// exp(y − base), y and base in units of a score's `unit`; factor = unit·log2 e.
__device__ __forceinline__ float exponential(float y, float base, float factor) {
#if TENSOR_CORES
    return exp2_approx(fmaf(y, factor, -base * factor));
#else
    // The difference first: rounding the product of a large score would cost its digits.
    return exp2_approx(factor * (y - base));
#endif
}

// What dropout multiplies the weight of query t and key s with.
__device__ __forceinline__ float kept(const Sizes& s, const Options& o, const Work& w, int h, int t, int key) {
#if DROPOUT
    uint64_t element = (uint64_t)row_of(s, w, h, t) * s.keys + w.k0 + key;
    uint64_t seed = (uint32_t)o.rng[0] | (uint64_t)(uint32_t)o.rng[1] << 32;
    Philox random = philox(seed, element / 4, o.stream, o.rng[2]);
    uint32_t low = element & 1 ? random.word[1] : random.word[0], high = element & 1 ? random.word[3] : random.word[2];
    return uniform(element & 2 ? high : low) >= o.drop ? o.keep : 0.f;
#else
    return 1.f;
#endif
}

// --- Forward --------------------------------------------------------------------------------------

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
    Matrix all_keys = matrix(k, w, kv, w.k0, w.keys, s.key_dim), all_values = matrix(v, w, kv, w.k0, w.keys, s.value_dim);
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

// --- Backward -------------------------------------------------------------------------------------

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

// A query's lse as what its exponentials subtract. Where nothing was seen, +inf: they are 0.
__device__ __forceinline__ float base_of(float lse, float unit) { return lse == -INFINITY ? INFINITY : lse / unit; }

KERNEL(softmax_attention_dq, Dq::THREADS)
(Sizes s, Options o, RealView q, RealView k, RealView v, RealView d_out, const float* lse, const float* delta, RealView dq, int accumulate) {
    typedef Dq T;
    DYNAMIC_SHARED(char, memory);
    Work w;
    if (!find<T::M>(w, s, o, s.heads, false)) return;
    int h = w.h, kv = h / (s.heads / s.kv_heads), last_row = min(w.first + T::M, w.queries) - 1;
    Rows<KEY_COLUMNS> queries(memory, T::M), keys(memory, T::N);
    Rows<VALUE_COLUMNS> d_outs(memory, T::M), values(memory, T::N);
    Matrix all_keys = matrix(k, w, kv, w.k0, w.keys, s.key_dim), all_values = matrix(v, w, kv, w.k0, w.keys, s.value_dim);
    const float unit = IN_UNITS_OF(o.scale), factor = unit * LOG2_E;

    float sum[T::ROWS][T::width(KEY_COLUMNS)] = {}, base[T::ROWS], row_delta[T::ROWS];
    int begin[T::ROWS], end[T::ROWS];
#pragma unroll
    for (int i = 0; i < T::ROWS; ++i) {
        int t = min(w.first + T::row(i), w.queries - 1);
        begin[i] = first_key(w, o, t);
        end[i] = end_key(w, s, o, t);
        base[i] = base_of(lse[row_of(s, w, h, t)], unit);
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
                float p = seen ? exponential(score(o, w, h, x[i][j], t, key), base[i], factor) : 0.f;
                if (DROPOUT) dx[i][j] *= kept(s, o, w, h, t, key);
                dx[i][j] = seen ? p * (dx[i][j] - row_delta[i]) * slope(o, x[i][j]) : 0.f;
            }
        T::apply(sum, dx, keys);
        T::finished();
    }
    put<T, KEY_COLUMNS>(dq, w, w.q0, w.queries, s.key_dim, sum, o.scale, accumulate);
}

// Rows of a tile are keys here and its columns queries, of every query head of the group in turn.
template <bool WITH_DK, bool WITH_DV>
__device__ __forceinline__ void dkdv(char* memory, const Sizes& s, const Options& o, const RealView& q, const RealView& k, const RealView& v,
                                     const RealView& d_out, const float* lse, const float* delta, const RealView& dk,
                                     int accumulate_dk, const RealView& dv, int accumulate_dv) {
    typedef Dkdv T;
    Work w;
    if (!find<T::M>(w, s, o, s.kv_heads, true)) return;
    int group = s.heads / s.kv_heads;
    Rows<KEY_COLUMNS> keys(memory, T::M), queries(memory, T::N);
    Rows<VALUE_COLUMNS> values(memory, T::M), d_outs(memory, T::N);
    const float unit = IN_UNITS_OF(o.scale), factor = unit * LOG2_E;

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
        T::load<T::M>(keys, matrix(k, w, w.h, w.k0, w.keys, s.key_dim), s0);
        if (WITH_DK && d_out.data) T::load<T::M>(values, matrix(v, w, w.h, w.k0, w.keys, s.value_dim), s0);
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
                float base = base_of(lse[row_of(s, w, h, inside)], unit), column_delta = delta[row_of(s, w, h, inside)];
                int from = first_key(w, o, t), to = t < w.queries ? end_key(w, s, o, t) : 0;
#pragma unroll
                for (int i = 0; i < T::ROWS; ++i) {
                    int key = s0 + T::row(i);
                    bool seen = from <= key && key < to;
                    float p = seen ? exponential(score(o, w, h, x[i][j], t, key), base, factor) : 0.f;
                    float z = DROPOUT ? kept(s, o, w, h, t, key) : 1.f;
                    dx[i][j] = seen ? p * (dx[i][j] * z - column_delta) * slope(o, x[i][j]) : 0.f;
                    x[i][j] = p * z;
                }
            }
            if (WITH_DV && d_out.data) T::apply(sum_v, x, d_outs);
            if (WITH_DK) T::apply(sum_k, dx, queries);
            T::finished();
        }
    }
    if (WITH_DK && dk.data) put<T, KEY_COLUMNS>(dk, w, w.k0, w.keys, s.key_dim, sum_k, o.scale, accumulate_dk);
    if (WITH_DV && dv.data) put<T, VALUE_COLUMNS>(dv, w, w.k0, w.keys, s.value_dim, sum_v, 1.f, accumulate_dv);
}

// Where the registers do not hold both sums, PARTS is 2 and blockIdx.z tells which of them a block makes.
KERNEL(softmax_attention_dkdv, Dkdv::THREADS)
(Sizes s, Options o, RealView q, RealView k, RealView v, RealView d_out, const float* lse, const float* delta, RealView dk, int accumulate_dk,
 RealView dv, int accumulate_dv) {
    DYNAMIC_SHARED(char, memory);
    if (PARTS == 1) dkdv<true, true>(memory, s, o, q, k, v, d_out, lse, delta, dk, accumulate_dk, dv, accumulate_dv);
    else if (blockIdx.z == 0) dkdv<true, false>(memory, s, o, q, k, v, d_out, lse, delta, dk, accumulate_dk, dv, accumulate_dv);
    else dkdv<false, true>(memory, s, o, q, k, v, d_out, lse, delta, dk, accumulate_dk, dv, accumulate_dv);
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
    const float unit = IN_UNITS_OF(o.scale), factor = unit * LOG2_E;

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
                    float base = base_of(lse[row_of(s, all, h, t)], unit), row_delta = delta[row_of(s, all, h, t)];
                    t -= w.q0;
                    int from = first_key(w, o, t), to = t0 + T::row(i) < s.queries ? end_key(w, s, o, t) : 0;
#pragma unroll
                    for (int j = 0; j < T::COLUMNS; ++j) {
                        int key = s0 + T::column(j) - w.k0;
                        if (from > key || key >= to) continue;
                        float p = exponential(score(o, w, h, x[i][j], t, key), base, factor);
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

// The softmax weights themselves, before dropout, from q, k and lse: into zeros, as hidden ones are not written.
KERNEL(softmax_attention_weights, Forward::THREADS)
(Sizes s, Options o, RealView q, RealView k, const float* lse, RealView weights) {
    typedef Forward T;
    DYNAMIC_SHARED(char, memory);
    Work w;
    if (!find<T::M>(w, s, o, s.heads, false)) return;
    int h = w.h, last = end_key(w, s, o, min(w.first + T::M, w.queries) - 1);
    Rows<KEY_COLUMNS> queries(memory, T::M), keys(memory, T::N);
    const float unit = IN_UNITS_OF(o.scale), factor = unit * LOG2_E;
    for (int s0 = first_key(w, o, w.first); s0 < last; s0 += T::N) {
        T::load<T::M>(queries, matrix(q, w, h, w.q0, w.queries, s.key_dim), w.first);
        T::load<T::N>(keys, matrix(k, w, h / (s.heads / s.kv_heads), w.k0, w.keys, s.key_dim), s0);
        T::arrived<0>();
        float p[T::ROWS][T::COLUMNS];
        T::scores(p, queries, keys);
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            int t = w.first + T::row(i);
            if (t >= w.queries) continue;
            float base = base_of(lse[row_of(s, w, h, t)], unit);
            int from = first_key(w, o, t), to = end_key(w, s, o, t);
            real* row = weights.at(w.b, h, w.q0 + t) + w.k0;
#pragma unroll
            for (int j = 0; j < T::COLUMNS; ++j) {
                int key = s0 + T::column(j);
                if (from <= key && key < to) row[key] = narrow<real>(exponential(score(o, w, h, p[i][j], t, key), base, factor));
            }
        }
        T::finished();
    }
}
