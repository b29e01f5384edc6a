/* tests/cuda/test_mma.cpp: the emulated instructions of tensor/cuda/mma.h against the tables of the PTX ISA (mma.m16n8k16 with 16-bit floats, ldmatrix
 * .x4 and .trans, cp.async), written down here once more, element by element.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
extern "C" {
#include <cmocka.h>
}
#include "mma.h"

static float small(uint32_t i) { return (float)((int)(i * 2654435761u >> 28) - 8); }          /* -8 … 7: exact in any type   */
static uint32_t bits(float x, bool f16) { return f16 ? __float2half_rn(x).bits : __float2bfloat16_rn(x).bits; }

/* ---- mma: "groupID = laneid >> 2, threadID_in_group = laneid % 4" ------------------------------------------------------------------------- */
static float A[16][16], B[16][8], C[16][8], D[16][8];

template <class T> static void product_kernel(bool f16)
{
    const int lane = threadIdx.x, groupID = lane >> 2, threadID_in_group = lane % 4;
    uint32_t a[4] = { 0 }, b[2] = { 0 };
    float c[4];
    for (int i = 0; i < 8; i++) {
        const int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? groupID : groupID + 8;
        const int col = i < 4 ? threadID_in_group * 2 + (i & 1) : threadID_in_group * 2 + (i & 1) + 8;
        a[i / 2] |= bits(A[row][col], f16) << (16 * (i & 1));
    }
    for (int i = 0; i < 4; i++) {
        const int row = i < 2 ? threadID_in_group * 2 + (i & 1) : threadID_in_group * 2 + (i & 1) + 8, col = groupID;
        b[i / 2] |= bits(B[row][col], f16) << (16 * (i & 1));
    }
    for (int i = 0; i < 4; i++)
        c[i] = C[i < 2 ? groupID : groupID + 8][threadID_in_group * 2 + (i & 1)];
    td_mma<T>(c, a, b[0], b[1]);
    for (int i = 0; i < 4; i++)
        D[i < 2 ? groupID : groupID + 8][threadID_in_group * 2 + (i & 1)] = c[i];
}

static void product(void **state)
{
    (void)state;
    for (int f16 = 0; f16 < 2; f16++) {
        for (int i = 0; i < 16; i++) {
            for (int j = 0; j < 16; j++)
                A[i][j] = small((uint32_t)(i * 16 + j + 1));
            for (int j = 0; j < 8; j++)
                B[i][j] = small((uint32_t)(i * 8 + j + 1000)), C[i][j] = small((uint32_t)(i * 8 + j + 2000)) / 4;
        }
        if (f16)
            TD_LAUNCH("mma", 1, 32, 0, (product_kernel<td_half>), true);
        else
            TD_LAUNCH("mma", 1, 32, 0, (product_kernel<td_bfloat>), false);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                float want = C[i][j];
                for (int k = 0; k < 16; k++)
                    want += A[i][k] * B[k][j];
                assert_true(D[i][j] == want);
            }
    }
    C[0][0] = 1, A[0][0] = 0x1p-12f, B[0][0] = -0x1p-13f;      /* a sum is cut off, not rounded                                */
    for (int k = 1; k < 16; k++)
        A[0][k] = 0;
    TD_LAUNCH("mma", 1, 32, 0, (product_kernel<td_bfloat>), false);
    assert_true(D[0][0] == 1 - 0x1p-24f);
    B[0][0] = -0x1p-14f;
    TD_LAUNCH("mma", 1, 32, 0, (product_kernel<td_bfloat>), false);
    assert_true(D[0][0] == 1 - 0x1p-24f);
}

/* ---- ldmatrix: thread t of the warp gets elements (t % 4) * 2 and one more of row t / 4; rows come from addresses of threads 8m … 8m + 7 ---------- */
static uint32_t got[32][4];

static void matrices_kernel(int step, bool turned)
{
    TD_SHARED(uint16_t, shared);
    for (int i = threadIdx.x; i < 32 * step / 2; i += 32)
        shared[i] = (uint16_t)i;
    __syncwarp();
    const void *row = (char *)shared + (threadIdx.x * 5 % 32) * step;        /* rows in no order                              */
    if (turned)
        td_ldmatrix_turned(got[threadIdx.x], row);
    else
        td_ldmatrix(got[threadIdx.x], row);
}

static void matrices(void **state)
{
    (void)state;
    for (int turned = 0; turned < 2; turned++) {
        td__emulated_banks_reset();
        TD_LAUNCH("ldmatrix", 1, 32, 32 * 16, matrices_kernel, 16, turned);
        for (int t = 0; t < 32; t++)
            for (int m = 0; m < 4; m++)
                for (int e = 0; e < 2; e++) {
                    const int row = turned ? t % 4 * 2 + e : t / 4, col = turned ? t / 4 : t % 4 * 2 + e;
                    assert_int_equal(got[t][m] >> (16 * e) & 0xffff, (8 * m + row) * 5 % 32 * 8 + col);
                }
        assert_int_equal(td__emulated_banks().reads, 4);
        assert_int_equal(td__emulated_banks().conflicts, 0);   /* eight odd multiples of 16 bytes apart                       */
    }
    /* rows 128 bytes apart lie over each other in the banks */
    td__emulated_banks_reset();
    TD_LAUNCH("ldmatrix", 1, 32, 32 * 128, matrices_kernel, 128, false);
    assert_int_equal(td__emulated_banks().conflicts, 4 * 7);
}

/* ---- registers: the lower element in the lower half; a result is the next product's A ----------------------------------------------------------- */
static float E[16][16], F[8][16];

static void chain_kernel()
{
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    float c[2][4];
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < 4; i++)
            c[n][i] = E[g + i / 2 * 8][n * 8 + 2 * t + i % 2];
    const uint32_t a[4] = { td_pair<td_bfloat>(c[0][0], c[0][1]), td_pair<td_bfloat>(c[0][2], c[0][3]), td_pair<td_bfloat>(c[1][0], c[1][1]),
                            td_pair<td_bfloat>(c[1][2], c[1][3]) };
    float d[4] = { 0, 0, 0, 0 };
    td_mma<td_bfloat>(d, a, td_pair<td_bfloat>(F[g][2 * t], F[g][2 * t + 1]), td_pair<td_bfloat>(F[g][2 * t + 8], F[g][2 * t + 9]));
    for (int i = 0; i < 4; i++)
        D[g + i / 2 * 8][2 * t + i % 2] = d[i];
}

static void chain(void **state)
{
    (void)state;
    for (int i = 0; i < 256; i++)
        E[i / 16][i % 16] = small((uint32_t)i + 5000);
    for (int i = 0; i < 128; i++)
        F[i / 16][i % 16] = small((uint32_t)i + 6000);
    TD_LAUNCH("mma", 1, 32, 0, chain_kernel);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float want = 0;
            for (int k = 0; k < 16; k++)
                want += E[i][k] * F[j][k];
            assert_true(D[i][j] == want);
        }
}

/* ---- cp.async: by groups, zeroes for what is not there, nothing before its time ------------------------------------------------------------------ */
static uint32_t from[8] __align__(16) = { 1, 2, 3, 4, 5, 6, 7, 8 }, seen[4][8];

static void copies_kernel()
{
    TD_SHARED(uint32_t, shared);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 8; i++)
            shared[i] = 77;
        td_copy_async<16>(shared, from, true);
        td_copies_commit();
        td_copy_async<16>(shared + 4, from + 4, false);
        td_copy_async<4>(shared + 5, from + 7, true);
        td_copies_commit();
        memcpy(seen[0], shared, 32);
        td_copies_wait<2>();
        memcpy(seen[1], shared, 32);
        td_copies_wait<1>();
        memcpy(seen[2], shared, 32);
        td_copies_wait<0>();
        memcpy(seen[3], shared, 32);
    }
}

static void copies(void **state)
{
    (void)state;
    static const uint32_t after_one[4] = { 1, 2, 3, 4 }, after_two[8] = { 1, 2, 3, 4, 0, 8, 0, 0 };
    TD_SHARED_UP_TO(64 * 1024, copies_kernel);
    TD_LAUNCH("cp.async", 1, 32, 64 * 1024, copies_kernel);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(seen[0][i], 0xffffffffu);
        assert_int_equal(seen[1][i], 0xffffffffu);
        assert_int_equal(seen[2][i], i < 4 ? after_one[i] : 0xffffffffu);
        assert_int_equal(seen[3][i], after_two[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(product), cmocka_unit_test(matrices), cmocka_unit_test(chain), cmocka_unit_test(copies) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
