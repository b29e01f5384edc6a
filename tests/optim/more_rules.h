/* tests/optim/more_rules.h: the formulas of Adam, RMSprop, Adagrad, Lion, LAMB and LARS as their documents give them, in double: one
 * step of parameter i of a job. `o` holds the options in the order that each function names. */
#ifndef MORE_RULES_H
#define MORE_RULES_H
#include "optim_test.h"

typedef void reference(job *j, int i, const double *o, double lr);

static inline void reference_adam(job *j, int i, const double *o, double lr)         /* beta1, beta2, eps, decay */
{
    double t = (double)++j->steps[i];
    for (int64_t k = 0; k < size_of[i]; k++) {
        double d = gradient(j, i, k) + o[3] * j->w[i][k];
        j->m[i][k] = o[0] * j->m[i][k] + (1 - o[0]) * d;
        j->v[i][k] = o[1] * j->v[i][k] + (1 - o[1]) * d * d;
        j->w[i][k] -= lr * (j->m[i][k] / (1 - pow(o[0], t))) / (sqrt(j->v[i][k] / (1 - pow(o[1], t))) + o[2]);
    }
}

static inline void reference_rmsprop(job *j, int i, const double *o, double lr)      /* alpha, eps, momentum, decay, centered */
{
    j->steps[i]++;
    for (int64_t k = 0; k < size_of[i]; k++) {
        double d = gradient(j, i, k) + o[3] * j->w[i][k];
        j->v[i][k] = o[0] * j->v[i][k] + (1 - o[0]) * d * d;
        double square = j->v[i][k];
        if (o[4] != 0) {
            j->u[i][k] = o[0] * j->u[i][k] + (1 - o[0]) * d;
            square -= j->u[i][k] * j->u[i][k];
        }
        d /= sqrt(square) + o[1];
        j->m[i][k] = o[2] * j->m[i][k] + d;
        j->w[i][k] -= lr * (o[2] != 0 ? j->m[i][k] : d);
    }
}

static inline void reference_adagrad(job *j, int i, const double *o, double lr)      /* lr_decay, eps, decay, initial */
{
    double rate = lr / (1 + (double)j->steps[i] * o[0]);
    for (int64_t k = 0; k < size_of[i]; k++) {
        double d = gradient(j, i, k) + o[2] * j->w[i][k];
        if (j->steps[i] == 0)
            j->v[i][k] = o[3];
        j->v[i][k] += d * d;
        j->w[i][k] -= rate * d / (sqrt(j->v[i][k]) + o[1]);
    }
    j->steps[i]++;
}

static inline void reference_lion(job *j, int i, const double *o, double lr)         /* beta1, beta2, decay */
{
    j->steps[i]++;
    for (int64_t k = 0; k < size_of[i]; k++) {
        double g = gradient(j, i, k), c = o[0] * j->m[i][k] + (1 - o[0]) * g;
        j->w[i][k] -= lr * ((double)((c > 0) - (c < 0)) + o[2] * j->w[i][k]);
        j->m[i][k] = o[1] * j->m[i][k] + (1 - o[1]) * g;
    }
}

static inline void reference_lamb(job *j, int i, const double *o, double lr)         /* beta1, beta2, eps, decay, no_trust */
{
    double t = (double)++j->steps[i], u[MOST], weights = 0, updates = 0;
    for (int64_t k = 0; k < size_of[i]; k++) {
        double g = gradient(j, i, k);
        j->m[i][k] = o[0] * j->m[i][k] + (1 - o[0]) * g;
        j->v[i][k] = o[1] * j->v[i][k] + (1 - o[1]) * g * g;
        u[k] = j->m[i][k] / (1 - pow(o[0], t)) / (sqrt(j->v[i][k] / (1 - pow(o[1], t))) + o[2]) + o[3] * j->w[i][k];
        weights += j->w[i][k] * j->w[i][k];
        updates += u[k] * u[k];
    }
    double trust = o[4] == 0 && weights > 0 && updates > 0 ? sqrt(weights / updates) : 1;
    for (int64_t k = 0; k < size_of[i]; k++)
        j->w[i][k] -= lr * trust * u[k];
}

static inline void reference_lars(job *j, int i, const double *o, double lr)         /* momentum, decay, trust, no_trust */
{
    double weights = 0, gradients = 0, rate = lr;
    for (int64_t k = 0; k < size_of[i]; k++) {
        weights += j->w[i][k] * j->w[i][k];
        gradients += gradient(j, i, k) * gradient(j, i, k);
    }
    if (o[3] == 0 && weights > 0 && gradients > 0)
        rate *= o[2] * sqrt(weights) / (sqrt(gradients) + o[1] * sqrt(weights));
    for (int64_t k = 0; k < size_of[i]; k++) {
        j->m[i][k] = o[0] * j->m[i][k] + rate * (gradient(j, i, k) + o[1] * j->w[i][k]);
        j->w[i][k] -= j->m[i][k];
    }
    j->steps[i]++;
}

#endif
