/* tensor/tf32.c: may f32 products on GPUs be of numbers rounded to 10 bits? TANDEM_TF32 says, until the program does.
 */
#include <base.h>
#include <string.h>
#include <tandem/tensor.h>

static _Atomic int allowed = -1;                       /* -1: what the environment says                                        */

void td_allow_tf32(bool allow)
{
    allowed = allow;
}

bool td_tf32_allowed(void)
{
    const int said = allowed;
    const char *wish = said < 0 ? td__env(TD_ENV_TF32) : NULL;
    return said < 0 ? wish && strcmp(wish, "0") != 0 : said;
}
