/* tests/cuda/emulate.cpp: grids on the CPU (emulate.h), and a device "cuda" whose memory is the host's, by the table of tensor/cuda.
 *
 * A round lets every thread run to its next wait. After it, threads that wait for a barrier of the block go on when all of them do, those
 * of a warp when all of that warp do; when nobody can go on, the kernel is wrong.
 */
#undef _FORTIFY_SOURCE                        /* its longjmp takes a jump to another stack for an error                     */
#include <setjmp.h>
#include <ucontext.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vector>
#include "cuda.h"
#include "emulate_graph.h"
#include "emulate_later.h"
#include "trap_record.h"
#include "emulate_mma.h"

dim3 td__emulated_thread, td__emulated_block, td__emulated_block_size, td__emulated_grid_size;

namespace {
enum state { RUNNING, WAITS_FOR_BLOCK, WAITS_FOR_WARP, DONE };
enum { STACK = 96 * 1024, MOST = 1024 };

struct fiber {
    ucontext_t context;                        /* entered once; after that jumps, which need no system call                   */
    jmp_buf at;
    bool entered;
    state now;
    dim3 index;
    int number;
    bool made;
    char exchanged[64];
};
fiber *fibers;
jmp_buf scheduler;
int running = -1;
const std::function<void()> *work;
std::vector<char> dynamic_bytes;
size_t shared_limit = 48 * 1024;               /* until a kernel asks for more                                              */
const char *row_name;

void switch_out(state why)
{
    fiber &f = fibers[running];
    f.now = why;
    if (_setjmp(f.at) == 0)
        _longjmp(scheduler, 1);
}

void fiber_main()
{
    for (;;) {                                 /* a context serves block after block */
        (*work)();
        switch_out(DONE);
    }
}

void make(fiber &f, int number)
{
    void *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED)
        abort();
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stack;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = NULL;
    makecontext(&f.context, fiber_main, 0);
    f.number = number;
    f.made = true;
}

[[noreturn]] void wrong(const char *what)
{
    fprintf(stderr, "emulated kernel \"%s\", block (%u,%u,%u): %s\n", row_name, blockIdx.x, blockIdx.y, blockIdx.z, what);
    abort();
}

void run_thread(int i)
{
    running = i;
    threadIdx = fibers[i].index;
    fibers[i].now = RUNNING;
    if (_setjmp(scheduler) == 0) {
        if (fibers[i].entered)
            _longjmp(fibers[i].at, 1);
        fibers[i].entered = true;
        setcontext(&fibers[i].context);
    }
    running = -1;
}

/* Those that may go on after a round; 0 when all are done. */
int release(int n)
{
    int done = 0, at_block = 0, released = 0;
    for (int i = 0; i < n; i++)
        done += fibers[i].now == DONE, at_block += fibers[i].now == WAITS_FOR_BLOCK;
    if (done == n)
        return 0;
    if (at_block == n) {
        for (int i = 0; i < n; i++)
            fibers[i].now = RUNNING;
        return n;
    }
    for (int w = 0; w < n; w += 32) {
        int waiting = 0;
        for (int i = w; i < w + 32; i++)
            waiting += fibers[i].now == WAITS_FOR_WARP;
        if (waiting != 32)
            continue;
        for (int i = w; i < w + 32; i++)
            fibers[i].now = RUNNING;
        released += 32;
    }
    if (!released)
        wrong(done ? "some threads have left, others wait at a barrier or shuffle" : "threads wait at different barriers or shuffles");
    return released;
}

void run_block(int n, bool reverse)
{
    for (int i = 0; i < n; i++)
        fibers[i].now = RUNNING;
    do {
        for (int k = 0; k < n; k++) {
            int i = reverse ? n - 1 - k : k;
            if (fibers[i].now == RUNNING)
                run_thread(i);
        }
    } while (release(n));
    td__emulated_no_copies(n);
}
}

void td__emulated_barrier(bool warp)
{
    switch_out(warp ? WAITS_FOR_WARP : WAITS_FOR_BLOCK);
    threadIdx = fibers[running].index;
}

int td__emulated_lane()
{
    return fibers[running].number & 31;
}

void td__emulated_exchange(void *value, size_t n, int from)
{
    fiber &f = fibers[running];
    memcpy(f.exchanged, value, n);
    td__emulated_barrier(true);
    memcpy(value, fibers[(f.number & ~31) + from].exchanged, n);
    td__emulated_barrier(true);
}

void td__emulated_show(const void *value, size_t n)
{
    memcpy(fibers[running].exchanged, value, n);
    td__emulated_barrier(true);
}

const void *td__emulated_of(int lane)
{
    return fibers[(fibers[running].number & ~31) + lane].exchanged;
}

void td__emulated_seen()
{
    td__emulated_barrier(true);
}

int td__emulated_number()
{
    return fibers[running].number;
}

bool td__emulated_in_shared(const void *p, size_t n)
{
    const char *at = (const char *)p, *begin = dynamic_bytes.data();
    return at >= begin && at + n <= begin + dynamic_bytes.size() - 16;
}

void td__emulated_wrong(const char *what)
{
    wrong(what);
}

void td__emulated_shared_up_to(size_t bytes)
{
    shared_limit = bytes;
}

void *td__emulated_shared()
{
    return dynamic_bytes.data();
}

void td__emulate(const char *row, dim3 grid, dim3 block, size_t shared, const std::function<void()> &thread)
{
    const char *order = getenv("TANDEM_EMULATE");
    const bool reverse = order && strcmp(order, "reverse") == 0;
    const unsigned n = block.x * block.y * block.z;
    const size_t limit = shared_limit;
    if (td__emulated_later([=] { shared_limit = limit; td__emulate(row, grid, block, shared, thread); })) {
        shared_limit = 48 * 1024;
        return;
    }
    row_name = row;
    if (n == 0 || n > MOST || n % 32 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535 || shared > 227 * 1024 ||
        shared > shared_limit)
        wrong("a grid or block that CUDA would refuse, or one that is no multiple of 32 threads");
    if (!fibers)
        fibers = (fiber *)calloc(MOST, sizeof *fibers);
    for (unsigned i = 0; i < n; i++) {
        if (!fibers[i].made)
            make(fibers[i], (int)i);
        fibers[i].index = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
    }
    dynamic_bytes.assign(shared + 16, (char)0xff);                   /* NaN in every float type: shared memory is not zeroed */
    shared_limit = 48 * 1024;
    work = &thread;
    blockDim = block, gridDim = grid;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = dim3(x, y, z);
                run_block((int)n, reverse);
            }
}

/* ---- what plugins/cuda gives to the kernels' files -------------------------------------------------------------------------------------- */
extern "C" {
const char *td__emulated_row(void);            /* of the launch before                                                      */
const char *td__emulated_row(void) { return row_name; }
int   td__cuda_stream(void) { return 0; }
void  td__cuda_launched(const char *row) { (void)row; }
int   td__cuda_processors(void) { return 2; }
void *td__alloc_as(size_t bytes, int category);        /* base.h is C                                                            */
void  td__free(void *block);
/* Of the pool, so that tests count it and make it fail; aligned to 512 bytes as a GPU's, the pool's own address in front of it. */
void *td__cuda_scratch(size_t bytes)
{
    char *own = (char *)td__alloc_as(bytes + 1024, 6);  /* TD_MEMORY_WORKSPACE                                                    */
    if (!own)
        return NULL;
    char *p = (char *)(((uintptr_t)own + 512 + 511) / 512 * 512);
    ((void **)p)[-1] = own;
    td__emulated_taken(p);
    return memset(p, 0xff, bytes);
}
static void scratch_give(void *block)
{
    td__free(block ? ((void **)block)[-1] : NULL);
}
extern long td__emulated_waits;
void  td__cuda_scratch_free(void *block)
{
    if (!block || !td__emulated_keeps(block, scratch_give))
        scratch_give(block);
}
int   td__cuda_read(void *into, const void *from, size_t n)
{
    int code = td__emulated_refuses("a kernel's result is read by the host");
    td__emulated_waits++;
    if (!code)
        memcpy(into, from, n);
    return code;
}

/* Index checks: device.c decides when the host sees them. */
td_trap_record td__emulated_trap_seen;
static td_trap_record trap = { 0, 0, 0, 0, 0, 0, &td__emulated_trap_seen };
td_trap_record *td__cuda_trap(int64_t *launch)
{
    static int64_t launches;
    *launch = ++launches;
    return &trap;
}
const int32_t *td__cuda_trap_word(void) { return &trap.set; }
void td__emulated_trap_clear(void) { trap.set = td__emulated_trap_seen.set = 0; }
}
