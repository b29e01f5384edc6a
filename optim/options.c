/* optim/options.c: what option fields may hold: one sentence for each way to be wrong. */
#include "optim_impl.h"
#include <math.h>

int td__check_rates(const char *who, const td__options *o)
{
    if (!(o->lr >= 0) || !isfinite(o->lr))
        return td__fail(TD_ERR_ARGUMENT, "%s: lr is %g, expected 0 or more (TD_ZERO for 0)", who, o->lr);
    if (!(o->weight_decay >= 0) || !isfinite(o->weight_decay))
        return td__fail(TD_ERR_ARGUMENT, "%s: weight_decay is %g, expected 0 or more", who, o->weight_decay);
    return 0;
}

int td__check_fraction(const char *who, const char *name, double value)
{
    if (!(value >= 0 && value < 1))
        return td__fail(TD_ERR_ARGUMENT, "%s: %s is %g, expected 0 or more and less than 1", who, name, value);
    return 0;
}

int td__check_positive(const char *who, const char *name, double value)
{
    if (!(value > 0) || !isfinite(value))
        return td__fail(TD_ERR_ARGUMENT, "%s: %s is %g, expected more than 0", who, name, value);
    return 0;
}

int td__check_adam(const char *who, const td__options *o)
{
    int rc = td__check_rates(who, o);
    if (rc == 0)
        rc = td__check_fraction(who, "beta1", o->beta1);
    if (rc == 0)
        rc = td__check_fraction(who, "beta2", o->beta2);
    return rc == 0 ? td__check_positive(who, "eps", o->eps) : rc;
}
