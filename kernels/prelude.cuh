// What every kernel stands on: names for CUDA's own vocabulary, and the primitives in inline PTX.
// Each primitive has two bodies, PTX and what the emulator does (kernels/emulator/); nothing else in
// kernels/ may hold `asm`. Rules for kernels, which the emulator relies on:
//   - entries are declared with KERNEL(name, threads), shared memory with SHARED or DYNAMIC_SHARED;
//   - offsets into tensors are `long long`; sizes along one axis are `int`;
//   - blockIdx.x carries what may exceed 65,535.
#pragma once

#ifdef EMULATOR
#include "emulator.h"
#else

typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;

// One block a multiprocessor must fit: with a smaller register budget ptxas would rather spill.
#define KERNEL(name, threads) extern "C" __global__ void __launch_bounds__(threads, 1) name
// Aligned for the 16-byte copies, which an array of floats is not by itself.
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(128) unsigned char name##_bytes[]; \
    type* name = reinterpret_cast<type*>(name##_bytes)

#define INFINITY __int_as_float(0x7f800000)

// Asynchronous copy of 16 bytes, global to shared, both 16-byte aligned; where `valid` is false, zeros
// are written and nothing is read (PTX ISA, cp.async, src-size 0). Before sm_80: a plain copy.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
#else
    *reinterpret_cast<float4*>(shared) =
        valid ? *reinterpret_cast<const float4*>(global) : make_float4(0.f, 0.f, 0.f, 0.f);
#endif
}

// The same for 4 bytes, for rows whose start or length is no multiple of 16 bytes.
__device__ __forceinline__ void cp_async_4(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global), "r"(valid ? 4 : 0)
                 : "memory");
#else
    *reinterpret_cast<float*>(shared) = valid ? *reinterpret_cast<const float*>(global) : 0.f;
#endif
}

// Closes the group of copies issued so far by this thread.
__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most PENDING groups of this thread are under way; other threads' copies need a barrier after it.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// 2^x in one instruction: relative error 2^-22, 2^-inf = 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// How blocks of a cooperative launch (all run at once) wait for each other. Every thread of the block calls both.
// signal: what the block has written is there for whoever sees its count; it may go on at once. Release: the barrier
// orders the block's writes before the one thread's, and the fence those before the count (PTX ISA, "Memory
// Consistency Model", causality order).
__device__ __forceinline__ void signal(unsigned* counter) {
    __syncthreads();
    if (threadIdx.x + threadIdx.y + threadIdx.z == 0) {
        asm volatile("fence.acq_rel.gpu;\n\tred.relaxed.gpu.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    }
}
// await: until `goal` signals have been counted since the counter was 0.
__device__ __forceinline__ void await(const unsigned* counter, unsigned goal) {
    if (threadIdx.x + threadIdx.y + threadIdx.z == 0) {
        unsigned count;
        do {
            asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
        } while ((int)(count - goal) < 0);
    }
    __syncthreads();
}

#endif  // EMULATOR

#define FULL_WARP 0xffffffffu

// Sum and maximum over the 32 lanes of a warp; every lane gets the result.
__device__ __forceinline__ float warp_sum(float x) {
    for (int lanes = 16; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(FULL_WARP, x, lanes);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int lanes = 16; lanes > 0; lanes >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, lanes));
    return x;
}

// A (batch, head, row, column) tensor read in place through strides in elements; the column stride is 1.
// Mirrors `View` in src/gpu/arguments.rs, whatever T.
template <class T>
struct ViewOf {
    T* data;
    long long batch, head, row;
    __device__ __forceinline__ T* at(int b, int h, long long t) const {
        return data + b * batch + h * head + t * row;
    }
};
typedef ViewOf<float> View;

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// Key = seed; counter = (element / 4 low, high, stream, step). Mirrors src/philox.rs.
struct Philox {
    uint32_t word[4];
};
__device__ __forceinline__ Philox philox(uint64_t seed, uint64_t block, uint32_t stream, uint32_t step) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = stream, c3 = step;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ key0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ key1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}
// Uniform in [0, 1) with 24 bits.
__device__ __forceinline__ float uniform(uint32_t word) { return (word >> 8) * (1.0f / 16777216.0f); }
