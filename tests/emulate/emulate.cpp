/* SPDX-License-Identifier: MIT
 *
 * Runs a grid on a CPU: blocks one after the other, the threads of a block as fibers of one thread of the system.
 *
 * A fiber runs until it must wait for others: at a barrier or a shuffle. Who goes first is up to GGMLQ_EMULATE_ORDER:
 *   forward    ascending
 *   backward   descending: what an earlier order finished in time is now late
 *   shuffled   by chance, anew for each block
 * so that two threads with no barrier between a write and a read of the same place get it wrong in one of the orders. Shared
 * memory starts as NaN in every block. GGMLQ_EMULATE_WAVE is 32 or 64, the lanes that take turns before another wave does, and
 * warpSize. Errors end the program: threads at different barriers, lanes of a shuffle that are elsewhere or done, a deadlock.
 */
#include "cuda/cuda_fp16.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#ifdef EMULATED_ADDRESS_SANITIZER
#    include <sanitizer/common_interface_defs.h>
#endif

/* --- settings --------------------------------------------------------------------------------------------------- */

static const char * setting(const char * name, const char * usual) {
    const char * found = getenv(name);
    return found ? found : usual;
}

static int wave_of_environment() {
    const int wave = atoi(setting("GGMLQ_EMULATE_WAVE", "32"));
    if (wave != 32 && wave != 64) {
        fprintf(stderr, "GGMLQ_EMULATE_WAVE: wanted 32 or 64\n");
        exit(2);
    }
    return wave;
}

const int warpSize = wave_of_environment();

/* --- from one stack to another ---------------------------------------------------------------------------------- */

[[noreturn]] static void run_fiber();

#ifdef __x86_64__
/* What a call must keep, and the stack. Half of the time of kernels that exchange a lot was setjmp's and longjmp's; under the address sanitizer, which
 * clears a whole stack at every longjmp, seven eighths. */
typedef void * place; /* the stack pointer, behind six registers */
extern "C" void emulated_change(place * from, place to);
asm(".text\n"
    "emulated_change:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
    "    movq %rsp, (%rdi)\n    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
    "    ret\n");
static void change(place & from, place & to) { emulated_change(&from, to); }
static void prepare(place & at, char * stack, size_t bytes) {
    void ** top = (void **) ((uintptr_t) (stack + bytes) & ~(uintptr_t) 15);
    *--top = nullptr; /* run_fiber's return address */
    *--top = (void *) run_fiber;
    for (int i = 0; i < 6; ++i) {
        *--top = nullptr;
    }
    at = top;
}
#else
struct place { ucontext_t start; jmp_buf at; bool started; };
static void change(place & from, place & to) {
    if (_setjmp(from.at) == 0) {
        from.started = true;
        if (to.started) {
            _longjmp(to.at, 1);
        }
        setcontext(&to.start);
    }
}
static void prepare(place & at, char * stack, size_t bytes) {
    at.started = false;
    getcontext(&at.start);
    at.start.uc_stack.ss_sp   = stack;
    at.start.uc_stack.ss_size = bytes;
    at.start.uc_link          = nullptr;
    makecontext(&at.start, run_fiber, 0);
}
#endif

/* --- fibers ----------------------------------------------------------------------------------------------------- */

dim3 threadIdx, blockIdx, blockDim, gridDim;

enum state { READY, AT_SHUFFLE, AT_BARRIER, DONE };

struct copy { uint32_t to; const void * from; int valid; };

struct fiber {
    place      at;
    std::unique_ptr<char[]> stack;
    enum state state;
    int        line;                        /* AT_BARRIER                      */
    int        barrier, wanted;             /* its number, and for how many threads */
    int64_t    shuffles;                    /* so far; AT_SHUFFLE: this one too */
    int        mask, width, from;           /* mask -1: any lane              */
    uint32_t   given, got;
    std::vector<std::vector<copy>> copies;  /* groups that aren't waited for yet; the last one is open */
    void     * kept;                        /* of the address sanitizer        */
};

enum { STACK_BYTES = 1 << 18, MOST_THREADS = 1024 };

static fiber   fibers[MOST_THREADS];
static int     current, n_threads, vote, result_of_vote;
static place   scheduler;
static const std::function<void()> * body;

[[noreturn]] static void fail(const char * what, int a = 0, int b = 0) {
    fprintf(stderr, "emulated kernel, block (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z);
    fprintf(stderr, what, a, b);
    fprintf(stderr, "\n");
    abort();
}

/* The address sanitizer wants to know which stack is in use. */
struct stack_bounds { const void * bottom; size_t bytes; };
static stack_bounds scheduler_stack;

#ifdef EMULATED_ADDRESS_SANITIZER
static void leave_for(void ** kept, const stack_bounds & to)     { __sanitizer_start_switch_fiber(kept, to.bottom, to.bytes); }
static void arrived(void * kept, stack_bounds * from = nullptr) { __sanitizer_finish_switch_fiber(kept, from ? &from->bottom : nullptr, from ? &from->bytes : nullptr); }
#else
static void leave_for(void **, const stack_bounds &) {}
static void arrived(void *, stack_bounds * = nullptr) {}
#endif

static void wait_as(enum state state) {
    fiber & me = fibers[current];
    me.state = state;
    leave_for(&me.kept, scheduler_stack);
    change(me.at, scheduler);
    arrived(fibers[current].kept, &scheduler_stack);
}

static void run_fiber() { /* one body after the other: the fiber is kept for the next block */
    arrived(nullptr, &scheduler_stack);
    for (;;) {
        (*body)();
        wait_as(DONE);
    }
}

static void resume(int i) {
    static void * kept;
    fiber & f = fibers[i];
    current   = i;
    threadIdx = dim3((unsigned int) i);
    if (!f.stack) {
        f.stack.reset(new char[STACK_BYTES]);
        prepare(f.at, f.stack.get(), STACK_BYTES);
    }
    leave_for(&kept, { f.stack.get(), STACK_BYTES });
    change(scheduler, f.at);
    arrived(kept);
}

static void wait_at_barrier(int barrier, int wanted, int line) {
    fiber & me = fibers[current];
    me.barrier = barrier;
    me.wanted  = wanted;
    me.line    = line;
    wait_as(AT_BARRIER);
}

int emulated_barrier(int my_vote, int line) {
    vote |= my_vote;
    wait_at_barrier(0, n_threads, line);
    return result_of_vote;
}

void emulated_named_barrier(int id, int threads) {
    if (id < 1 || id > 15 || threads < 32 || threads % 32 != 0) {
        fail("barrier %d for %d threads", id, threads);
    }
    wait_at_barrier(id, threads, -id);
}

static uint32_t shuffle_from(uint32_t value, int mask, int from, int width) {
    fiber & me = fibers[current];
    me.given = value;
    me.mask  = mask;
    me.width = width;
    me.from  = from;
    ++me.shuffles;
    wait_as(AT_SHUFFLE);
    return me.got;
}

uint32_t emulated_shuffle_xor(uint32_t value, int mask, int width) { return shuffle_from(value, mask, (current % width) ^ mask, width); }
uint32_t emulated_shuffle    (uint32_t value, int lane, int width) { return shuffle_from(value, -1, lane, width); }

int emulated_lane(void) { return current % 32; }

const emulated_lanes & emulated_meet(emulated_meeting what, const uint32_t * mine, int n) {
    static emulated_lanes lanes[MOST_THREADS/32][2]; /* in turns: some leave before others have read */
    fiber & me = fibers[current];
    emulated_lanes & all = lanes[current/32][me.shuffles & 1];
    std::copy(mine, mine + n, all.of[current % 32]);
    shuffle_from(0, -2 - (int) what, -1, 32);
    return all;
}

/* --- shared memory of a launch, and copies into it --------------------------------------------------------------- */

enum { MOST_SHARED_BYTES = 232448 };
alignas(1024) static uint8_t dynamic_shared[MOST_SHARED_BYTES];
uint8_t * const emulated_dynamic_shared = dynamic_shared;
size_t emulated_dynamic_bytes;

static bool copies_wait() {
    static const bool wait = strcmp(setting("GGMLQ_EMULATE_ORDER", "forward"), "backward") != 0;
    return wait;
}

static void do_copy(const copy & c) {
    uint8_t * to = (uint8_t *) emulated_shared_at(c.to, 16);
    memcpy(to, c.from, (size_t) c.valid);
    memset(to + c.valid, 0, (size_t) (16 - c.valid));
}

void emulated_copy_async(uint32_t to, const void * from, int valid) {
    if (valid < 0 || valid > 16 || (valid > 0 && (uintptr_t) from % 16 != 0)) {
        fail("a copy of %d bytes from an address that 16 doesn't divide", valid);
    }
    auto & groups = fibers[current].copies;
    if (copies_wait()) {
        groups.resize(std::max<size_t>(groups.size(), 1));
        groups.back().push_back({ to, from, valid });
    } else {
        do_copy({ to, from, valid });
    }
}

void emulated_copy_commit(void) {
    auto & groups = fibers[current].copies;
    groups.resize(std::max<size_t>(groups.size(), 1) + 1);
}

/* -1: those that aren't committed, too. */
void emulated_copy_wait(int groups_left) {
    auto & groups = fibers[current].copies;
    while ((int) groups.size() > groups_left + 1) {
        for (const copy & c : groups.front()) {
            do_copy(c);
        }
        groups.erase(groups.begin());
    }
}

float emulated_half(uint32_t bits) { return __half2float({ (uint16_t) bits }); }

/* --- a block ---------------------------------------------------------------------------------------------------- */

/* Lets `width` lanes from `first` exchange their values, if all are there. */
static bool shuffle(int first, int width) {
    int waiting = 0;
    for (int i = first; i < first + width; ++i) {
        waiting += fibers[i].state == AT_SHUFFLE;
    }
    if (waiting < width) {
        return false;
    }
    for (int i = first; i < first + width; ++i) {
        fiber & f = fibers[i];
        if (f.shuffles != fibers[first].shuffles || f.mask != fibers[first].mask || f.width != width) {
            fail("lanes at different shuffles");
        }
        f.got   = f.from >= 0 && f.from < width ? fibers[first + f.from].given : f.given;
        f.state = READY;
    }
    return true;
}

static uint32_t random_bits() {
    static uint32_t state = 2463534242u;
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

static void put_in_order(std::vector<int> & numbers) {
    static const std::string order = setting("GGMLQ_EMULATE_ORDER", "forward");
    if (order == "backward") {
        std::reverse(numbers.begin(), numbers.end());
    } else if (order == "shuffled") {
        for (size_t i = numbers.size(); i > 1; --i) {
            std::swap(numbers[i - 1], numbers[random_bits() % i]);
        }
    } else if (order != "forward") {
        fail("GGMLQ_EMULATE_ORDER: wanted forward, backward or shuffled");
    }
}

/* Until none of the wave can go on alone. */
static void run_wave(const std::vector<int> & lanes) {
    const int first = *std::min_element(lanes.begin(), lanes.end()), n = (int) lanes.size();
    for (bool again = true; again;) {
        int width = 0;
        for (int i : lanes) {
            if (fibers[i].state == READY) {
                resume(i);
            }
            width = fibers[i].state == AT_SHUFFLE ? fibers[i].width : width;
        }
        again = false;
        for (int i = first; width > 0 && i < first + n; i += width) {
            again |= shuffle(i, width);
        }
    }
}

static void run_block() {
    std::vector<std::vector<int>> waves;
    std::vector<int> order;
    for (int i = 0; i < n_threads; i += warpSize) {
        order.push_back(i/warpSize);
        waves.emplace_back();
        for (int j = i; j < i + warpSize && j < n_threads; ++j) {
            waves.back().push_back(j);
        }
        put_in_order(waves.back());
    }
    put_in_order(order);
    for (int i = 0; i < n_threads; ++i) {
        fibers[i].state    = READY;
        fibers[i].shuffles = 0;
        fibers[i].copies.clear();
    }
    vote = 0;
    for (;;) {
        for (int wave : order) {
            run_wave(waves[wave]);
        }
        int done = 0, waiting[16] = {};
        const fiber * first = nullptr;
        for (int i = 0; i < n_threads; ++i) {
            const fiber & f = fibers[i];
            if (f.state == AT_SHUFFLE) {
                fail("thread %d waits in a shuffle for lanes that are elsewhere", i);
            }
            done += f.state == DONE;
            waiting[f.barrier] += f.state == AT_BARRIER;
            if (f.state == AT_BARRIER && f.barrier == 0) {
                first = first ? first : &f;
                if (f.line != first->line) {
                    fail("threads at the barriers of lines %d and %d", first->line, f.line);
                }
            }
        }
        if (done == n_threads) {
            return;
        }
        bool again = false;
        for (int i = 0; i < n_threads; ++i) {
            fiber & f = fibers[i];
            if (f.state == AT_BARRIER && waiting[f.barrier] == f.wanted) {
                f.state = READY;
                again   = true;
                if (f.barrier == 0) {
                    result_of_vote = vote;
                }
            }
        }
        if (!again) {
            first = first ? first : std::find_if(fibers, fibers + n_threads, [](const fiber & f) { return f.state == AT_BARRIER; });
            fail(first->line < 0 ? "threads at barrier %d, %d are done" : "threads at the barrier of line %d, %d are done", abs(first->line), done);
        }
        if (waiting[0] == n_threads) {
            vote = 0;
        }
    }
}

#ifndef EMULATED_ADDRESS_SANITIZER
extern char __start_emulated_shared[], __stop_emulated_shared[];
__shared__ char at_least_one; /* or the section has no bounds */
#endif

void emulated_launch(dim3 grid, dim3 block, hipStream_t, const std::function<void()> & thread) {
    n_threads = (int) block.x;
    if (block.y != 1 || block.z != 1 || n_threads < 1 || n_threads > MOST_THREADS || grid.x == 0 || grid.y > 65535 || grid.z > 65535 || grid.y*grid.z == 0) {
        fail("a grid that no GPU takes");
    }
    gridDim  = grid;
    blockDim = block;
    body     = &thread;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
#ifndef EMULATED_ADDRESS_SANITIZER
                at_least_one = 0;
                memset(__start_emulated_shared, 0xff, (size_t) (__stop_emulated_shared - __start_emulated_shared));
#endif
                memset(dynamic_shared, 0xff, emulated_dynamic_bytes);
                run_block();
            }
        }
    }
}

/* --- memory and errors ------------------------------------------------------------------------------------------ */

static hipError_t last_error = hipSuccess;
static hipError_t give(hipError_t error) {
    last_error = error == hipSuccess ? last_error : error;
    return error;
}

static std::map<const char *, size_t> & allocated() {
    static std::map<const char *, size_t> all;
    return all;
}

hipError_t hipGetLastError(void) {
    const hipError_t error = last_error;
    last_error = hipSuccess;
    return error;
}

const char * hipGetErrorString(hipError_t error) {
    return error == hipSuccess ? "no error" : error == hipErrorOutOfMemory ? "out of memory" : error == hipErrorNotSupported ? "not emulated" : "invalid value";
}

hipError_t hipDriverGetVersion(int * version)  { *version = 60000000; return hipSuccess; }
hipError_t hipRuntimeGetVersion(int * version) { *version = 60000000; return hipSuccess; }
hipError_t hipGetDeviceCount(int * count)      { *count = 1; return hipSuccess; }
hipError_t hipGetDevice(int * device)          { *device = 0; return hipSuccess; }
hipError_t hipSetDevice(int device)            { return give(device == 0 ? hipSuccess : hipErrorInvalidValue); }
hipError_t hipStreamSynchronize(hipStream_t)   { return hipSuccess; }
hipError_t hipDeviceSynchronize(void)          { return hipSuccess; }

hipError_t hipGetDeviceProperties(hipDeviceProp_t * properties, int) {
    *properties = {};
    snprintf(properties->name, sizeof(properties->name), "emulator");
    snprintf(properties->gcnArchName, sizeof(properties->gcnArchName), "waves of %d", warpSize);
    return hipSuccess;
}

hipError_t hipFuncGetAttributes(hipFuncAttributes * attributes, const void *) {
    attributes->numRegs = 1;
    return hipSuccess;
}

hipError_t hipPointerGetAttributes(hipPointerAttribute_t * attributes, const void * pointer) {
    auto after = allocated().upper_bound((const char *) pointer);
    const bool inside = after != allocated().begin() && (const char *) pointer < std::prev(after)->first + std::prev(after)->second;
    *attributes = { inside ? hipMemoryTypeDevice : hipMemoryTypeUnregistered, 0 };
    return hipSuccess;
}

hipError_t hipMalloc(void ** pointer, size_t bytes) {
    if (bytes > (size_t) 1 << 40 || posix_memalign(pointer, 256, bytes ? bytes : 1) != 0) {
        *pointer = nullptr;
        return give(hipErrorOutOfMemory);
    }
    memset(*pointer, 0xcd, bytes);
    allocated()[(const char *) *pointer] = bytes;
    return hipSuccess;
}

hipError_t hipFree(void * pointer) {
    if (pointer && allocated().erase((const char *) pointer) == 0) {
        return give(hipErrorInvalidValue);
    }
    free(pointer);
    return hipSuccess;
}

hipError_t hipMemcpy(void * to, const void * from, size_t bytes, hipMemcpyKind) {
    if (bytes) {
        memmove(to, from, bytes);
    }
    return hipSuccess;
}

hipError_t hipMemset(void * to, int byte, size_t bytes) {
    if (bytes) {
        memset(to, byte, bytes);
    }
    return hipSuccess;
}

hipError_t hipMemcpyAsync(void * to, const void * from, size_t bytes, hipMemcpyKind kind, hipStream_t) { return hipMemcpy(to, from, bytes, kind); }
hipError_t hipMemsetAsync(void * to, int byte, size_t bytes, hipStream_t) { return hipMemset(to, byte, bytes); }
