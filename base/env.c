/* base/env.c: the one table of Tandem's environment variables, and the one place that calls getenv.
 *
 * `tandem env` prints the table; a variable that is not in it does not exist. Launchers' own variables are named in
 * world.c, which is given td__getenv.
 */
#include "base.h"
#include <locale.h>
#include <math.h>
#include <stdlib.h>

const td__env_row td__env_table[TD_ENV_COUNT] = {
#define TD_ENV_ROW(id, env_name, env_standard, env_help) { env_name, env_standard, env_help },
    TD_ENV_LIST(TD_ENV_ROW)
#undef TD_ENV_ROW
};

const char *td__getenv(const char *name)
{
    return getenv(name);
}

const char *td__env(td__env_id id)
{
    if ((unsigned)id >= TD_ENV_COUNT)
        return NULL;
    const char *value = getenv(td__env_table[id].name);
    return value && *value ? value : NULL;
}

/* A host program may have set a locale whose decimal point is a comma; the environment is written with a point. */
static double number_in_c_locale(const char *text, char **end)
{
    locale_t c = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
    if (!c)
        return strtod(text, end);
    double value = strtod_l(text, end, c);
    freelocale(c);
    return value;
}

double td__env_number(td__env_id id, double standard, double low, double high)
{
    const char *text = td__env(id);
    if (!text)
        return standard;
    char *end = NULL;
    double value = number_in_c_locale(text, &end);
    if (end == text || *end != '\0' || isnan(value) || value < low || value > high) {
        td__fail(TD_ERR_ARGUMENT, "%s is \"%.100s\": expected a number from %g to %g", td__env_table[id].name, text, low, high);
        return standard;
    }
    return value;
}
