// The emulator's side of mma.cuh: what a lane brings to the rendezvous of its warp, and what it takes from it. The
// products themselves are computed by the lane that comes last, in tensor_core.h.
#pragma once
#include "emulator.h"

namespace emulator {
static __forceinline__ Kind mma_kind(const f16*) { return MMA_F16; }
static __forceinline__ Kind mma_kind(const bf16*) { return MMA_BF16; }

// Each lane reads its own part once all have named their rows, so that the sanitizers see who reads what, and where.
static __forceinline__ void load_rows(Kind kind, int matrices, uint32_t* r, const void* row, const char* file,
                                      int line) {
    const Exchange* all = emulator_ldmatrix(kind, row, file, line);
    unsigned g = emulator_context.lane / 4, t = emulator_context.lane % 4;
    for (int i = 0; i < matrices; ++i) {
        r[i] = reinterpret_cast<const uint32_t*>(all->values[8 * i + g])[t];
    }
}
static __forceinline__ void load_columns(Kind kind, int matrices, uint32_t* r, const void* row, const char* file,
                                         int line) {
    const Exchange* all = emulator_ldmatrix(kind, row, file, line);
    unsigned g = emulator_context.lane / 4, t = emulator_context.lane % 4;
    for (int i = 0; i < matrices; ++i) {
        uint32_t low = reinterpret_cast<const uint16_t*>(all->values[8 * i + 2 * t])[g];
        uint32_t high = reinterpret_cast<const uint16_t*>(all->values[8 * i + 2 * t + 1])[g];
        r[i] = low | high << 16;
    }
}
}  // namespace emulator

template <class T>
static __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_PLACE) {
    emulator_mma(emulator::mma_kind(static_cast<const T*>(nullptr)), d, a, b, file, line);
}
static __forceinline__ void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                            EMULATOR_PLACE) {
    emulator_mma(emulator::MMA_TF32, d, a, b, file, line);
}
static __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row, EMULATOR_PLACE) {
    emulator::load_rows(emulator::LDMATRIX_X4, 4, r, row, file, line);
}
static __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row, EMULATOR_PLACE) {
    emulator::load_columns(emulator::LDMATRIX_X4_TRANSPOSED, 4, r, row, file, line);
}
static __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row, EMULATOR_PLACE) {
    emulator::load_rows(emulator::LDMATRIX_X2, 2, r, row, file, line);
}
static __forceinline__ void ldmatrix_x2_transposed(uint32_t (&r)[2], const void* row, EMULATOR_PLACE) {
    emulator::load_columns(emulator::LDMATRIX_X2_TRANSPOSED, 2, r, row, file, line);
}
