// What forward and backward of softmax attention share: which rows a block has, which keys a query sees, and what becomes
// of a product before and after the exponential. A feature is written here, once, and all kernels have it.
//
// The products are those of tiles_mma.cuh or, without TENSOR_CORES, of tiles_f32.cuh. Defines: KEY_COLUMNS and
// VALUE_COLUMNS: how many numbers of a row are held or written at once; FEATURES: the bits of what is to change scores or
// hide keys, of which those that are not set cost nothing. Each file names the tiles of its kernels (groups of 16 rows
// a warp, warps, columns).
#pragma once
#include "numbers.cuh"
#if TENSOR_CORES
#include "tiles_mma.cuh"
#else
#include "tiles_f32.cuh"
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
    const real* bias;
    const float* slopes;
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

// A head's rows of the block's sequence. Of keys and values, those that lengths leave: what stands behind them may be NaN,
// and a weight of 0 would not hide that.
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
    x -= o.slopes[h] * fabsf((float)(t + w.keys - w.queries - s));
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

// A query's lse as `weight` subtracts it. Where nothing was seen, +inf: weights are 0.
__device__ __forceinline__ float base_of(float lse) {
#if TENSOR_CORES
    return lse == -INFINITY ? INFINITY : lse * LOG2_E;
#else
    return lse == -INFINITY ? INFINITY : lse;
#endif
}

// exp(y − lse), y in units of a score's `unit`; factor = unit·log2 e.
__device__ __forceinline__ float weight(float y, float base, float factor) {
#if TENSOR_CORES
    return exp2_approx(fmaf(y, factor, -base));
#else
    return exponential(y, base, factor);
#endif
}
