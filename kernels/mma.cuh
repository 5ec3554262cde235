// Tensor cores: products of small matrices that a warp holds in its registers, and the loads that bring them there.
// All 32 lanes of a warp must come to each of these together, at the same place. In the tables g = lane / 4 and
// t = lane % 4; a register of two 16-bit numbers holds the named one in its lower half, the next column's (of B:
// the next row's) in its upper half (PTX ISA, "Matrix fragments for mma.m16n8k16", "… m16n8k8").
#pragma once
#include "numbers.cuh"
#include "prelude.cuh"

// D = A·B + D. A: 16×16, row-major; B: 16×8, column-major; D: 16×8 in f32. T: f16 or bf16.
//   a0 (g, 2t)  a1 (g+8, 2t)  a2 (g, 2t+8)  a3 (g+8, 2t+8)     b0 (2t, g)  b1 (2t+8, g)
//   d0 (g, 2t)  d1 (g, 2t+1)  d2 (g+8, 2t)  d3 (g+8, 2t+1)
// Products are exact. How the hardware rounds their sum is not specified; the emulator adds them to D one after the
// other, k from 0 to 15, each sum rounded to f32.
//
// mma_16x8x8_tf32, the same for A: 16×8 and B: 8×8 of TF32 numbers, made by to_tf32(); of others the low 13 bits are
// ignored, which truncates them.
//   a0 (g, t)  a1 (g+8, t)  a2 (g, t+4)  a3 (g+8, t+4)         b0 (t, g)  b1 (t+4, g)         D as above
//
// ldmatrix_x4 (x2): four (two) 8×8 matrices of 16-bit numbers in shared memory. Lane 8i + r gives the address of row r
// of matrix i, 16 bytes, aligned to 16; register i then holds (g, 2t) and (g, 2t+1) of matrix i, where `transposed`
// (2t, g) and (2t+1, g). What lanes 16 to 31 give to x2 does not matter.

#ifdef EMULATOR
#include "mma.h"
#else

template <class T>
__device__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// Not volatile, unlike the loads: they depend on nothing but their operands, and may be scheduled freely.
#if __CUDA_ARCH__ >= 800
#define MMA(shape_and_types)                                                                                      \
    asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                          \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#else
// Launch code must not bring a kernel here; where it does, that is seen at once.
#define MMA(shape_and_types) __trap()
#endif

template <>
__device__ __forceinline__ void mma_16x8x16<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
template <>
__device__ __forceinline__ void mma_16x8x16<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
__device__ __forceinline__ void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef MMA

#define LDMATRIX_X4(name, form)                                                                            \
    __device__ __forceinline__ void name(uint32_t (&r)[4], const void* row) {                              \
        uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));                           \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" form ".shared.b16 {%0, %1, %2, %3}, [%4];"           \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                      \
                     : "r"(address)                                                                        \
                     : "memory");                                                                          \
    }
#define LDMATRIX_X2(name, form)                                                                            \
    __device__ __forceinline__ void name(uint32_t (&r)[2], const void* row) {                              \
        uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));                           \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" form ".shared.b16 {%0, %1}, [%2];"                   \
                     : "=r"(r[0]), "=r"(r[1])                                                              \
                     : "r"(address)                                                                        \
                     : "memory");                                                                          \
    }
LDMATRIX_X4(ldmatrix_x4, "")
LDMATRIX_X4(ldmatrix_x4_transposed, ".trans")
LDMATRIX_X2(ldmatrix_x2, "")
LDMATRIX_X2(ldmatrix_x2_transposed, ".trans")
#undef LDMATRIX_X4
#undef LDMATRIX_X2

#endif
