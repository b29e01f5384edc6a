/* 09_custom_op/relu2.h: an operation of one's own: bias, squared ReLU and residual in one pass. */
#ifndef RELU2_H
#define RELU2_H
#include <tandem.h>

/* x (…,C), bias (C), residual of x's shape, all f32 or all f64 -> residual + max(x + bias, 0)^2, x's shape. The squared ReLU is that of Primer
 * (So et al. 2021). Gradients of all three. */
td_tensor *relu2(td_tensor *x, td_tensor *bias, td_tensor *residual);

#endif
