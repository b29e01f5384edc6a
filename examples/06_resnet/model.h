/* 06_resnet/model.h: residual networks (He et al. 2016) for images (N,channels,H,W), with torchvision's parameter names: conv1, bn1,
 * layer1.0.conv1, …, layer2.0.downsample.0, fc.
 */
#ifndef RESNET_MODEL_H
#define RESNET_MODEL_H
#include <tandem.h>

typedef struct {
    int     depth;          /* 18, 34, 50, 101, 152: four stages, as for ImageNet; else 6n + 2 (20, 32, 44, 56, 110, …): three
                               stages of n basic blocks, as for CIFAR; default 20                                           */
    int64_t width;          /* channels of the first stage; each further one doubles it; default 64 with four stages, 16 with three */
    int64_t channels;       /* of the images; default 3                                                                     */
    int64_t classes;        /* default 10                                                                                   */
    bool    small_images;   /* default false; true: a 3x3 stem without pooling also with four stages (three always have it) */
    bool    zero_gamma;     /* default false; true: the last batch norm of each block begins with weight 0, so that a block is
                               the identity at first (Goyal et al. 2017)                                                     */
} resnet_opts;

/* NULL opts: the defaults. Convolutions are initialised by Kaiming's normal formula with fan_out, norms to 1 and 0, fc as td_nn_linear.
 * Forward: (N,channels,H,W) -> logits (N,classes); H and W of any size. A depth that is none is one line on stderr and NULL. */
td_module *resnet_new(const resnet_opts *opts);

#endif
