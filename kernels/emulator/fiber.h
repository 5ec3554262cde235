// Fibers: stacks, and the switch between them. Each OS thread has its own; none migrates. The sanitizers
// are told of every switch, because they keep a shadow of each stack.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifdef EMULATOR_ADDRESS
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
void __asan_poison_memory_region(const volatile void*, size_t);
void __asan_unpoison_memory_region(const volatile void*, size_t);
}
#endif
#ifdef EMULATOR_THREAD
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned flags);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_func_entry(void*);
void __tsan_func_exit();
void __tsan_read_range(void*, unsigned long);
void __tsan_write_range(void*, unsigned long);
}
#endif

// Saves what a call preserves on the present stack, stores its pointer in *save, and goes on where `load` was
// saved. The sanitizers' shadows are the callers' business.
extern "C" void emulator_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, %function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch, .-emulator_switch
)");
#else
#error "the emulator's context switch exists for x86-64 and aarch64"
#endif

namespace emulator {

struct Stack {
    char *bottom, *top;
    void* fake_stack;  // AddressSanitizer's
    void* fiber;       // ThreadSanitizer's
};

constexpr size_t STACK_BYTES = 256 << 10, GUARD_BYTES = 64 << 10;

// Stack number `index` of a worker; null where there is no memory.
inline Stack* stack_new(unsigned index) {
    char* base = static_cast<char*>(mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base == MAP_FAILED) return nullptr;
    // Without a guard (too many mappings) overflows go unnoticed; nothing else changes.
    mprotect(base, GUARD_BYTES, PROT_NONE);
    Stack* stack = static_cast<Stack*>(calloc(1, sizeof(Stack)));
    stack->bottom = base + GUARD_BYTES;
    // Tops at the same offset would all compete for the same few lines of the cache.
    stack->top = stack->bottom + STACK_BYTES - (index * 5 % 64) * 128;
    return stack;
}

inline void stack_free(Stack* stack) {
#ifdef EMULATOR_THREAD
    if (stack->fiber) __tsan_destroy_fiber(stack->fiber);
#endif
    munmap(stack->bottom - GUARD_BYTES, GUARD_BYTES + STACK_BYTES);
    free(stack);
}

// Makes `main` what runs at the first switch to the stack; returns the pointer to load. What an abandoned
// fiber left on it does not matter.
inline void* stack_prepare(Stack* stack, void (*main)()) {
#ifdef EMULATOR_ADDRESS
    __asan_unpoison_memory_region(stack->bottom, STACK_BYTES);
    stack->fake_stack = nullptr;
#endif
    uintptr_t top = reinterpret_cast<uintptr_t>(stack->top) & ~uintptr_t(15);
#ifdef __x86_64__
    void** frame = reinterpret_cast<void**>(top - 64);  // six registers, the return address, and one for alignment:
    for (int i = 0; i < 6; ++i) frame[i] = nullptr;     // at a function's entry rsp % 16 is 8
    frame[6] = reinterpret_cast<void*>(main);
    frame[7] = nullptr;
#else
    void** frame = reinterpret_cast<void**>(top - 160);
    for (int i = 0; i < 20; ++i) frame[i] = nullptr;
    frame[11] = reinterpret_cast<void*>(main);  // x30
#endif
    return frame;
}

}  // namespace emulator
