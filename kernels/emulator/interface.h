// What kernels and the runtime share. Nothing is included from the standard library: a validation run
// compiles a hundred modules, and <cmath> alone would double the time of each.
#pragma once

typedef __UINT8_TYPE__ uint8_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __UINT64_TYPE__ uint64_t;
typedef __INT8_TYPE__ int8_t;
typedef __INT16_TYPE__ int16_t;
typedef __INT32_TYPE__ int32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef __SIZE_TYPE__ size_t;

struct dim3 {
    unsigned x, y, z;
};

namespace emulator {

// A shared array's declaration: one for each place in the source and each instance of a template.
struct SharedArray {
    size_t bytes, alignment;
    const char *name, *file;
    int line;
    unsigned index;  // 0 until the first thread reaches it
};

// Where a block keeps a shared array.
struct SharedPlace {
    uint64_t block;  // the block that it was allocated for: stale where it is not Context::block
    void* address;
};

// What the running CUDA thread can read without a call. One for each OS thread; fibers never migrate.
struct Context {
    dim3 thread_index, block_index, block_size, grid_size;
    unsigned lane;
    unsigned places_count;
    SharedPlace* places;
    uint64_t block;
    void* dynamic_shared;
    struct Worker* worker;
};

// The values that the lanes of a warp brought to a collective.
struct Exchange {
    uint64_t values[32];
    unsigned mask;     // the lanes that took part
    unsigned nonzero;  // those whose value is not 0
};

enum Kind : int {
    SYNCTHREADS, SYNCTHREADS_OR, SYNCTHREADS_AND, SYNCTHREADS_COUNT,
    SYNCWARP, SHFL, SHFL_XOR, SHFL_UP, SHFL_DOWN, BALLOT, ANY, ALL,
    // From here on `.aligned`: the whole warp, at one place. The last three compute.
    LDMATRIX_X4, LDMATRIX_X4_TRANSPOSED, LDMATRIX_X2, LDMATRIX_X2_TRANSPOSED, MMA_F16, MMA_BF16, MMA_TF32,
};

// An entry point as the driver finds it by name.
struct Entry {
    void (*run)(void* const* arguments);
    const char* name;
    unsigned threads;    // __launch_bounds__
    unsigned arguments;  // how many, and the bytes of each
    const unsigned* sizes;
};

}  // namespace emulator

extern "C" {
extern __thread emulator::Context emulator_context __attribute__((tls_model("initial-exec")));
void* emulator_shared(emulator::SharedArray* array);
[[noreturn]] void emulator_fault(const char* problem, const char* file, int line);
int emulator_barrier(emulator::Kind kind, int predicate, const char* file, int line);
const emulator::Exchange* emulator_exchange(emulator::Kind kind, unsigned mask, uint64_t value, const char* file,
                                            int line);
const emulator::Exchange* emulator_ldmatrix(emulator::Kind kind, const void* row, const char* file, int line);
void emulator_mma(emulator::Kind kind, float* d, const uint32_t* a, const uint32_t* b, const char* file, int line);
void emulator_copy(void* shared, const void* global, unsigned bytes, bool valid, const char* file, int line);
void emulator_copy_commit();
void emulator_copy_wait(int pending);
void emulator_fence();
void emulator_signal(unsigned* counter, const char* file, int line);
void emulator_await(const unsigned* counter, unsigned goal, const char* file, int line);
}
