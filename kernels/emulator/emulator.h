// CUDA's execution model on a CPU: what a kernel sees. Included by prelude.cuh where EMULATOR is defined.
// The other side, which schedules the threads, is runtime.cpp; interface.h is all that the two share.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ _Pragma("GCC error \"declare shared memory with SHARED or DYNAMIC_SHARED, see prelude.cuh\"")

// --- Vector types -------------------------------------------------------------------------------

#define EMULATOR_VECTOR(scalar, name, alignment)                                                             \
    struct alignas(alignment / 2) name##2 { scalar x, y; };                                                  \
    struct name##3 { scalar x, y, z; };                                                                      \
    struct alignas(alignment) name##4 { scalar x, y, z, w; };                                                \
    static inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                              \
    static inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }                 \
    static inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
EMULATOR_VECTOR(char, char, 4)
EMULATOR_VECTOR(unsigned char, uchar, 4)
EMULATOR_VECTOR(short, short, 8)
EMULATOR_VECTOR(unsigned short, ushort, 8)
EMULATOR_VECTOR(int, int, 16)
EMULATOR_VECTOR(unsigned, uint, 16)
EMULATOR_VECTOR(float, float, 16)
#undef EMULATOR_VECTOR
struct alignas(16) double2 { double x, y; };
struct alignas(16) longlong2 { long long x, y; };
static inline double2 make_double2(double x, double y) { return {x, y}; }
static inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }

#include "interface.h"

#define threadIdx (emulator_context.thread_index)
#define blockIdx (emulator_context.block_index)
#define blockDim (emulator_context.block_size)
#define gridDim (emulator_context.grid_size)
#define warpSize 32

// The place in the kernel's source that called: for reports.
#define EMULATOR_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

#ifdef __x86_64__
#define EMULATOR_FLOAT_REGISTER "x"
#else
#define EMULATOR_FLOAT_REGISTER "w"
#endif
#include "cuda_math.h"

// --- Entries ------------------------------------------------------------------------------------

#define KERNEL(name, threads)                              \
    enum { emulator_threads_of_##name = (threads) };       \
    static void name

namespace emulator {
template <unsigned... I> struct Indices {};
template <unsigned N, unsigned... I> struct Count : Count<N - 1, N - 1, I...> {};
template <unsigned... I> struct Count<0, I...> {
    typedef Indices<I...> type;
};
template <class F> struct Trampoline;
template <class... A> struct Trampoline<void (*)(A...)> {
    static constexpr unsigned count = sizeof...(A);
    static constexpr unsigned sizes[] = {sizeof(A)..., 0};
    template <void (*function)(A...), unsigned... I>
    static __forceinline__ void call(void* const* arguments, Indices<I...>) {
        function(*static_cast<A*>(arguments[I])...);
    }
    template <void (*function)(A...)> static void run(void* const* arguments) {
        call<function>(arguments, typename Count<sizeof...(A)>::type());
    }
};
}  // namespace emulator

// Written after the kernel's source, once for each entry.
#define EMULATOR_ENTRY(name)                                                                                \
    extern "C" __attribute__((visibility("default"))) const emulator::Entry emulator_entry_##name = {      \
        emulator::Trampoline<decltype(&name)>::run<&name>, #name, emulator_threads_of_##name,               \
        emulator::Trampoline<decltype(&name)>::count, emulator::Trampoline<decltype(&name)>::sizes};

// --- Shared memory ------------------------------------------------------------------------------

#define SHARED(type, name, count)                                                                           \
    static emulator::SharedArray name##_array = {sizeof(type) * (count), alignof(type), #name, __FILE__, __LINE__, 0}; \
    type(&name)[count] = *static_cast<type(*)[count]>(emulator::shared(name##_array))
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(emulator::dynamic_shared(__FILE__, __LINE__))

namespace emulator {
static __forceinline__ void* shared(SharedArray& array) {
    const Context& c = emulator_context;
    unsigned i = array.index;
    if (i < c.places_count && c.places[i].block == c.block) return c.places[i].address;
    return emulator_shared(&array);
}
static __forceinline__ void* dynamic_shared(const char* file, int line) {
    void* address = emulator_context.dynamic_shared;
    if (!address) emulator_fault("uses dynamic shared memory, but the launch gives none", file, line);
    return address;
}
}  // namespace emulator

// --- Barriers, collectives, fences --------------------------------------------------------------

static __forceinline__ void __syncthreads(EMULATOR_PLACE) { emulator_barrier(emulator::SYNCTHREADS, 0, file, line); }
static __forceinline__ int __syncthreads_or(int p, EMULATOR_PLACE) {
    return emulator_barrier(emulator::SYNCTHREADS_OR, p, file, line);
}
static __forceinline__ int __syncthreads_and(int p, EMULATOR_PLACE) {
    return emulator_barrier(emulator::SYNCTHREADS_AND, p, file, line);
}
static __forceinline__ int __syncthreads_count(int p, EMULATOR_PLACE) {
    return emulator_barrier(emulator::SYNCTHREADS_COUNT, p, file, line);
}
static __forceinline__ void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_PLACE) {
    emulator_exchange(emulator::SYNCWARP, mask, 0, file, line);
}
static __forceinline__ void __threadfence() { emulator_fence(); }
static __forceinline__ void __threadfence_block() { emulator_fence(); }
static __forceinline__ void __trap(EMULATOR_PLACE) { emulator_fault("trap", file, line); }

namespace emulator {
template <class T> static __forceinline__ uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    return bits;
}
// What lane `source` brought; bytes of 0xff where it took no part, which CUDA leaves undefined.
template <class T> static __forceinline__ T from_lane(const Exchange* exchange, int source) {
    uint64_t bits = exchange->mask >> source & 1 ? exchange->values[source] : ~0ull;
    T value;
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}
}  // namespace emulator

template <class T>
static __forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_PLACE) {
    auto all = emulator_exchange(emulator::SHFL, mask, emulator::to_bits(value), file, line);
    int lane = emulator_context.lane;
    return emulator::from_lane<T>(all, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
static __forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATOR_PLACE) {
    auto all = emulator_exchange(emulator::SHFL_XOR, mask, emulator::to_bits(value), file, line);
    int lane = emulator_context.lane, source = lane ^ lanes;
    return source > (lane | (width - 1)) ? value : emulator::from_lane<T>(all, source);
}
template <class T>
static __forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_PLACE) {
    auto all = emulator_exchange(emulator::SHFL_UP, mask, emulator::to_bits(value), file, line);
    int lane = emulator_context.lane, source = lane - (int)delta;
    return source < (lane & ~(width - 1)) ? value : emulator::from_lane<T>(all, source);
}
template <class T>
static __forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_PLACE) {
    auto all = emulator_exchange(emulator::SHFL_DOWN, mask, emulator::to_bits(value), file, line);
    int lane = emulator_context.lane, source = lane + (int)delta;
    return source > (lane | (width - 1)) ? value : emulator::from_lane<T>(all, source);
}
static __forceinline__ unsigned __ballot_sync(unsigned mask, int p, EMULATOR_PLACE) {
    return emulator_exchange(emulator::BALLOT, mask, p != 0, file, line)->nonzero;
}
static __forceinline__ int __any_sync(unsigned mask, int p, EMULATOR_PLACE) {
    return emulator_exchange(emulator::ANY, mask, p != 0, file, line)->nonzero != 0;
}
static __forceinline__ int __all_sync(unsigned mask, int p, EMULATOR_PLACE) {
    auto all = emulator_exchange(emulator::ALL, mask, p != 0, file, line);
    return all->nonzero == all->mask;
}

// --- Memory -------------------------------------------------------------------------------------

template <class T> static __forceinline__ T __ldg(const T* address) { return *address; }
template <class T> static __forceinline__ T __ldcg(const T* address) { return *address; }
template <class T> static __forceinline__ T __ldcs(const T* address) { return *address; }
template <class T> static __forceinline__ void __stcg(T* address, T value) { *address = value; }
template <class T> static __forceinline__ void __stcs(T* address, T value) { *address = value; }

// Relaxed, as CUDA's are. Floats go through compare-and-swap.
namespace emulator {
template <class T> struct Same { typedef T type; };
template <class T, class Bits, class F> static __forceinline__ T update(T* address, F change) {
    Bits* bits = reinterpret_cast<Bits*>(address);
    Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
    for (;;) {
        T before, after;
        __builtin_memcpy(&before, &old, sizeof(T));
        after = change(before);
        Bits wanted;
        __builtin_memcpy(&wanted, &after, sizeof(T));
        if (__atomic_compare_exchange_n(bits, &old, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return before;
    }
}
}  // namespace emulator
template <class T> static __forceinline__ T atomicAdd(T* address, typename emulator::Same<T>::type value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
static __forceinline__ float atomicAdd(float* address, float value) {
    return emulator::update<float, uint32_t>(address, [=](float old) { return old + value; });
}
static __forceinline__ double atomicAdd(double* address, double value) {
    return emulator::update<double, uint64_t>(address, [=](double old) { return old + value; });
}
template <class T> static __forceinline__ T atomicMax(T* address, typename emulator::Same<T>::type value) {
    return emulator::update<T, T>(address, [=](T old) { return old > value ? old : value; });
}
template <class T> static __forceinline__ T atomicMin(T* address, typename emulator::Same<T>::type value) {
    return emulator::update<T, T>(address, [=](T old) { return old < value ? old : value; });
}
template <class T> static __forceinline__ T atomicOr(T* address, typename emulator::Same<T>::type value) {
    return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
template <class T> static __forceinline__ T atomicAnd(T* address, typename emulator::Same<T>::type value) {
    return __atomic_fetch_and(address, value, __ATOMIC_RELAXED);
}
template <class T> static __forceinline__ T atomicExch(T* address, typename emulator::Same<T>::type value) {
    T old;
    __atomic_exchange(address, &value, &old, __ATOMIC_RELAXED);
    return old;
}
template <class T>
static __forceinline__ T atomicCAS(T* address, typename emulator::Same<T>::type compare,
                                   typename emulator::Same<T>::type value) {
    __atomic_compare_exchange_n(address, &compare, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return compare;
}

// --- The prelude's primitives -------------------------------------------------------------------

// The copy itself happens in the runtime, at some time between here and the wait; the accesses
// are shown to AddressSanitizer here, where the kernel's line is known.
static __forceinline__ void emulator_copy_checked(void* shared, const void* global, unsigned bytes, bool valid,
                                                  const char* file, int line) {
#ifdef EMULATOR_ADDRESS
    volatile char* to = static_cast<volatile char*>(shared);
    to[0] = to[bytes - 1] = 0;
    if (valid) {
        const volatile char* from = static_cast<const volatile char*>(global);
        (void)from[0], (void)from[bytes - 1];
    }
#endif
    emulator_copy(shared, global, bytes, valid, file, line);
}
static __forceinline__ void cp_async_16(void* shared, const void* global, bool valid, EMULATOR_PLACE) {
    emulator_copy_checked(shared, global, 16, valid, file, line);
}
static __forceinline__ void cp_async_4(void* shared, const void* global, bool valid, EMULATOR_PLACE) {
    emulator_copy_checked(shared, global, 4, valid, file, line);
}
static __forceinline__ void cp_async_commit() { emulator_copy_commit(); }
template <int PENDING> static __forceinline__ void cp_async_wait() { emulator_copy_wait(PENDING); }

// Blocks that wait for each other: one thread counts, or looks until it has been counted, as the PTX does.
static __forceinline__ void signal(unsigned* counter, EMULATOR_PLACE) {
    __syncthreads(file, line);
    if (threadIdx.x + threadIdx.y + threadIdx.z == 0) emulator_signal(counter, file, line);
}
static __forceinline__ void await(const unsigned* counter, unsigned goal, EMULATOR_PLACE) {
    if (threadIdx.x + threadIdx.y + threadIdx.z == 0) emulator_await(counter, goal, file, line);
    __syncthreads(file, line);
}
