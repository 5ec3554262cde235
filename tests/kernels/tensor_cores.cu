// One entry for each primitive of numbers.cuh and mma.cuh, with plain inputs and outputs: run on the emulator and on
// a GPU. A warp a block; the products and loads of block i are case i.
#include "mma.cuh"

// --- Numbers: STORAGE is f16 or bf16 ------------------------------------------------------------

KERNEL(widen_all, 256)(const real* in, float* out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) out[i] = widen(in[i]);
}

KERNEL(narrow_all, 256)(const float* in, real* out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) out[i] = narrow<real>(in[i]);
}

// Two numbers a thread.
KERNEL(pack_all, 256)(const float* in, uint32_t* out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) out[i] = pack<real>(in[2 * i], in[2 * i + 1]);
}

KERNEL(to_tf32_all, 256)(const float* in, uint32_t* out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) out[i] = to_tf32(in[i]);
}

KERNEL(f32_is_itself, 256)(const float* in, float* out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) out[i] = narrow<f32>(widen(in[i]));
}

// --- Products: of each lane 4 registers of A, 2 of B, 4 of D ------------------------------------

struct Lane {
    uint32_t a[4], b[2];
    float d[4];
};

__device__ __forceinline__ Lane take(const uint32_t* a, const uint32_t* b, const float* d) {
    Lane lane;
    int i = blockIdx.x * 32 + threadIdx.x;
    for (int r = 0; r < 4; ++r) lane.a[r] = a[4 * i + r], lane.d[r] = d[4 * i + r];
    for (int r = 0; r < 2; ++r) lane.b[r] = b[2 * i + r];
    return lane;
}
__device__ __forceinline__ void give(const Lane& lane, float* d) {
    for (int r = 0; r < 4; ++r) d[4 * (blockIdx.x * 32 + threadIdx.x) + r] = lane.d[r];
}

KERNEL(mma_16, 32)(const uint32_t* a, const uint32_t* b, float* d) {
    Lane lane = take(a, b, d);
    mma_16x8x16<real>(lane.d, lane.a, lane.b);
    give(lane, d);
}

KERNEL(mma_tf32, 32)(const uint32_t* a, const uint32_t* b, float* d) {
    Lane lane = take(a, b, d);
    mma_16x8x8_tf32(lane.d, lane.a, lane.b);
    give(lane, d);
}

// --- Loads: 32 rows of 16 bytes; lane l asks for row order[l] -----------------------------------

#define LOAD(name, load, registers)                                                              \
    KERNEL(name, 32)(const uint32_t* in, const int* order, uint32_t* out) {                      \
        SHARED(uint32_t, rows, 128);                                                             \
        int lane = threadIdx.x;                                                                  \
        for (int i = 0; i < 4; ++i) rows[4 * lane + i] = in[128 * blockIdx.x + 4 * lane + i];    \
        __syncthreads();                                                                         \
        uint32_t r[registers];                                                                   \
        load(r, rows + 4 * order[lane]);                                                         \
        for (int i = 0; i < registers; ++i) out[(blockIdx.x * 32 + lane) * registers + i] = r[i]; \
    }
LOAD(load_x4, ldmatrix_x4, 4)
LOAD(load_x4_transposed, ldmatrix_x4_transposed, 4)
LOAD(load_x2, ldmatrix_x2, 2)
LOAD(load_x2_transposed, ldmatrix_x2_transposed, 2)

// --- Mistakes, for the emulator only ------------------------------------------------------------

KERNEL(row_not_aligned, 32)(uint32_t* out) {
    SHARED(uint32_t, rows, 128);
    uint32_t r[2];
    ldmatrix_x2(r, rows + threadIdx.x % 8);  // here: row_not_aligned
    out[threadIdx.x] = r[0] + r[1];
}

KERNEL(row_not_shared, 32)(uint32_t* out) {
    uint32_t r[2];
    ldmatrix_x2(r, out);  // here: row_not_shared
    out[threadIdx.x] = r[0] + r[1];
}

KERNEL(different_products, 64)(float* out) {
    float d[4] = {};
    uint32_t a[4] = {}, b[2] = {};
    if (threadIdx.x % 2) {
        mma_16x8x8_tf32(d, a, b);  // here: different_products, one
    } else {
        mma_16x8x8_tf32(d, a, b);  // here: different_products, other
    }
    out[threadIdx.x] = d[0];
}
