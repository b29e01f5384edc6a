/* tests/steady/steady.c: after warm-up a training step asks the system for nothing.
 *
 * malloc, calloc, realloc, aligned_alloc, posix_memalign and mmap are interposed: this program's own definitions count the calls that come
 * from libtandem.so's code (by return address), on every thread, while `counting` is on. Also the pool's own count of system
 * calls and its live bytes must stand still. Run alone and by tandem run -n 2.
 */
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <tandem.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

static atomic_bool counting;
static atomic_long calls;
static uintptr_t low, high;

static void note(const void *caller)
{
    if (counting && (uintptr_t)caller >= low && (uintptr_t)caller < high)
        atomic_fetch_add(&calls, 1);
}
#define NOTE() note(__builtin_return_address(0))

void *malloc(size_t n)
{
    NOTE();
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t size)
{
    NOTE();
    return __libc_calloc(n, size);
}
void *realloc(void *p, size_t n)
{
    NOTE();
    return __libc_realloc(p, n);
}
void *aligned_alloc(size_t align, size_t n)
{
    NOTE();
    return __libc_memalign(align, n);
}
int posix_memalign(void **p, size_t align, size_t n)
{
    NOTE();
    return (*p = __libc_memalign(align, n)) ? 0 : ENOMEM;
}
/* both names: with 64-bit file offsets the library calls mmap64 */
void *our_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset) __asm__("mmap");
void *our_mmap64(void *at, size_t n, int prot, int flags, int fd, off_t offset) __asm__("mmap64");
void *our_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    NOTE();
    return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, offset);
}
void *our_mmap64(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    NOTE();
    return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, offset);
}

static int find(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)size, (void)unused;
    if (!strstr(info->dlpi_name, "libtandem.so"))
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type == PT_LOAD && (p->p_flags & PF_X)) {
            low = info->dlpi_addr + p->p_vaddr;
            high = low + p->p_memsz;
        }
    }
    return 1;
}

static int read_row(void *user, int64_t row, void *const *into)
{
    (void)user;
    float *x = into[0];
    for (int i = 0; i < 14 * 14; i++)
        x[i] = (float)((row * 7 + i) % 13);
    *(int64_t *)into[1] = row % 5;
    return 0;
}

static void steps(td_loader *data, td_module *net, td_optim *opt, int n)
{
    for (int i = 0; i < n; i++) {
        TD_SCOPE();
        td_batch b;
        if (!td_loader_next(data, &b))
            continue;
        td_tensor *loss = td_cross_entropy(td_forward(net, b.x), b.y, NULL);
        td_backward(loss);
        td_clip_grad_norm(opt, 1);
        td_optim_step(opt);
        td_item(loss);
    }
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    dl_iterate_phdr(find, NULL);
    td_module *net = td_nn_sequential(td_nn_conv2d(1, 4, 3, NULL), td_nn_batch_norm(4, NULL), td_nn_relu(), td_nn_max_pool2d(2, NULL),
                                      td_nn_dropout(0.2), td_nn_flatten(), td_nn_linear(144, 300, NULL), td_nn_gelu(), td_nn_linear(300, 5, NULL));
    td_ddp_new(net, &(td_ddp_opts){ .first_bucket_bytes = 4096, .bucket_bytes = 65536 });
    td_optim *opt = td_adamw_new(td_parameters(net), NULL);
    td_field field[2] = { { TD_SHAPE(1, 14, 14), TD_F32 }, { TD_SCALAR, TD_I64 } };
    td_loader *data = td_loader_new(td_dataset_new(&(td_dataset_source){ .rows = 2000, .field = field, .n_fields = 2, .read = read_row }, NULL),
                                    &(td_loader_opts){ .batch = 20, .shuffle = true, .threads = 2 });
    steps(data, net, opt, 120);   /* more than an epoch: also the loader's turn of an epoch is warm */
    td_memory_stats before = td_memory();
    long noticed = 0;
    counting = true;
    free(malloc(1));              /* from here, not from the library: must not count */
    steps(data, net, opt, 150);
    counting = false;
    td_memory_stats after = td_memory();
    noticed = calls;

    counting = true;              /* the counter itself works: a fresh large tensor must be noticed */
    calls = 0;
    TD_SCOPE();
    td_zeros(TD_SHAPE(100000000), TD_F32);     /* more than the pool reserves at a time */
    counting = false;
    long control = calls;

    int bad = low == 0 || noticed || control == 0 || after.system_calls != before.system_calls || after.live_bytes != before.live_bytes;
    if (bad || td_rank(td_world()) == 0)
        printf("rank %d over %s: %ld allocations by the library in 150 steps (control: %ld), pool asked the system %lld times, live bytes %+lld\n",
               td_rank(td_world()), td_comm_backend_name(td_world()), noticed, control, (long long)(after.system_calls - before.system_calls),
               (long long)(after.live_bytes - before.live_bytes));
    int status = td_finish();
    return status ? status : bad;
}
