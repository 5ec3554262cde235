// One OS thread's share of a launch: the block it runs, the threads of that block, and who is ready.
#pragma once
#include <stdio.h>
#include <string.h>

namespace emulator {

constexpr unsigned MAX_THREADS = 1024, MAX_WARPS = 32, MAX_ARRAYS = 256;
constexpr size_t ARENA_BYTES = 1 << 20;
// After each shared array, and looked at when the block has ended.
constexpr size_t CANARY_BYTES = 64;
constexpr unsigned char CANARY = 0xa7;

enum Order : int { FORWARD, REVERSE, RANDOM };
enum CopyPolicy : int { LATE, EARLY, EITHER };

// Mirrors `Job` in src/gpu/emulator/runtime.rs.
struct Job {
    const Entry* entry;
    void* const* arguments;
    unsigned grid[3], block[3];
    unsigned shared, shared_limit;
    int order, copies;
    unsigned cooperative;  // whether all blocks run at once, each on a worker of its own
    unsigned unused;
    uint64_t seed, copy_seed;
};

// An asynchronous copy under way.
struct Copy {
    char* shared;
    const char* global;  // null: zeros
    unsigned bytes, group;
};

struct alignas(64) Thread {
    void* saved;  // null until it has started
    Stack* stack;
    // Where it waits.
    const char* file;
    int line;
    Kind kind;
    unsigned mask;
    // Its asynchronous copies, and how many groups it has committed.
    Copy* copies;
    unsigned copies_begin, copies_end, copies_capacity, group;
};

// A rendezvous of the lanes in `mask`. What they brought is kept twice: a lane may reach the next one
// before the others have read this one, but not the one after.
struct Slot {
    Slot* next;
    unsigned mask, arrived, readers, generation;
    Kind kind;
    const char* file;  // where the first lane waits
    int line;
    Exchange exchange[2];
};

struct Warp {
    unsigned lanes;  // that exist
    Slot* slots;
};

// The block's barrier, kept twice for the same reason.
struct Barrier {
    const char* file;
    int line;
    Kind kind;
    unsigned arrived, nonzero;
    bool differs;
};

struct Random {
    uint64_t state;
    void seed(uint64_t a, uint64_t b) { state = (a * 0x9e3779b97f4a7c15u ^ (b + 1) * 0xbf58476d1ce4e5b9u) | 1; }
    unsigned next() {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return static_cast<unsigned>(state >> 32);
    }
};

struct Device;

struct Worker {
    Device* device;
    const Job* job;
    unsigned number, thread_count, warp_count, live, running;
    unsigned ready[MAX_WARPS], done[MAX_WARPS], ready_warps;
    Order order;
    Random random, copy_random;
    Barrier barriers[2];
    unsigned barrier_generation;
    void* main;  // where run_block() waits
    Stack main_stack;
    Stack *stacks[MAX_THREADS], *free_stacks[MAX_THREADS];
    unsigned stack_count, free_count;
    // Shared memory.
    char* arena;
    size_t arena_used, shared_bytes;
    unsigned array_count;
    struct {
        const char *name, *file;
        int line;
        char* end;
    } arrays[MAX_ARRAYS];
    SharedPlace* places;
    unsigned places_count;
    uint64_t block;  // counts blocks: never 0 while one runs
    // Where the block waits for others, while it does; under the device's mutex.
    const unsigned* awaited;
    unsigned goal;
    bool faulted;
    Thread threads[MAX_THREADS];
    Warp warps[MAX_WARPS];
    dim3 indices[MAX_THREADS], indices_of;  // threadIdx of each thread for blockDim = indices_of
    char synced[2];                         // what ThreadSanitizer sees as passing from block to block
    char report[4096];
};

// memset and memcpy as such would go through the sanitizers' interceptors.
inline void fill_bytes(void* to, unsigned char value, size_t bytes) {
#ifdef __x86_64__
    asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
#else
    for (volatile unsigned char* p = static_cast<unsigned char*>(to); bytes--;) *p++ = value;
#endif
}
typedef long long Bytes16 __attribute__((vector_size(16), may_alias));
typedef int Bytes4 __attribute__((may_alias));
// 16 or 4 bytes; zeros where there is no source.
inline void copy_bytes(char* to, const char* from, unsigned bytes) {
    if (bytes == 16) {
        *reinterpret_cast<Bytes16*>(to) = from ? *reinterpret_cast<const Bytes16*>(from) : Bytes16{0, 0};
    } else {
        *reinterpret_cast<Bytes4*>(to) = from ? *reinterpret_cast<const Bytes4*>(from) : 0;
    }
}
inline void poison_bytes(char* to, unsigned bytes) {
    if (bytes == 16) {
        *reinterpret_cast<Bytes16*>(to) = Bytes16{-1, -1};
    } else {
        *reinterpret_cast<Bytes4*>(to) = -1;
    }
}

// The first bit at or above `start`, around the word. Cheaper than an even choice, and as good for finding races.
inline unsigned bit_from(unsigned bits, unsigned start) {
    unsigned turned = bits >> start | bits << (-start & 31);
    return (static_cast<unsigned>(__builtin_ctz(turned)) + start) & 31;
}

// Takes a ready thread in the scheduling order; -1 where there is none. Forward runs a warp as far as it
// gets before it looks at the next.
inline int pick(Worker* w) {
    if (!w->ready_warps) return -1;
    unsigned warp, lane;
    switch (w->order) {
        case FORWARD:
            warp = static_cast<unsigned>(__builtin_ctz(w->ready_warps));
            lane = static_cast<unsigned>(__builtin_ctz(w->ready[warp]));
            break;
        case REVERSE:
            warp = 31u - static_cast<unsigned>(__builtin_clz(w->ready_warps));
            lane = 31u - static_cast<unsigned>(__builtin_clz(w->ready[warp]));
            break;
        default: {
            unsigned chance = w->random.next();
            warp = bit_from(w->ready_warps, chance & 31);
            lane = bit_from(w->ready[warp], chance >> 5 & 31);
        }
    }
    if (!(w->ready[warp] &= ~(1u << lane))) w->ready_warps &= ~(1u << warp);
    return static_cast<int>(warp * 32 + lane);
}

inline void make_ready(Worker* w, unsigned warp, unsigned lanes) {
    w->ready[warp] |= lanes;
    w->ready_warps |= 1u << warp;
}

// --- Reports ------------------------------------------------------------------------------------

inline const char* kind_name(Kind kind) {
    static const char* const names[] = {
        "__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count", "__syncwarp", "__shfl_sync",
        "__shfl_xor_sync", "__shfl_up_sync", "__shfl_down_sync", "__ballot_sync", "__any_sync", "__all_sync",
        "ldmatrix_x4", "ldmatrix_x4_transposed", "ldmatrix_x2", "ldmatrix_x2_transposed",
        "mma_16x8x16<f16>", "mma_16x8x16<bf16>", "mma_16x8x8_tf32"};
    return names[kind];
}

struct Text {
    char* at;
    size_t left;
    template <class... A> void add(const char* format, A... values) {
        int written = snprintf(at, left, format, values...);
        size_t used = written < 0 ? 0 : static_cast<size_t>(written) < left ? static_cast<size_t>(written) : left - 1;
        at += used, left -= used;
    }
};

enum State { FINISHED, RUNNABLE, WAITING };

inline State state_of(const Worker* w, unsigned i) {
    if (w->done[i / 32] >> (i % 32) & 1) return FINISHED;
    if (w->ready[i / 32] >> (i % 32) & 1 || i == w->running) return RUNNABLE;
    return WAITING;
}

inline bool same_place(const char* file_a, int line_a, const char* file_b, int line_b) {
    return line_a == line_b && (file_a == file_b || strcmp(file_a, file_b) == 0);
}

// "threads 0-31, 64 wait at __syncthreads (kernels/x.cu:7); threads 32-63 have finished", in the order of the
// first thread of each group. `include_running`: the running thread waits too, as its record says.
inline void describe_threads(Worker* w, Text& text, bool include_running) {
    bool listed[MAX_THREADS] = {};
    unsigned groups = 0;
    auto state = [&](unsigned i) {
        State present = state_of(w, i);
        return include_running && i == w->running && present != FINISHED ? WAITING : present;
    };
    for (unsigned i = 0; i < w->thread_count; ++i) {
        if (listed[i]) continue;
        if (++groups > 12) {
            text.add("; …");
            return;
        }
        const Thread& a = w->threads[i];
        auto alike = [&](unsigned j) {
            const Thread& b = w->threads[j];
            return state(j) == state(i) &&
                   (state(i) != WAITING ||
                    (a.kind == b.kind && a.mask == b.mask && same_place(a.file, a.line, b.file, b.line)));
        };
        bool several = false;
        for (unsigned j = i + 1; j < w->thread_count; ++j) several |= alike(j);
        text.add(groups > 1 ? "; thread%s " : "thread%s ", several ? "s" : "");
        unsigned ranges = 0;
        for (unsigned j = i; j < w->thread_count;) {
            if (!alike(j)) {
                ++j;
                continue;
            }
            unsigned end = j;
            while (end < w->thread_count && alike(end)) listed[end++] = true;
            if (ranges == 8) text.add(", …");
            if (ranges < 8) text.add(end - j > 1 ? "%s%u-%u" : "%s%u", ranges ? ", " : "", j, end - 1);
            ++ranges;
            j = end;
        }
        const char* s = several ? "" : "s";
        if (state(i) == FINISHED) {
            text.add(several ? " have left the kernel" : " has left the kernel");
        } else if (state(i) == RUNNABLE) {
            text.add(several ? " are elsewhere" : " is elsewhere");
        } else if (a.kind >= SYNCWARP) {
            text.add(" wait%s at %s with mask 0x%08x (%s:%d)", s, kind_name(a.kind), a.mask, a.file, a.line);
        } else {
            text.add(" wait%s at %s (%s:%d)", s, kind_name(a.kind), a.file, a.line);
        }
    }
}

}  // namespace emulator
