// Workers: OS threads that outlive the launches, and the handing out of blocks to them.
#pragma once
#include <pthread.h>

namespace emulator {

struct Device {
    unsigned worker_count;
    Worker** workers;
    pthread_t* threads;  // worker 0 is whoever launches
    pthread_mutex_t mutex;
    pthread_cond_t wake, idle;
    // Under the mutex. A job is open while `job` is set; `tickets` more workers may join it.
    const Job* job;
    unsigned tickets, active;
    bool quit;
    uint64_t next, blocks, multiplier;
    unsigned usual;     // workers of a launch that is not cooperative, and of this one
    unsigned taking_part;
    uint64_t unfinished;  // blocks of a cooperative launch; under the mutex
    int failed;
    Worker* failed_worker;
    unsigned launches;
    char synced[2];  // what ThreadSanitizer sees as passing from launch to launch
};

#ifdef EMULATOR_THREAD
// Blocks are dealt out in turn: every second block is on another worker, so that races between blocks show.
constexpr bool DEAL = true;
inline void device_acquire(Device* d) { __tsan_acquire(&d->synced[~d->launches & 1]); }
inline void device_release(Device* d) { __tsan_release(&d->synced[d->launches & 1]); }
#else
constexpr bool DEAL = false;
inline void device_acquire(Device*) {}
inline void device_release(Device*) {}
#endif

static void prepare_worker(Worker* w, const Job* job);
static bool run_block(Worker* w, uint64_t index);

inline uint64_t gcd(uint64_t a, uint64_t b) { return b ? gcd(b, a % b) : a; }

// The n-th block in the scheduling order.
inline uint64_t block_in_order(const Device* d, const Job* job, uint64_t n) {
    switch (job->order) {
        case FORWARD: return n;
        case REVERSE: return d->blocks - 1 - n;
        default:
            return static_cast<uint64_t>((static_cast<unsigned __int128>(n) * d->multiplier + job->seed) % d->blocks);
    }
}

inline void work(Device* d, Worker* w, const Job* job) {
    if (DEAL && w->number >= d->taking_part) return;
    prepare_worker(w, job);
    uint64_t dealt = w->number;
    while (!__atomic_load_n(&d->failed, __ATOMIC_RELAXED)) {
        uint64_t n = DEAL ? dealt : __atomic_fetch_add(&d->next, 1, __ATOMIC_RELAXED);
        dealt += d->taking_part;
        if (n >= d->blocks) break;
        if (!run_block(w, block_in_order(d, job, n)) && !__atomic_exchange_n(&d->failed, 1, __ATOMIC_RELAXED)) {
            d->failed_worker = w;
        }
        if (job->cooperative) {
            pthread_mutex_lock(&d->mutex);
            --d->unfinished;
            pthread_mutex_unlock(&d->mutex);
        }
    }
}

inline void* worker_main(void* argument) {
    Worker* w = static_cast<Worker*>(argument);
    Device* d = w->device;
    pthread_mutex_lock(&d->mutex);
    unsigned last_launch = ~0u;
    for (;;) {
        while (!d->quit && !(d->tickets && !(DEAL && d->launches == last_launch))) pthread_cond_wait(&d->wake, &d->mutex);
        if (d->quit) break;
        --d->tickets;
        ++d->active;
        const Job* job = d->job;
        last_launch = d->launches;
        pthread_mutex_unlock(&d->mutex);
        work(d, w, job);
        pthread_mutex_lock(&d->mutex);
        if (!--d->active) pthread_cond_signal(&d->idle);
    }
    pthread_mutex_unlock(&d->mutex);
    return nullptr;
}

inline Worker* worker_new(Device* d, unsigned number) {
    void* memory = nullptr;
    if (posix_memalign(&memory, alignof(Worker), sizeof(Worker))) return nullptr;
    fill_bytes(memory, 0, sizeof(Worker));
    Worker* w = static_cast<Worker*>(memory);
    char* arena = static_cast<char*>(mmap(nullptr, ARENA_BYTES, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (arena == MAP_FAILED) return free(w), nullptr;
    w->device = d;
    w->number = number;
    w->arena = arena;
#ifdef EMULATOR_ADDRESS
    __asan_poison_memory_region(arena, ARENA_BYTES);
#endif
    return w;
}

}  // namespace emulator

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emulator_close(emulator::Device* d) {
    pthread_mutex_lock(&d->mutex);
    d->quit = true;
    pthread_cond_broadcast(&d->wake);
    pthread_mutex_unlock(&d->mutex);
    for (unsigned i = 0; i < d->worker_count; ++i) {
        if (d->threads[i]) pthread_join(d->threads[i], nullptr);
        emulator::Worker* w = d->workers[i];
        for (unsigned s = 0; s < w->stack_count; ++s) emulator::stack_free(w->stacks[s]);
        for (unsigned t = 0; t < emulator::MAX_THREADS; ++t) free(w->threads[t].copies);
        for (unsigned k = 0; k < emulator::MAX_WARPS; ++k) {
            for (emulator::Slot *s = w->warps[k].slots, *next; s; s = next) next = s->next, free(s);
        }
#ifdef EMULATOR_ADDRESS
        __asan_unpoison_memory_region(w->arena, emulator::ARENA_BYTES);
#endif
        munmap(w->arena, emulator::ARENA_BYTES);
        free(w->places);
        free(w);
    }
    free(d->workers);
    free(d->threads);
    free(d);
}

namespace emulator {

// More workers, up to so many in all; false where there is no memory. Under the mutex, or before anyone knows the device.
static bool more_workers(Device* d, unsigned workers) {
    d->workers = static_cast<Worker**>(realloc(d->workers, workers * sizeof(Worker*)));
    d->threads = static_cast<pthread_t*>(realloc(d->threads, workers * sizeof(pthread_t)));
    for (unsigned i = d->worker_count; i < workers; d->worker_count = ++i) {
        Worker* w = worker_new(d, i);
        if (!w) return false;
        d->workers[i] = w;
        d->threads[i] = 0;
        if (i && pthread_create(&d->threads[i], nullptr, worker_main, w)) {
            munmap(w->arena, ARENA_BYTES);
            free(w);
            return false;
        }
    }
    return true;
}

}  // namespace emulator

// A device with that many workers; null where there is no memory.
EXPORT emulator::Device* emulator_open(unsigned workers) {
    using namespace emulator;
    Device* d = static_cast<Device*>(calloc(1, sizeof(Device)));
    pthread_mutex_init(&d->mutex, nullptr);
    pthread_cond_init(&d->wake, nullptr);
    pthread_cond_init(&d->idle, nullptr);
    d->usual = workers;
    if (more_workers(d, workers)) return d;
    emulator_close(d);
    return nullptr;
}

// Runs a launch to its end: null, or what went wrong, valid until the next launch.
EXPORT const char* emulator_launch(emulator::Device* d, const emulator::Job* job) {
    using namespace emulator;
    uint64_t blocks = static_cast<uint64_t>(job->grid[0]) * job->grid[1] * job->grid[2];
    uint64_t threads = blocks * (static_cast<uint64_t>(job->block[0]) * job->block[1] * job->block[2]);
    pthread_mutex_lock(&d->mutex);
    if (job->cooperative && blocks > d->worker_count && !more_workers(d, static_cast<unsigned>(blocks))) {
        pthread_mutex_unlock(&d->mutex);
        return "no memory for as many workers as a cooperative launch has blocks";
    }
    ++d->launches;
    d->next = 0;
    d->blocks = d->unfinished = blocks;
    d->taking_part = job->cooperative && blocks > d->usual ? static_cast<unsigned>(blocks) : d->usual;
    d->failed = 0;
    d->multiplier = blocks / 2 + (job->seed | 1) % (blocks / 2 + 1);
    while (gcd(d->multiplier, blocks) != 1) ++d->multiplier;
    // The caller takes part; waking another worker costs it some microseconds.
    uint64_t helpers = (blocks < d->taking_part ? blocks : d->taking_part) - 1;
    if (threads <= 512 && !DEAL && !job->cooperative) helpers = 0;
    if (DEAL) helpers = d->worker_count - 1;  // each looks whether it takes part
    d->job = job;
    d->tickets = static_cast<unsigned>(helpers);
    if (helpers == 1 && !DEAL) {
        pthread_cond_signal(&d->wake);
    } else if (helpers) {
        pthread_cond_broadcast(&d->wake);
    }
    pthread_mutex_unlock(&d->mutex);
#ifdef EMULATOR_THREAD
    device_release(d);
    __tsan_release(&d->synced[~d->launches & 1]);
#endif
    work(d, d->workers[0], job);
    pthread_mutex_lock(&d->mutex);
    if (DEAL) {
        while (d->tickets || d->active) pthread_cond_wait(&d->idle, &d->mutex);
    } else {
        d->tickets = 0;  // who has not come by now is too late
        while (d->active) pthread_cond_wait(&d->idle, &d->mutex);
    }
    d->job = nullptr;
    pthread_mutex_unlock(&d->mutex);
#ifdef EMULATOR_THREAD
    __tsan_acquire(&d->synced[d->launches & 1]);
#endif
    return d->failed ? d->failed_worker->report : nullptr;
}

// Before and after the host touches device memory, for ThreadSanitizer.
EXPORT void emulator_host(emulator::Device* d) {
#ifdef EMULATOR_THREAD
    __tsan_acquire(&d->synced[d->launches & 1]);
    __tsan_release(&d->synced[d->launches & 1]);
#else
    (void)d;
#endif
}

// Device memory: under AddressSanitizer this `malloc` surrounds it with redzones.
EXPORT void* emulator_alloc(size_t bytes) {
    void* address = nullptr;
    return posix_memalign(&address, 256, bytes ? bytes : 1) ? nullptr : address;
}
EXPORT void emulator_free(void* address) { free(address); }
