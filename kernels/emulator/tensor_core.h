// The runtime's side of mma.cuh: checks a lane's row, and multiplies for a whole warp at once.
#pragma once
#include "device.h"
#include "half.h"

namespace emulator {

// What a lane brings: its registers, on its own stack, where it waits.
struct Fragments {
    float* d;
    const uint32_t *a, *b;
};

// The eight columns of a row of D. Written as a vector because -O2 alone would not make one of them.
typedef float Columns __attribute__((vector_size(32)));
typedef uint32_t Word __attribute__((may_alias));

// D += A·B, A 16×K and B K×8 by rows: a row of D takes its products in the order of k, each sum rounded to f32.
// Products of numbers of 11 bits or fewer are exact in f32, so that fusing them with the sum changes nothing within
// f32's range.
template <int K>
inline void multiply(const Exchange& exchange, const float (&a)[16 * K], const float (&b)[K * 8]) {
    Columns d[16];
    float* rows = reinterpret_cast<float*>(d);
    for (unsigned lane = 0; lane < 32; ++lane) {
        const float* from = reinterpret_cast<const Fragments*>(exchange.values[lane])->d;
        float* to = rows + lane / 4 * 8 + lane % 4 * 2;
        to[0] = from[0], to[1] = from[1], to[64] = from[2], to[65] = from[3];
    }
    for (int row = 0; row < 16; row += 4) {  // four rows together: their sums do not wait for each other
        const float* of = a + row * K;
        Columns d0 = d[row], d1 = d[row + 1], d2 = d[row + 2], d3 = d[row + 3];
        for (int k = 0; k < K; ++k) {
            Columns x;
            __builtin_memcpy(&x, b + k * 8, sizeof x);
            d0 += of[k] * x;
            d1 += of[K + k] * x;
            d2 += of[2 * K + k] * x;
            d3 += of[3 * K + k] * x;
        }
        d[row] = d0, d[row + 1] = d1, d[row + 2] = d2, d[row + 3] = d3;
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
        float* to = reinterpret_cast<const Fragments*>(exchange.values[lane])->d;
        const float* from = rows + lane / 4 * 8 + lane % 4 * 2;
        to[0] = from[0], to[1] = from[1], to[2] = from[64], to[3] = from[65];
    }
}

// m16n8k16.
template <bool BF16>
inline void multiply_16(const Exchange& exchange) {
    alignas(32) uint16_t a16[16 * 16], b16[16 * 8];
    for (unsigned lane = 0; lane < 32; ++lane) {
        const Fragments& f = *reinterpret_cast<const Fragments*>(exchange.values[lane]);
        unsigned g = lane / 4, t = lane % 4;
        Word* pairs = reinterpret_cast<Word*>(a16 + g * 16) + t;
        pairs[0] = f.a[0], pairs[64] = f.a[1], pairs[4] = f.a[2], pairs[68] = f.a[3];
        uint16_t* column = b16 + 2 * t * 8 + g;
        column[0] = static_cast<uint16_t>(f.b[0]), column[8] = static_cast<uint16_t>(f.b[0] >> 16);
        column[64] = static_cast<uint16_t>(f.b[1]), column[72] = static_cast<uint16_t>(f.b[1] >> 16);
    }
    auto widen = [](uint16_t bits) {
        if (!BF16) return widen_f16(bits);
        uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float x;
        __builtin_memcpy(&x, &wide, 4);
        return x;
    };
    alignas(32) float a[16 * 16], b[16 * 8];
    for (int i = 0; i < 256; ++i) a[i] = widen(a16[i]);
    for (int i = 0; i < 128; ++i) b[i] = widen(b16[i]);
    multiply<16>(exchange, a, b);
}

// m16n8k8 of TF32 numbers, which keep the upper 19 bits of an f32.
inline void multiply_tf32(const Exchange& exchange) {
    auto number = [](uint32_t bits) {
        bits &= 0xffffe000u;
        float x;
        __builtin_memcpy(&x, &bits, 4);
        return x;
    };
    alignas(32) float a[16 * 8], b[8 * 8];
    for (unsigned lane = 0; lane < 32; ++lane) {
        const Fragments& f = *reinterpret_cast<const Fragments*>(exchange.values[lane]);
        unsigned g = lane / 4, t = lane % 4;
        float *row = a + g * 8 + t, *column = b + t * 8 + g;
        row[0] = number(f.a[0]), row[64] = number(f.a[1]), row[4] = number(f.a[2]), row[68] = number(f.a[3]);
        column[0] = number(f.b[0]), column[32] = number(f.b[1]);
    }
    multiply<8>(exchange, a, b);
}

inline void multiply(Kind kind, const Exchange& exchange) {
    switch (kind) {
        case MMA_F16: return multiply_16<false>(exchange);
        case MMA_BF16: return multiply_16<true>(exchange);
        default: return multiply_tf32(exchange);
    }
}

}  // namespace emulator

EXPORT const emulator::Exchange* emulator_ldmatrix(emulator::Kind kind, const void* row, const char* file, int line) {
    const emulator::Worker* w = emulator_context.worker;
    const char* start = static_cast<const char*>(row);
    if (emulator_context.lane < (kind < emulator::LDMATRIX_X2 ? 32u : 16u)) {
        if (reinterpret_cast<uintptr_t>(row) & 15) {
            emulator_fault("ldmatrix of a row whose address is not a multiple of 16", file, line);
        }
        if (start < w->arena || start + 16 > w->arena + w->arena_used) {
            emulator_fault("ldmatrix of a row that is not in the block's shared memory", file, line);
        }
    }
    return emulator_exchange(kind, ~0u, reinterpret_cast<uintptr_t>(row), file, line);
}

EXPORT void emulator_mma(emulator::Kind kind, float* d, const uint32_t* a, const uint32_t* b, const char* file, int line) {
    emulator::Fragments fragments = {d, a, b};
    emulator_exchange(kind, ~0u, reinterpret_cast<uintptr_t>(&fragments), file, line);
}
