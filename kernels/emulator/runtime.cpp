// The emulator's runtime: schedules the threads of a block, completes barriers, collectives and copies.
// Compiled once, without instrumentation even where the kernels have it: what a sanitizer should know of
// it, it is told. Nothing here throws, and a fault never unwinds: its block's fibers are dropped.
#include <sched.h>
#include <time.h>
#include "interface.h"
#include "fiber.h"
#include "worker.h"
#include "device.h"
#include "tensor_core.h"

__thread emulator::Context emulator_context __attribute__((tls_model("initial-exec"), visibility("default")));

namespace emulator {

static unsigned shared_arrays = 0;  // how many places in all modules declare one

#ifdef EMULATOR_THREAD
// A thread index is always the same fiber, or what two threads do one after the other on one stack would
// look ordered.
constexpr bool REUSE_STACKS = false;
#else
constexpr bool REUSE_STACKS = true;
#endif

static void acquire(void* address) {
#ifdef EMULATOR_THREAD
    __tsan_acquire(address);
#else
    (void)address;
#endif
}
static void release(void* address) {
#ifdef EMULATOR_THREAD
    __tsan_release(address);
#else
    (void)address;
#endif
}

// Every switch goes through here. `dead`: nothing comes back to the present stack.
static inline void jump(Stack* from, void** save, Stack* to, void* load, bool dead) {
#ifdef EMULATOR_ADDRESS
    __sanitizer_start_switch_fiber(dead ? nullptr : &from->fake_stack, to->bottom,
                                   static_cast<size_t>(to->top - to->bottom));
#endif
#ifdef EMULATOR_THREAD
    __tsan_switch_to_fiber(to->fiber, 1);
#endif
    (void)dead, (void)to;
    emulator_switch(save, load);
#ifdef EMULATOR_ADDRESS
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
    (void)from;
}

static void fiber_main();

static void leave_for_main(Worker* w) {
    void* dropped;
    jump(w->threads[w->running].stack, &dropped, &w->main_stack, w->main, true);
}

// Starts a report. The caller adds to it, then calls abandon().
[[gnu::cold]] static Text fault(Worker* w, const char* problem) {
    const Context& c = emulator_context;
    Text text = {w->report, sizeof w->report};
    text.add("block (%u, %u, %u): %s", c.block_index.x, c.block_index.y, c.block_index.z, problem);
    return text;
}

[[noreturn, gnu::cold]] static void abandon(Worker* w) {
    w->faulted = true;
    leave_for_main(w);
    __builtin_unreachable();
}

[[noreturn, gnu::cold]] static void deadlock(Worker* w) {
    bool left = false, barrier = false, warp = false;
    for (unsigned i = 0; i < w->thread_count; ++i) {
        if (w->done[i / 32] >> (i % 32) & 1) {
            left = true;
        } else {
            (w->threads[i].kind < SYNCWARP ? barrier : warp) = true;
        }
    }
    Text text = fault(w, left      ? "threads left while others wait for them: "
                         : barrier && warp ? "deadlock, threads wait at a barrier and within a warp: "
                                           : "deadlock: ");
    describe_threads(w, text, true);
    abandon(w);
}

// A stack for a thread that has not started.
static __attribute__((noinline)) void give_stack(Worker* w, unsigned next) {
    Thread& thread = w->threads[next];
    if (REUSE_STACKS) {
        if (!w->free_count) {
            Stack* made = w->stack_count < MAX_THREADS ? stack_new(w->stack_count) : nullptr;
            if (!made) {
                fault(w, "no memory for the stacks of the emulator's fibers");
                abandon(w);
            }
            w->stacks[w->stack_count++] = w->free_stacks[w->free_count++] = made;
        }
        thread.stack = w->free_stacks[--w->free_count];
    } else {
        thread.stack = w->stacks[next];
    }
    thread.saved = stack_prepare(thread.stack, fiber_main);
}

static inline void set_running(Worker* w, unsigned next) {
    w->running = next;
    emulator_context.thread_index = w->indices[next];
    emulator_context.lane = next % 32;
}

static inline void start_or_resume(Worker* w, unsigned next, Stack* from, void** save, bool dead) {
    Thread& thread = w->threads[next];
    if (__builtin_expect(!thread.saved, 0)) give_stack(w, next);
    set_running(w, next);
    jump(from, save, thread.stack, thread.saved, dead);
}

// The running thread stops until it is made ready again.
static inline void wait(Worker* w) {
    int next = pick(w);
    if (__builtin_expect(next < 0, 0)) deadlock(w);
    unsigned me = w->running;
    if (static_cast<unsigned>(next) == me) return;
    Thread& thread = w->threads[me];
    start_or_resume(w, static_cast<unsigned>(next), thread.stack, &thread.saved, false);
}

static void fiber_main() {
    Worker* w = emulator_context.worker;
#ifdef EMULATOR_ADDRESS
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    for (;;) {
        unsigned me = w->running;
        Thread& thread = w->threads[me];
        acquire(&w->synced[~w->block & 1]);
        device_acquire(w->device);
        w->job->entry->run(w->job->arguments);
        device_release(w->device);
        release(&w->synced[w->block & 1]);
        w->done[me / 32] |= 1u << (me % 32);
        if (!--w->live) leave_for_main(w);
        int next = pick(w);
        if (next < 0) deadlock(w);
        if (REUSE_STACKS && !w->threads[next].saved) {
            // The usual case of a kernel without barriers: the next thread runs here, without a switch.
            Thread& other = w->threads[next];
            other.stack = thread.stack;
            other.saved = thread.saved;
            set_running(w, static_cast<unsigned>(next));
            continue;
        }
        if (REUSE_STACKS) w->free_stacks[w->free_count++] = thread.stack;
        void* dropped;
        start_or_resume(w, static_cast<unsigned>(next), thread.stack, &dropped, true);
    }
}

// --- Shared memory ------------------------------------------------------------------------------

static char* allocate_shared(Worker* w, size_t bytes, size_t alignment, const char* name, const char* file, int line) {
    size_t start = (w->arena_used + alignment - 1) / alignment * alignment;
    w->shared_bytes += bytes;
    if (w->shared_bytes > w->job->shared_limit || start + bytes + 2 * CANARY_BYTES > ARENA_BYTES ||
        w->array_count == MAX_ARRAYS) {
        return nullptr;
    }
    char* address = w->arena + start;
    w->arena_used = start + bytes + CANARY_BYTES;
#ifdef EMULATOR_ADDRESS
    __asan_unpoison_memory_region(address, bytes);
#else
    fill_bytes(address + bytes, CANARY, CANARY_BYTES);
#endif
    fill_bytes(address, 0xff, bytes);
    w->arrays[w->array_count++] = {name, file, line, address + bytes};
    return address;
}

static void check_canaries(Worker* w) {
#ifndef EMULATOR_ADDRESS
    for (unsigned a = 0; a < w->array_count; ++a) {
        for (size_t i = 0; i < CANARY_BYTES; ++i) {
            if (static_cast<unsigned char>(w->arrays[a].end[i]) == CANARY) continue;
            auto& array = w->arrays[a];
            Text text = fault(w, "");
            text.add("wrote past the end of shared memory `%s` (%s:%d), %zu bytes after its last", array.name,
                     array.file, array.line, i + 1);
            w->faulted = true;
            return;
        }
    }
#else
    (void)w;
#endif
}

// --- Blocks -------------------------------------------------------------------------------------

static void prepare_worker(Worker* w, const Job* job) {
    w->job = job;
    w->thread_count = job->block[0] * job->block[1] * job->block[2];
    w->warp_count = (w->thread_count + 31) / 32;
    w->order = static_cast<Order>(job->order);
    dim3& of = w->indices_of;
    if (of.x != job->block[0] || of.y != job->block[1] || of.z != job->block[2]) {
        of = {job->block[0], job->block[1], job->block[2]};
        for (unsigned i = 0; i < w->thread_count; ++i) w->indices[i] = {i % of.x, i / of.x % of.y, i / of.x / of.y};
    }
    for (unsigned i = 0; i < w->warp_count; ++i) {
        unsigned lanes = w->thread_count - i * 32;
        w->warps[i].lanes = lanes >= 32 ? ~0u : (1u << lanes) - 1;
    }
    Context& c = emulator_context;
    c.worker = w;
    c.block_size = of;
    c.grid_size = {job->grid[0], job->grid[1], job->grid[2]};
    c.places = w->places;
    c.places_count = w->places_count;
#ifdef EMULATOR_ADDRESS
    pthread_attr_t attributes;
    void* bottom = nullptr;
    size_t size = 0;
    if (!pthread_getattr_np(pthread_self(), &attributes)) {
        pthread_attr_getstack(&attributes, &bottom, &size);
        pthread_attr_destroy(&attributes);
    }
    w->main_stack.bottom = static_cast<char*>(bottom);
    w->main_stack.top = w->main_stack.bottom + size;
#endif
#ifdef EMULATOR_THREAD
    w->main_stack.fiber = __tsan_get_current_fiber();
    while (w->stack_count < w->thread_count) {
        w->stacks[w->stack_count] = stack_new(w->stack_count);
        w->stacks[w->stack_count++]->fiber = __tsan_create_fiber(0);
    }
#endif
}

// After a fault, what the dropped fibers left behind.
static void recover(Worker* w) {
    w->free_count = 0;
    for (unsigned i = 0; i < w->stack_count; ++i) {
        if (REUSE_STACKS) w->free_stacks[w->free_count++] = w->stacks[i];
#ifdef EMULATOR_ADDRESS
        __asan_unpoison_memory_region(w->stacks[i]->bottom, STACK_BYTES);
#endif
#ifdef EMULATOR_THREAD
        __tsan_destroy_fiber(w->stacks[i]->fiber);
        w->stacks[i]->fiber = __tsan_create_fiber(0);
#endif
    }
}

// Runs one block; false where it failed, and then w->report says how.
static bool run_block(Worker* w, uint64_t index) {
    const Job* job = w->job;
    Context& c = emulator_context;
    c.block_index.x = static_cast<unsigned>(index % job->grid[0]);
    c.block_index.y = static_cast<unsigned>(index / job->grid[0] % job->grid[1]);
    c.block_index.z = static_cast<unsigned>(index / job->grid[0] / job->grid[1]);
    c.block = ++w->block;
    w->random.seed(job->seed, index);
    w->copy_random.seed(job->copy_seed, index);
#ifdef EMULATOR_ADDRESS
    if (w->arena_used) __asan_poison_memory_region(w->arena, w->arena_used);
#endif
    w->arena_used = CANARY_BYTES;
    w->shared_bytes = w->array_count = 0;
    c.dynamic_shared =
        job->shared ? allocate_shared(w, job->shared, 1024, "dynamic", "the launch's bytes", static_cast<int>(job->shared))
                    : nullptr;
    w->barriers[0] = w->barriers[1] = {};
    w->live = w->thread_count;
    for (unsigned i = 0; i < w->warp_count; ++i) {
        w->done[i] = 0;
        w->ready[i] = w->warps[i].lanes;
        for (Slot* s = w->warps[i].slots; s; s = s->next) s->mask = s->arrived = s->readers = 0;
    }
    w->ready_warps = w->warp_count == 32 ? ~0u : (1u << w->warp_count) - 1;
    for (unsigned i = 0; i < w->thread_count; ++i) {
        Thread& t = w->threads[i];
        t.saved = nullptr;
        t.copies_begin = t.copies_end = t.group = 0;
    }
    w->faulted = false;
    start_or_resume(w, static_cast<unsigned>(pick(w)), &w->main_stack, &w->main, false);
    if (w->faulted) {
        recover(w);
    } else {
        if (REUSE_STACKS) w->free_stacks[w->free_count++] = w->threads[w->running].stack;
        check_canaries(w);
    }
    return !w->faulted;
}

}  // namespace emulator

using namespace emulator;

EXPORT void emulator_fault(const char* problem, const char* file, int line) {
    Worker* w = emulator_context.worker;
    const dim3& t = emulator_context.thread_index;
    Text text = fault(w, "");
    text.add("thread (%u, %u, %u): %s (%s:%d)", t.x, t.y, t.z, problem, file, line);
    abandon(w);
}

EXPORT void* emulator_shared(SharedArray* array) {
    Worker* w = emulator_context.worker;
    unsigned index = __atomic_load_n(&array->index, __ATOMIC_RELAXED);
    if (!index) {
        unsigned fresh = __atomic_add_fetch(&shared_arrays, 1, __ATOMIC_RELAXED);
        // Where another worker was faster, `fresh` stays unused.
        if (__atomic_compare_exchange_n(&array->index, &index, fresh, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            index = fresh;
        }
    }
    if (index >= w->places_count) {
        unsigned count = index + 64;
        w->places = static_cast<SharedPlace*>(realloc(w->places, count * sizeof(SharedPlace)));
        fill_bytes(w->places + w->places_count, 0, (count - w->places_count) * sizeof(SharedPlace));
        emulator_context.places = w->places;
        emulator_context.places_count = w->places_count = count;
    }
    SharedPlace& place = w->places[index];
    if (place.block != w->block) {
        size_t alignment = array->alignment < 128 ? 128 : array->alignment;
        char* address = allocate_shared(w, array->bytes, alignment, array->name, array->file, array->line);
        if (!address) {
            Text text = fault(w, "");
            text.add("shared memory `%s` of %zu bytes (%s:%d) brings the block to %zu bytes, and a block may have %u",
                     array->name, array->bytes, array->file, array->line, w->shared_bytes, w->job->shared_limit);
            abandon(w);
        }
        place = {w->block, address};
    }
    return place.address;
}

EXPORT int emulator_barrier(Kind kind, int predicate, const char* file, int line) {
    Worker* w = emulator_context.worker;
    Thread& thread = w->threads[w->running];
    thread.file = file, thread.line = line, thread.kind = kind, thread.mask = 0;
    unsigned generation = w->barrier_generation;
    Barrier& barrier = w->barriers[generation & 1];
    if (!barrier.arrived) {
        barrier = {file, line, kind, 0, 0, false};
    } else if (barrier.kind != kind || !same_place(barrier.file, barrier.line, file, line)) {
        barrier.differs = true;
    }
    barrier.nonzero += predicate != 0;
    release(&barrier);
    if (++barrier.arrived == w->thread_count) {
        if (barrier.differs) {
            Text text = fault(w, "threads wait at different barriers: ");
            describe_threads(w, text, true);
            abandon(w);
        }
        ++w->barrier_generation;
        w->barriers[w->barrier_generation & 1].arrived = 0;
        for (unsigned i = 0; i < w->warp_count; ++i) make_ready(w, i, w->warps[i].lanes);
    }
    wait(w);
    acquire(&barrier);
    switch (kind) {
        case SYNCTHREADS_OR: return barrier.nonzero != 0;
        case SYNCTHREADS_AND: return barrier.nonzero == w->thread_count;
        default: return static_cast<int>(barrier.nonzero);
    }
}

EXPORT const Exchange* emulator_exchange(Kind kind, unsigned mask, uint64_t value, const char* file, int line) {
    Worker* w = emulator_context.worker;
    unsigned me = w->running, lane = me % 32;
    Thread& thread = w->threads[me];
    Warp& warp = w->warps[me / 32];
    thread.file = file, thread.line = line, thread.kind = kind, thread.mask = mask;
    if (!(mask >> lane & 1)) emulator_fault("calls a collective whose mask does not name its own lane", file, line);
    bool aligned = kind >= LDMATRIX_X4;
    if (aligned && warp.lanes != ~0u) {
        emulator_fault("calls ldmatrix or mma in a warp of fewer than 32 threads", file, line);
    }
    mask &= warp.lanes;  // lanes that the block never had are no-one to wait for
    Slot* slot = warp.slots;
    while (slot && slot->mask != mask) slot = slot->next;
    if (!slot) {
        for (slot = warp.slots; slot && (slot->arrived || slot->readers);) slot = slot->next;
        if (!slot) {
            slot = static_cast<Slot*>(calloc(1, sizeof(Slot)));
            slot->next = warp.slots;
            warp.slots = slot;
        }
        slot->mask = mask;
    }
    Exchange& exchange = slot->exchange[slot->generation & 1];
    if (!slot->arrived) {
        slot->kind = kind, slot->file = file, slot->line = line;
        exchange.mask = mask;
        exchange.nonzero = 0;
    } else if (slot->kind != kind || (aligned && !same_place(slot->file, slot->line, file, line))) {
        Text text = fault(w, "lanes of one warp call different collectives: ");
        describe_threads(w, text, true);
        abandon(w);
    }
    exchange.values[lane] = value;
    exchange.nonzero |= static_cast<unsigned>(value != 0) << lane;
    slot->arrived |= 1u << lane;
    if (kind == SYNCWARP) release(&exchange);
    if (slot->arrived == mask) {
        if (kind >= MMA_F16) multiply(kind, exchange);
        slot->arrived = 0;
        ++slot->generation;
        slot->readers += static_cast<unsigned>(__builtin_popcount(mask));
        make_ready(w, me / 32, mask);
    }
    wait(w);
    --slot->readers;
    if (kind == SYNCWARP) acquire(&exchange);
    return &exchange;
}

// --- Asynchronous copies ------------------------------------------------------------------------

static inline void show_copy(const Copy& copy, void* place) {
#ifdef EMULATOR_THREAD
    __tsan_func_entry(place);
    __tsan_write_range(copy.shared, copy.bytes);
    if (copy.global) __tsan_read_range(const_cast<char*>(copy.global), copy.bytes);
    __tsan_func_exit();
#else
    (void)copy, (void)place;
#endif
}

EXPORT void emulator_copy(void* to, const void* from, unsigned bytes, bool valid, const char* file, int line) {
    Worker* w = emulator_context.worker;
    Thread& t = w->threads[w->running];
    Copy copy = {static_cast<char*>(to), valid ? static_cast<const char*>(from) : nullptr, bytes, t.group};
    uintptr_t low = reinterpret_cast<uintptr_t>(copy.shared) | reinterpret_cast<uintptr_t>(copy.global);
    if (low & (bytes - 1)) {
        emulator_fault("cp.async between addresses that are not multiples of its size", file, line);
    }
    if (copy.shared < w->arena || copy.shared + bytes > w->arena + w->arena_used) {
        emulator_fault("cp.async to an address that is not in the block's shared memory", file, line);
    }
    show_copy(copy, __builtin_return_address(0));
    int policy = w->job->copies;
    if (policy == EARLY || (policy == EITHER && (w->copy_random.next() & 1))) {
        copy_bytes(copy.shared, copy.global, bytes);
        return;
    }
    poison_bytes(copy.shared, bytes);
    if (__builtin_expect(t.copies_end == t.copies_capacity, 0)) {
        t.copies_capacity = t.copies_capacity ? t.copies_capacity * 2 : 32;
        t.copies = static_cast<Copy*>(realloc(t.copies, t.copies_capacity * sizeof(Copy)));
    }
    t.copies[t.copies_end++] = copy;
}

EXPORT void emulator_copy_commit() {
    Worker* w = emulator_context.worker;
    ++w->threads[w->running].group;
}

EXPORT void emulator_copy_wait(int pending) {
    Worker* w = emulator_context.worker;
    Thread& t = w->threads[w->running];
    while (t.copies_begin < t.copies_end && t.copies[t.copies_begin].group + static_cast<unsigned>(pending) < t.group) {
        const Copy& copy = t.copies[t.copies_begin++];
        show_copy(copy, __builtin_return_address(0));
        copy_bytes(copy.shared, copy.global, copy.bytes);
    }
    if (t.copies_begin == t.copies_end) t.copies_begin = t.copies_end = 0;
}

EXPORT void emulator_fence() {
    static char fence;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    acquire(&fence);
    release(&fence);
}

// --- Blocks that wait for each other --------------------------------------------------------------

static bool counted(const unsigned* counter, unsigned goal) {
    return static_cast<int>(__atomic_load_n(counter, __ATOMIC_ACQUIRE) - goal) >= 0;
}

// Whether every block that is left waits for a count that nobody is left to raise. Under the mutex: who stops waiting
// must take it first, so that no kernel's code runs meanwhile where this is true.
static bool blocks_deadlocked(const Device* d) {
    uint64_t waiting = 0;
    for (unsigned i = 0; i < d->worker_count; ++i) {
        const Worker* w = d->workers[i];
        if (!w->awaited) continue;
        if (counted(w->awaited, w->goal)) return false;
        ++waiting;
    }
    return waiting == d->unfinished;
}

// Gives the processor to other workers until the count is reached or another block has failed. True: a deadlock.
static bool wait_for_blocks(Worker* w, const unsigned* counter, unsigned goal) {
    Device* d = w->device;
    pthread_mutex_lock(&d->mutex);
    w->awaited = counter, w->goal = goal;
    bool deadlock = false;
    for (unsigned looks = 0;; ++looks) {
        // From time to time, as a block may end without having been waited for.
        if (looks % 256 == 0) deadlock = blocks_deadlocked(d);
        bool over = deadlock || counted(counter, goal) || __atomic_load_n(&d->failed, __ATOMIC_RELAXED);
        if (over) break;
        pthread_mutex_unlock(&d->mutex);
        if (looks < 64) {
            sched_yield();
        } else {
            timespec pause = {0, 20000};
            nanosleep(&pause, nullptr);
        }
        pthread_mutex_lock(&d->mutex);
    }
    w->awaited = nullptr;
    pthread_mutex_unlock(&d->mutex);
    return deadlock;
}

EXPORT void emulator_signal(unsigned* counter, const char* file, int line) {
    if (!emulator_context.worker->job->cooperative) {
        emulator_fault("signals other blocks, and the launch is not cooperative", file, line);
    }
    release(counter);
    __atomic_fetch_add(counter, 1u, __ATOMIC_SEQ_CST);
}

EXPORT void emulator_await(const unsigned* counter, unsigned goal, const char* file, int line) {
    Worker* w = emulator_context.worker;
    if (!w->job->cooperative) {
        emulator_fault("waits for other blocks, and the launch is not cooperative: they need not run at once", file, line);
    }
    unsigned me = w->running;
    Thread& thread = w->threads[me];
    while (!counted(counter, goal)) {
        // The block's own threads go on first.
        int next = pick(w);
        if (next >= 0) {
            make_ready(w, me / 32, 1u << (me % 32));
            start_or_resume(w, static_cast<unsigned>(next), thread.stack, &thread.saved, false);
            continue;
        }
        if (wait_for_blocks(w, counter, goal)) {
            Text text = fault(w, "deadlock, all blocks that are left wait for others: this one");
            text.add(" has counted %u of %u signals at await (%s:%d)", __atomic_load_n(counter, __ATOMIC_RELAXED), goal,
                     file, line);
            abandon(w);
        }
        if (__atomic_load_n(&w->device->failed, __ATOMIC_RELAXED)) abandon(w);
    }
    acquire(const_cast<unsigned*>(counter));
}
