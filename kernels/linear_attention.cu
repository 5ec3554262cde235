// Linear attention, forward and backward (see src/ops/linear_attention.rs for the formulas and names).
//
// Everything is made of two steps on tiles of 64×64 in shared memory, with operands Q = φ(q), K = φ(k), V = v, G = dout
// and P = φ(q)/d:
//   states:  per segment of rows, Σ b cᵀ                (K,V gives S and z; P,G gives G and y), then summed over segments;
//   rows:    a·state + mask(a bᵀ) c within the segment  (out: Q,K,V; d·dφ(q): G,V,K; dφ(k): V,G,P; dv: K,P,G).
// A state is stored as S (Dk×Dv), then z (Dk). Segments of queries and of keys match: query t's last key, t + S − T, lies
// in the segment of t's number plus `first`; `pad` is where that makes segment 0 of the keys start, counted before key 0.
// Defines: CAUSAL, FEATURE_MAP (position in FeatureMap::ALL).
#include "feature_map.cuh"
#include "numbers.cuh"

static constexpr int TILE = 64, THREADS = 256;
// Rows of a tile in shared memory, in elements: 16-byte aligned, and eight rows apart in banks.
static constexpr int PITCH = TILE + 4;

enum Operand { Q, K, V, G, P };

// Mirrors `Problem` in src/ops/linear_attention/gpu.rs.
struct Problem {
    int heads, kv_heads, queries, keys, key_dim, value_dim;
    int query_segment, query_segments, key_segment, key_segments, pad, first;
    View q, k, v, d_out;
    const int* lengths;     // (B), or null
    const float* inverse;   // 1/d (B,H,T), 0 where d is 0
    const float* shift;     // c = −dout·out (B,H,T)
    const float* states;    // sums up to each segment of keys; from each segment of queries on
};

__device__ __forceinline__ int key_length(const Problem& p, int b) { return p.lengths ? p.lengths[b] : p.keys; }
__device__ __forceinline__ int columns_of(const Problem& p, Operand what) {
    return what == V || what == G ? p.value_dim : p.key_dim;
}
// How deep a product over tile columns or rows goes: in fours, as tiles are read; the rest is zeros.
__device__ __forceinline__ int depth_of(int left) { return left >= TILE ? TILE : (left + 3) & ~3; }
__device__ __forceinline__ long long state_len(const Problem& p) { return (long long)p.key_dim * (p.value_dim + 1); }

// Loads `count` rows from `row` on (those outside 0..limit as zeros) and `depth` columns from `column` on.
template <Operand what>
__device__ __forceinline__ void load(float* tile, const Problem& p, int b, int h, int row, int count, int limit, int column) {
    const View& view = what == K ? p.k : what == V ? p.v : what == G ? p.d_out : p.q;
    int columns = columns_of(p, what), x = threadIdx.x % TILE;
    if (x >= depth_of(columns - column)) return;
    const float* from = view.at(b, h, 0) + column + x;
    const float* inverse = p.inverse + ((long long)b * p.heads + h) * p.queries;
#pragma unroll 4
    for (int r = threadIdx.x / TILE; r < count; r += THREADS / TILE) {
        int t = row + r;
        float value = 0.f;
        if (t >= 0 && t < limit && column + x < columns) {
            value = from[t * view.row];
            if (what != V && what != G) value = feature(value);
            if (what == P) value *= inverse[t];
        }
        tile[r * PITCH + x] = value;
    }
}

// Loads a state's tile with the columns of operand `a` down and those of `c` across.
template <Operand a, Operand c>
__device__ __forceinline__ void load_state(float* tile, const Problem& p, const float* state, int down, int across) {
    constexpr bool transpose = a == V || a == G;
    int rows = transpose ? across : down, columns = transpose ? down : across, x = threadIdx.x % TILE;
    int height = depth_of(p.key_dim - rows), width = depth_of(p.value_dim - columns);
    if (x >= width) return;
    for (int r = threadIdx.x / TILE; r < height; r += THREADS / TILE) {
        bool inside = rows + r < p.key_dim && columns + x < p.value_dim;
        float value = inside ? state[(long long)(rows + r) * p.value_dim + columns + x] : 0.f;
        tile[transpose ? x * PITCH + r : r * PITCH + x] = value;
    }
}

// Thread (tx, ty) of 16×16 holds 4×4 elements of a product of tiles.
struct Block {
    float x[4][4];
};
__device__ __forceinline__ float4 four(const float* from) { return *reinterpret_cast<const float4*>(from); }

// x[i][j] += Σ_d a[ty + 16i][d] · b[d][4tx + j]
__device__ __forceinline__ void multiply(Block& out, const float* a, const float* b, int depth) {
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (int d = 0; d < depth; d += 4) {
        float4 u[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) u[i] = four(a + (ty + 16 * i) * PITCH + d);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            float4 w = four(b + (d + e) * PITCH + 4 * tx);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float x = e == 0 ? u[i].x : e == 1 ? u[i].y : e == 2 ? u[i].z : u[i].w;
                out.x[i][0] = fmaf(x, w.x, out.x[i][0]);
                out.x[i][1] = fmaf(x, w.y, out.x[i][1]);
                out.x[i][2] = fmaf(x, w.z, out.x[i][2]);
                out.x[i][3] = fmaf(x, w.w, out.x[i][3]);
            }
        }
    }
}

// x[i][j] += Σ_d a[ty + 16i][d] · b[tx + 16j][d]
__device__ __forceinline__ void multiply_transposed(Block& out, const float* a, const float* b, int depth) {
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (int d = 0; d < depth; d += 4) {
        float4 u[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) u[i] = four(a + (ty + 16 * i) * PITCH + d);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float4 w = four(b + (tx + 16 * j) * PITCH + d);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                out.x[i][j] = fmaf(u[i].x, w.x, out.x[i][j]);
                out.x[i][j] = fmaf(u[i].y, w.y, out.x[i][j]);
                out.x[i][j] = fmaf(u[i].z, w.z, out.x[i][j]);
                out.x[i][j] = fmaf(u[i].w, w.w, out.x[i][j]);
            }
        }
    }
}

// x[i][j] += Σ_r a[r][4ty + i] · b[r][4tx + j]
__device__ __forceinline__ void multiply_columns(Block& out, const float* a, const float* b, int depth) {
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll 4
    for (int r = 0; r < depth; ++r) {
        float4 u = four(a + r * PITCH + 4 * ty), w = four(b + r * PITCH + 4 * tx);
        float x[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            out.x[i][0] = fmaf(x[i], w.x, out.x[i][0]);
            out.x[i][1] = fmaf(x[i], w.y, out.x[i][1]);
            out.x[i][2] = fmaf(x[i], w.z, out.x[i][2]);
            out.x[i][3] = fmaf(x[i], w.w, out.x[i][3]);
        }
    }
}

// A segment's Σ b cᵀ, and Σ b weighted by 1 (keys) or by c (queries). blockIdx.x: unit and segment; y: tile of the state.
template <Operand b_, Operand c_>
__device__ __forceinline__ void sum_segment(const Problem& p, float* states) {
    SHARED(float4, tile_b, TILE * PITCH / 4);
    SHARED(float4, tile_c, TILE * PITCH / 4);
    float *b_tile = reinterpret_cast<float*>(tile_b), *c_tile = reinterpret_cast<float*>(tile_c);
    constexpr bool queries = b_ == P;
    int segments = queries ? p.query_segments : p.key_segments, length = queries ? p.query_segment : p.key_segment;
    int unit = blockIdx.x / segments, segment = blockIdx.x % segments;
    int b = unit / p.kv_heads, kv_head = unit % p.kv_heads, group = p.heads / p.kv_heads;
    int across = (p.value_dim + TILE - 1) / TILE;
    int d0 = blockIdx.y / across * TILE, e0 = blockIdx.y % across * TILE;
    int limit = queries ? p.queries : key_length(p, b);
    int start = segment * length - (queries ? 0 : p.pad), end = min(start + length, limit);

    Block sum = {};
    float z = 0.f;
    int x = threadIdx.x % TILE, y = threadIdx.x / TILE;
    for (int member = 0; member < (queries ? group : 1); ++member) {
        int h = queries ? kv_head * group + member : kv_head;
        const float* shift = p.shift + ((long long)b * p.heads + h) * p.queries;
        for (int row = start; row < end; row += TILE) {
            int count = depth_of(end - row);
            load<b_>(b_tile, p, b, h, row, count, end, d0);
            load<c_>(c_tile, p, b, h, row, count, end, e0);
            __syncthreads();
            multiply_columns(sum, b_tile, c_tile, count);
            if (e0 == 0) {
                for (int r = y; r < count; r += THREADS / TILE)
                    z += b_tile[r * PITCH + x] * (queries ? (row + r < end ? shift[row + r] : 0.f) : 1.f);
            }
            __syncthreads();  // before the tiles are loaded anew
        }
    }
    float* state = states + (long long)blockIdx.x * state_len(p);
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int d = d0 + 4 * ty + i, e = e0 + 4 * tx + j;
            if (d < p.key_dim && e < p.value_dim) state[(long long)d * p.value_dim + e] = sum.x[i][j];
        }
    if (e0 == 0) {
        b_tile[threadIdx.x] = z;
        __syncthreads();
        if (y == 0 && d0 + x < p.key_dim) {
            float all = b_tile[x] + b_tile[TILE + x] + b_tile[2 * TILE + x] + b_tile[3 * TILE + x];
            state[(long long)p.key_dim * p.value_dim + d0 + x] = all;
        }
    }
}

KERNEL(linear_attention_sum_keys, THREADS)(Problem p, float* states) { sum_segment<K, V>(p, states); }
KERNEL(linear_attention_sum_queries, THREADS)(Problem p, float* states) { sum_segment<P, G>(p, states); }

// Sums of segments to running sums, in place; in `reverse` from the last segment on. Without a mask only the total is
// wanted, at the last one visited. One thread an element of a unit's state.
KERNEL(linear_attention_accumulate_segments, 256)(float* states, long long units, int segments, long long len, int reverse) {
    static constexpr int AHEAD = 8;
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= units * len) return;
    float* state = states + i / len * segments * len + i % len + (reverse ? (segments - 1) * len : 0);
    long long step = reverse ? -len : len;
    float sum = 0.f;
    for (int from = 0; from < segments; from += AHEAD) {
        float next[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) next[j] = from + j < segments ? state[(from + j) * step] : 0.f;
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) {
            sum += next[j];
            if (from + j < segments && (CAUSAL || from + j == segments - 1)) state[(from + j) * step] = sum;
        }
    }
}

// 64 rows of a·state + mask(a bᵀ) c: blockIdx.x is the head and the tile of rows, blockIdx.y the tile of columns.
template <Operand a_, Operand b_, Operand c_>
__device__ __forceinline__ void compute_rows(const Problem& p, View to, float* denominators, int accumulate) {
    SHARED(float4, tile_a, TILE * PITCH / 4);
    SHARED(float4, tile_b, TILE * PITCH / 4);
    float *a = reinterpret_cast<float*>(tile_a), *b = reinterpret_cast<float*>(tile_b);
    constexpr bool query_rows = a_ == Q || a_ == G, forward = a_ == Q, biased = a_ == G || a_ == V;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    int group = p.heads / p.kv_heads, offset = p.keys - p.queries;
    int rows = query_rows ? p.queries : p.keys, heads = query_rows ? p.heads : p.kv_heads;
    int tiles = (rows + (query_rows ? 0 : p.pad) + TILE - 1) / TILE;
    int head = blockIdx.x / tiles, batch = head / heads, row = blockIdx.x % tiles * TILE - (query_rows ? 0 : p.pad);
    head %= heads;
    int kv_head = query_rows ? head / group : head, length = key_length(p, batch);
    int column = blockIdx.y * TILE, inner = columns_of(p, a_), columns = columns_of(p, c_);
    int count = depth_of(rows - row), limit = query_rows ? rows : length;

    // The state that all rows of this tile share: keys of earlier segments, or queries of later ones.
    int state_index, first_query = query_rows ? row : row - offset;
    bool has_state = true;
    if (query_rows) {
        state_index = CAUSAL ? first_query / p.query_segment + p.first - 1 : p.key_segments - 1;
        has_state = state_index >= 0;
    } else {
        state_index = CAUSAL && first_query >= 0 ? first_query / p.query_segment + 1 : 0;
        has_state = state_index < p.query_segments;
    }
    int segments = query_rows ? p.key_segments : p.query_segments;
    const float* state = p.states + ((long long)(batch * p.kv_heads + kv_head) * segments + state_index) * state_len(p);
    const float* vector = state + (long long)p.key_dim * p.value_dim;

    Block out = {};
    float sum[4] = {};
    for (int y = 0; has_state && y < inner; y += TILE) {
        int depth = depth_of(inner - y);
        load<a_>(a, p, batch, head, row, count, limit, y);
        load_state<a_, c_>(b, p, state, y, column);
        __syncthreads();
        multiply(out, a, b, depth);
        if (forward) {
            for (int d = tx; d < min(depth, inner - y); d += 16) {
#pragma unroll
                for (int i = 0; i < 4; ++i) sum[i] = fmaf(a[(ty + 16 * i) * PITCH + d], vector[y + d], sum[i]);
            }
        }
        __syncthreads();  // before the tiles are loaded anew
    }
#if CAUSAL
    const float* shift = p.shift + (long long)batch * p.heads * p.queries;
    int start = first_query, end = first_query + 1;  // queries of this segment that meet these rows
    if (query_rows) start -= first_query % p.query_segment;
    else end = min(p.queries, first_query - first_query % p.query_segment + p.query_segment);
    int other_limit = query_rows ? length : p.queries;
    for (int member = 0; first_query >= 0 && member < (query_rows ? 1 : group); ++member) {
        int other_head = query_rows ? kv_head : kv_head * group + member;
        for (int query = start; query < end; query += TILE) {
            int other = query_rows ? query + offset : query;
            if (other + TILE <= 0 || other >= other_limit) continue;
            int other_count = depth_of(other_limit - other);
            Block weights = {};
            for (int y = 0; y < inner; y += TILE) {
                load<a_>(a, p, batch, head, row, count, limit, y);
                load<b_>(b, p, batch, other_head, other, other_count, other_limit, y);
                __syncthreads();
                multiply_transposed(weights, a, b, depth_of(inner - y));
                __syncthreads();  // before the tiles are loaded anew
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    int mine = row + ty + 16 * i, theirs = other + tx + 16 * j;
                    int t = query_rows ? mine : theirs, s = query_rows ? theirs : mine;
                    bool seen = t < p.queries && s >= 0 && s < length && s <= t + offset;
                    float w = weights.x[i][j];
                    if (biased && seen) w += shift[(query_rows ? head : other_head) * (long long)p.queries + t];
                    w = seen ? w : 0.f;
                    if (forward) sum[i] += w;
                    a[(ty + 16 * i) * PITCH + tx + 16 * j] = w;
                }
            load<c_>(b, p, batch, other_head, other, other_count, other_limit, column);
            __syncthreads();
            multiply(out, a, b, other_count);
            __syncthreads();  // before the tiles are loaded anew
        }
    }
#endif
    // Rows of `sum` are spread over the 16 threads of a row.
    if (forward) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int lanes = 8; lanes > 0; lanes >>= 1) sum[i] += __shfl_xor_sync(FULL_WARP, sum[i], lanes);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int t = row + ty + 16 * i;
        if (t < 0 || t >= rows) continue;
        long long query = ((long long)batch * p.heads + head) * p.queries + t;
        if (forward && column == 0 && tx == 0) denominators[query] = sum[i];
        float* row_to = to.at(batch, head, t);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int x = column + 4 * tx + j;
            if (x >= columns) continue;
            float value = out.x[i][j];
            if (forward) value = sum[i] == 0.f ? 0.f : value / sum[i];
            if (biased) {
                const View& input = query_rows ? p.q : p.k;
                if (has_state) value += vector[x] * (query_rows ? p.shift[query] : 1.f);
                if (query_rows) value *= p.inverse[query];
                value = query_rows || t < length ? value * slope(feature(input.at(batch, head, t)[x])) : 0.f;
            }
            row_to[x] = accumulate ? row_to[x] + value : value;
        }
    }
}

KERNEL(linear_attention_forward, THREADS)(Problem p, View out, float* denominators) { compute_rows<Q, K, V>(p, out, denominators, 0); }
KERNEL(linear_attention_backward_q, THREADS)(Problem p, View dq, int accumulate) { compute_rows<G, V, K>(p, dq, nullptr, accumulate); }
KERNEL(linear_attention_backward_k, THREADS)(Problem p, View dk, int accumulate) { compute_rows<V, G, P>(p, dk, nullptr, accumulate); }
KERNEL(linear_attention_backward_v, THREADS)(Problem p, View dv, int accumulate) { compute_rows<K, P, G>(p, dv, nullptr, accumulate); }

// 1/d and c = −dout·out of every query: a warp each.
KERNEL(linear_attention_prepare_queries, 256)(Problem p, View out, const float* denominators, float* inverse, float* shift, long long n) {
    long long query = blockIdx.x * 8ll + threadIdx.x / 32;
    if (query >= n) return;
    int t = query % p.queries, h = query / p.queries % p.heads, b = query / p.queries / p.heads;
    const float *x = out.at(b, h, t), *y = p.d_out.at(b, h, t);
    float sum = 0.f;
    for (int e = threadIdx.x % 32; e < p.value_dim; e += 32) sum = fmaf(x[e], y[e], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) {
        float d = denominators[query];
        inverse[query] = d == 0.f ? 0.f : 1.f / d;
        shift[query] = -sum;
    }
}
