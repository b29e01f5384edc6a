/* bench/fashion.h: Fashion-MNIST for the programs that train on it, and the share of its pictures that a network names right. */
#ifndef BENCH_FASHION_H
#define BENCH_FASHION_H
#include <stdio.h>
#include <tandem.h>

#define FASHION_FOLDER "/usr/share/datasets/fashion-mnist"

/* which: "train" or "t10k" */
static inline td_loader *fashion_open(const char *folder, const char *which, bool train, uint64_t seed)
{
    char prefix[4096];
    snprintf(prefix, sizeof prefix, "%s/%s", folder, which);
    return td_loader_new(td_dataset_idx(prefix), &(td_loader_opts){ .batch = train ? 64 : 500, .shuffle = train, .seed = seed });
}

/* Over all ranks' parts of the data. */
static inline double fashion_accuracy(td_module *net, td_loader *data)
{
    TD_SCOPE();
    TD_NO_GRAD();
    td_train(net, false);
    td_tensor *count = td_zeros(TD_SHAPE(2), TD_F64);
    td_batch b;
    while (td_loader_next(data, &b)) {
        TD_SCOPE();
        td_tensor *hits = td_sum(td_cast(td_eq(td_argmax(td_forward(net, b.x), 1), b.y), TD_F64), NULL, 0, false);
        td_assign(count, td_add(count, td_from((double[]){ td_item(hits), (double)b.rows }, TD_SHAPE(2), TD_F64)));
    }
    td_train(net, true);
    td_all_reduce(td_world(), count, TD_SUM);
    return td_at(count, TD_SHAPE(0)) / td_at(count, TD_SHAPE(1));
}

#endif
