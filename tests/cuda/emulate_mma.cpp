/* tests/cuda/emulate_mma.cpp: tensor-core and asynchronous-copy instructions, as the PTX ISA describes them (mma.m16n8k16, ldmatrix, cp.async),
 * between the lanes of emulate.cpp's warps.
 *
 * What a wrong kernel does must show: an address that is not aligned or not in shared memory ends the program, a copy that is not
 * waited for has not arrived (its place holds NaN from its beginning on, for those who still read, too), and one that nobody waits for is
 * reported. Sums of a product are cut off
 * towards zero, as measurements of tensor cores found, not rounded.
 */
#include "emulate_mma.h"
#include <math.h>
#include <vector>

namespace {
struct copy { void *into; const void *from; size_t n; bool there; };
struct queue { std::vector<copy> copies; std::vector<size_t> groups; };  /* groups: how many copies had begun at each commit   */
queue queues[1024];
td__bank_count banks;

float cut_off(double x)
{
    const float f = (float)x;
    return isfinite(f) && fabs((double)f) > fabs(x) ? nextafterf(f, 0.0f) : f;
}

/* The 8 rows of a matrix are read in one pass if they touch each group of 4 banks once; rows at one place are read together. */
void count_banks(const char *const *row)
{
    int most = 1;
    for (int group = 0; group < 8; group++) {
        int passes = 0;
        for (int i = 0; i < 8; i++) {
            bool again = false;
            for (int j = 0; j < i; j++)
                again |= row[j] == row[i];
            passes += !again && (uintptr_t)row[i] / 16 % 8 == (uintptr_t)group;
        }
        most = passes > most ? passes : most;
    }
    banks.reads++;
    banks.conflicts += most - 1;
}
}

void td__emulated_ldmatrix(uint32_t (&into)[4], const void *row, bool turned)
{
    const int lane = td__emulated_lane(), g = lane / 4, t = lane % 4;
    if ((uintptr_t)row % 16 || !td__emulated_in_shared(row, 16))
        td__emulated_wrong("ldmatrix: an address that is not a multiple of 16 in the block's dynamic shared memory");
    td__emulated_show(&row, sizeof row);
    for (int m = 0; m < 4; m++) {
        const char *at[8];
        for (int r = 0; r < 8; r++)
            at[r] = *(const char *const *)td__emulated_of(8 * m + r);
        if (lane == 0)
            count_banks(at);
        if (!turned) {
            memcpy(&into[m], at[g] + 4 * t, 4);
        } else {
            memcpy(&into[m], at[2 * t] + 2 * g, 2);
            memcpy((char *)&into[m] + 2, at[2 * t + 1] + 2 * g, 2);
        }
    }
    td__emulated_seen();
}

void td__emulated_mma(float (&c)[4], const float (&a)[8], const float (&b)[4])
{
    const int lane = td__emulated_lane(), g = lane / 4, t = lane % 4;
    float mine[12];
    memcpy(mine, a, sizeof a);
    memcpy(mine + 8, b, sizeof b);
    td__emulated_show(mine, sizeof mine);
    const float *of_a[4], *of_b[2][4];                         /* of a row's four lanes, of two columns'                      */
    for (int i = 0; i < 4; i++) {
        of_a[i] = (const float *)td__emulated_of(4 * g + i);
        of_b[0][i] = (const float *)td__emulated_of(4 * (2 * t) + i) + 8;
        of_b[1][i] = (const float *)td__emulated_of(4 * (2 * t + 1) + i) + 8;
    }
    for (int i = 0; i < 4; i++) {
        const int row = i / 2, column = i % 2;                 /* row 0: g, 1: g + 8; column 2t, 2t + 1                       */
        double sum = c[i];
        for (int half = 0; half < 2; half++)                   /* k = 8 half + 2 pair + 0, 1                                  */
            for (int pair = 0; pair < 4; pair++) {
                const float *x = of_a[pair] + 4 * half + 2 * row, *y = of_b[column][pair] + 2 * half;
                sum += (double)x[0] * (double)y[0];
                sum += (double)x[1] * (double)y[1];
            }
        c[i] = cut_off(sum);
    }
    td__emulated_seen();
}

void td__emulated_copy(void *shared, const void *from, size_t n, bool there)
{
    if ((uintptr_t)shared % n || !td__emulated_in_shared(shared, n))
        td__emulated_wrong("cp.async: a destination that is not aligned in the block's dynamic shared memory");
    if ((uintptr_t)from % n)
        td__emulated_wrong("cp.async: a source that is not aligned");
    memset(shared, 0xff, n);                                   /* from now on nobody may count on what was there              */
    queues[td__emulated_number()].copies.push_back({ shared, from, n, there });
}

void td__emulated_commit()
{
    queue &q = queues[td__emulated_number()];
    q.groups.push_back(q.copies.size());
}

void td__emulated_wait(size_t later)
{
    queue &q = queues[td__emulated_number()];
    if (q.groups.size() <= later)
        return;
    const size_t groups = q.groups.size() - later, n = q.groups[groups - 1];
    for (size_t i = 0; i < n; i++) {
        const copy &c = q.copies[i];
        if (c.there)
            memcpy(c.into, c.from, c.n);
        else
            memset(c.into, 0, c.n);
    }
    q.copies.erase(q.copies.begin(), q.copies.begin() + (long)n);
    q.groups.erase(q.groups.begin(), q.groups.begin() + (long)groups);
    for (size_t &g : q.groups)
        g -= n;
}

void td__emulated_no_copies(int threads)
{
    for (int i = 0; i < threads; i++) {
        if (!queues[i].copies.empty())
            td__emulated_wrong("a thread has left before its copies arrived");
        queues[i].groups.clear();
    }
}

extern "C" {
td__bank_count td__emulated_banks(void) { return banks; }
void td__emulated_banks_reset(void) { banks = td__bank_count(); }
}
