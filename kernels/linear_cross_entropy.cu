// loss = mean over the targets that count of lse(h·Wᵀ) − (h·Wᵀ)[target], the logits h·Wᵀ never in memory.
//
//   forward   x = h·Wᵀ a tile at a time; of each row the largest so far and Σ e^(x − largest), rescaled when it grows.
//   backward  g = (e^(x − lse) − onehot(target))·dloss/count with x computed again; dh = g·W; dW = gᵀ·h.
//
// Where rows alone do not fill a GPU, the classes are split among blocks (for dW the rows), and what they leave is added
// in order by a second kernel. Defines: HIDDEN_COLUMNS is how many of the output's columns a block makes; TENSOR_CORES chooses
// the products of tiles_mma.cuh, with FORWARD and BACKWARD its tiles, or of tiles_f32.cuh.
#include "mean_loss.cuh"
#include "numbers.cuh"
#if TENSOR_CORES
#include "tiles_mma.cuh"
typedef Tiles<FORWARD> Forward;
typedef Tiles<BACKWARD> Backward;
#else
#include "tiles_f32.cuh"
typedef Tiles Forward, Backward;
#endif

static constexpr float LOG2_E = 1.4426950408889634f;
// Finite, so that logits of −∞ alone give 0 as a sum and no NaN.
static constexpr float LOWEST = -3e38f;
// Probabilities of a large vocabulary lie below what f16 holds well: they are multiplied as products of this.
static constexpr float LIFT = 4096.f;

__device__ __forceinline__ float exponential(float x) { return exp2_approx(x * LOG2_E); }

// Mirrors `Problem` in src/ops/linear_cross_entropy/gpu.rs.
struct Problem {
    const real *hidden, *weight;
    const int* targets;
    long long rows;
    int classes, columns, ignore;
    int splits;  // of the classes, or for dW of the rows
    int part;    // classes or rows of a split, whole tiles
};

__device__ __forceinline__ Matrix hidden(const Problem& p) { return {p.hidden, p.columns, (int)p.rows, p.columns}; }
__device__ __forceinline__ Matrix weight(const Problem& p) { return {p.weight, p.columns, p.classes, p.columns}; }

// The row's target; −1 where it does not count.
__device__ __forceinline__ int target(const Problem& p, long long row) {
    if (row >= p.rows || p.targets[row] == p.ignore) return -1;
    return p.targets[row];
}

// partial (3, splits, rows) ← the largest logit, Σ e^(logit − largest), the target's logit or 0.
KERNEL(linear_cross_entropy_forward, Forward::THREADS)(Problem p, float* partial) {
    typedef Forward T;
    DYNAMIC_SHARED(char, memory);
    int tiles = (int)((p.rows + T::M - 1) / T::M), row0 = blockIdx.x % tiles * T::M, split = blockIdx.x / tiles;
    int begin = split * p.part, end = min(begin + p.part, p.classes);
    Rows<HIDDEN_COLUMNS> rows(memory, T::M), classes(memory, T::N);
    float largest[T::ROWS], sum[T::ROWS] = {}, own[T::ROWS] = {};
    int targets[T::ROWS];
#pragma unroll
    for (int i = 0; i < T::ROWS; ++i) {
        largest[i] = LOWEST;
        targets[i] = target(p, row0 + T::row(i));
    }
    T::load<T::M>(rows, hidden(p), row0);
    for (int c0 = begin; c0 < end; c0 += T::N) {
        T::load<T::N>(classes, weight(p), c0);
        T::arrived<0>();
        float x[T::ROWS][T::COLUMNS];
        T::scores(x, rows, classes);
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            float high = LOWEST;
#pragma unroll
            for (int j = 0; j < T::COLUMNS; ++j)
                if (c0 + T::column(j) < end) high = fmaxf(high, x[i][j]);
            // The same for all threads of a row, so that each can keep a sum of its own.
            high = fmaxf(T::row_max(high), largest[i]);
            sum[i] *= exponential(largest[i] - high);
            largest[i] = high;
#pragma unroll
            for (int j = 0; j < T::COLUMNS; ++j) {
                int c = c0 + T::column(j);
                if (c < end) sum[i] += exponential(x[i][j] - high);
                if (c == targets[i]) own[i] = x[i][j];
            }
        }
        T::finished();
    }
#pragma unroll
    for (int i = 0; i < T::ROWS; ++i) {
        long long row = row0 + T::row(i), all = p.splits * p.rows, at = split * p.rows + row;
        float total = T::row_sum(sum[i]), logit = T::row_sum(own[i]);
        if (T::column(0) != 0 || row >= p.rows) continue;
        partial[at] = largest[i];
        partial[all + at] = total;
        partial[2 * all + at] = logit;
    }
}

// lse and loss of each row.
KERNEL(linear_cross_entropy_combine, 256)(Problem p, const float* partial, float* lse, float* token_losses) {
    long long row = blockIdx.x * 256ll + threadIdx.x, all = p.splits * p.rows;
    if (row >= p.rows) return;
    float high = LOWEST, sum = 0.f, own = 0.f;
    for (int s = 0; s < p.splits; ++s) high = fmaxf(high, partial[s * p.rows + row]);
    for (int s = 0; s < p.splits; ++s) {
        long long at = s * p.rows + row;
        sum += partial[all + at] * exponential(partial[at] - high);
        own += partial[2 * all + at];
    }
    float l = high + logf(sum);
    lse[row] = l;
    token_losses[row] = target(p, row) < 0 ? 0.f : l - own;
}

KERNEL(linear_cross_entropy_mean, 256)
(const float* token_losses, const int* targets, long long rows, int ignore, float* loss, float* count) {
    mean_loss(token_losses, targets, rows, ignore, loss, count);
}

// Where a block's sums go: to the gradient itself, or with several splits to its own part of `partial` (splits, n).
template <class S> struct Sums {
    S* to;
    float* partial;
    long long n;
    int accumulate;
    __device__ __forceinline__ void put(long long at, int split, int splits, float sum, float scale) const {
        if (splits > 1) partial[split * n + at] = sum;
        else to[at] = narrow<S>((accumulate ? widen(to[at]) : 0.f) + sum * scale);
    }
};

// dh = g·W.
KERNEL(linear_cross_entropy_d_hidden, Backward::THREADS)
(Problem p, const float* lse, const float* count, const float* d_loss, real* d_hidden, int accumulate, float* partial) {
    typedef Backward T;
    DYNAMIC_SHARED(char, memory);
    int tiles = (int)((p.rows + T::M - 1) / T::M), row0 = blockIdx.x % tiles * T::M, split = blockIdx.x / tiles;
    int begin = split * p.part, end = min(begin + p.part, p.classes);
    Rows<HIDDEN_COLUMNS> rows(memory, T::M), classes(memory, T::N);
    float sum[T::ROWS][T::width(HIDDEN_COLUMNS)] = {}, base[T::ROWS];
    int targets[T::ROWS];
#pragma unroll
    for (int i = 0; i < T::ROWS; ++i) {
        targets[i] = target(p, row0 + T::row(i));
        base[i] = targets[i] < 0 ? 0.f : lse[row0 + T::row(i)];
    }
    T::load<T::M>(rows, hidden(p), row0);
    for (int c0 = begin; c0 < end; c0 += T::N) {
        T::load<T::N>(classes, weight(p), c0);
        T::arrived<0>();
        float x[T::ROWS][T::COLUMNS];
        T::scores(x, rows, classes);
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i)
#pragma unroll
            for (int j = 0; j < T::COLUMNS; ++j) {
                int c = c0 + T::column(j);
                bool counts = targets[i] >= 0 && c < end;
                x[i][j] = counts ? LIFT * (exponential(x[i][j] - base[i]) - (c == targets[i] ? 1.f : 0.f)) : 0.f;
            }
        T::apply(sum, x, classes);
        T::finished();
    }
    Sums<real> to = {d_hidden, partial, p.rows * p.columns, accumulate};
    float scale = *d_loss / *count / LIFT;
#pragma unroll
    for (int i = 0; i < T::ROWS; ++i)
#pragma unroll
        for (int j = 0; j < T::width(HIDDEN_COLUMNS); ++j) {
            long long row = row0 + T::row(i);
            int c = T::output_column<HIDDEN_COLUMNS>(j);
            if (row >= p.rows || c >= p.columns) continue;
            // Without a target that counts the scale is no number.
            bool counts = targets[i] >= 0;
            to.put(row * p.columns + c, split, p.splits, counts ? sum[i][j] : 0.f, counts ? scale : 0.f);
        }
}

// dW = gᵀ·h.
KERNEL(linear_cross_entropy_d_weight, Backward::THREADS)
(Problem p, const float* lse, const float* count, const float* d_loss, float* d_weight, int accumulate, float* partial) {
    typedef Backward T;
    DYNAMIC_SHARED(char, memory);
    int tiles = (p.classes + T::M - 1) / T::M, first = blockIdx.x % tiles * T::M, split = blockIdx.x / tiles;
    long long begin = (long long)split * p.part, end = begin + p.part < p.rows ? begin + p.part : p.rows;
    Rows<HIDDEN_COLUMNS> classes(memory, T::M), rows(memory, T::N);
    float sum[T::ROWS][T::width(HIDDEN_COLUMNS)] = {};
    T::load<T::M>(classes, weight(p), first);
    for (long long row0 = begin; row0 < end; row0 += T::N) {
        T::load<T::N>(rows, hidden(p), (int)row0);
        T::arrived<0>();
        float x[T::ROWS][T::COLUMNS];
        T::scores(x, classes, rows);
#pragma unroll
        for (int j = 0; j < T::COLUMNS; ++j) {
            long long row = row0 + T::column(j);
            int own = row < end ? target(p, row) : -1;
            float base = own < 0 ? 0.f : lse[row];
#pragma unroll
            for (int i = 0; i < T::ROWS; ++i) {
                int c = first + T::row(i);
                bool counts = own >= 0 && c < p.classes;
                x[i][j] = counts ? LIFT * (exponential(x[i][j] - base) - (c == own ? 1.f : 0.f)) : 0.f;
            }
        }
        T::apply(sum, x, rows);
        T::finished();
    }
    Sums<f32> to = {d_weight, partial, (long long)p.classes * p.columns, accumulate};
    float scale = *count > 0.f ? *d_loss / *count / LIFT : 0.f;
#pragma unroll
    for (int i = 0; i < T::ROWS; ++i)
#pragma unroll
        for (int j = 0; j < T::width(HIDDEN_COLUMNS); ++j) {
            int row = first + T::row(i), c = T::output_column<HIDDEN_COLUMNS>(j);
            if (row >= p.classes || c >= p.columns) continue;
            to.put((long long)row * p.columns + c, split, p.splits, sum[i][j], scale);
        }
}

// Adds up what the splits left.
template <class S>
__device__ __forceinline__ void add_splits(const Problem& p, const float* partial, long long n, const float* count,
                                           const float* d_loss, S* to, int accumulate) {
    long long at = blockIdx.x * 256ll + threadIdx.x;
    if (at >= n) return;
    float sum = 0.f, scale = *count > 0.f ? *d_loss / *count / LIFT : 0.f;
    for (int s = 0; s < p.splits; ++s) sum += partial[s * n + at];
    Sums<S>{to, nullptr, n, accumulate}.put(at, 0, 1, sum, scale);
}
KERNEL(linear_cross_entropy_add_hidden, 256)
(Problem p, const float* partial, const float* count, const float* d_loss, real* d_hidden, int accumulate) {
    add_splits<real>(p, partial, p.rows * p.columns, count, d_loss, d_hidden, accumulate);
}
KERNEL(linear_cross_entropy_add_weight, 256)
(Problem p, const float* partial, const float* count, const float* d_loss, float* d_weight, int accumulate) {
    add_splits<f32>(p, partial, (long long)p.classes * p.columns, count, d_loss, d_weight, accumulate);
}
