/* tests/nn/test_module.c: the tree: names, ownership, tying, users' own modules, conversion, and every misuse's sentence. */
#include "nn_test.h"

typedef struct { td_module base; td_module *in, *out; td_tensor *gain; int destroyed_into; } block;
static int destroyed;

static td_tensor *block_forward(td_module *m, td_tensor *x)
{
    block *b = (block *)m;
    return td_mul(td_forward(b->out, td_relu(td_forward(b->in, x))), b->gain);
}

static void block_destroy(td_module *m)
{
    destroyed++;
}

static const td_module_type block_type = { .kind = "block", .size = sizeof(block), .forward = block_forward, .destroy = block_destroy };

static td_module *new_block(int64_t width)
{
    block *b = (block *)td_module_new(&block_type);
    b->in = td_module_child(&b->base, "in", td_nn_linear(width, 2 * width, NULL));
    b->gain = td_module_parameter(&b->base, "gain", td_ones(TD_SHAPE(1), TD_F32));
    b->out = td_module_child(&b->base, "out", td_nn_linear(2 * width, width, &(td_nn_linear_opts){ .no_bias = true }));
    return &b->base;
}

static void names_and_lists(void **state)
{
    td_module *net = td_nn_sequential(new_block(3), td_nn_batch_norm(3, NULL), new_block(3));
    static const char *const want[] = { "0.in.weight", "0.in.bias", "0.gain", "0.out.weight", "1.weight", "1.bias", "2.in.weight", "2.in.bias",
                                        "2.gain", "2.out.weight" };
    td_tensors p = td_parameters(net), b = td_buffers(net);
    assert_int_equal(p.n, 10);
    for (size_t i = 0; i < p.n; i++) {
        assert_string_equal(td_parameter_name(p.list[i]), want[i]);
        assert_ptr_equal(td_parameter_get(net, want[i]), p.list[i]);
        assert_true(td_needs_grad(p.list[i]));
    }
    assert_int_equal(b.n, 2);
    assert_string_equal(td_parameter_name(b.list[1]), "1.running_var");
    assert_ptr_equal(td_parameter_get(net, "1.running_var"), b.list[1]);
    assert_false(td_needs_grad(b.list[0]));
    assert_ptr_equal(td_parameters(net).list, p.list);             /* kept until the tree changes */
    assert_ptr_equal(td_module_get(net, "2.in"), ((block *)td_module_get(net, "2"))->in);
    assert_ptr_equal(td_module_get(net, ""), net);
    assert_null(td_module_get(net, "2.nothing"));
    assert_null(td_module_get(net, "2.gain"));
    assert_null(td_module_get(net, "2.gain.x"));
    assert_int_equal(td_parameters(td_module_get(net, "0")).n, 4);
    td_tensor *free_one = td_zeros(TD_SHAPE(2), TD_F32);
    assert_string_equal(td_parameter_name(free_one), "");
    /* paths follow when the tree grows above */
    td_module *more = td_nn_sequential(net, td_nn_relu());
    assert_string_equal(td_parameter_name(p.list[0]), "0.0.in.weight");
    assert_int_equal(td_parameters(more).n, 10);
    td_module_parameter(more, "scale", td_ones(TD_SCALAR, TD_F64));
    assert_int_equal(td_parameters(more).n, 11);
    destroyed = 0;
    td_module_free(more);
    assert_int_equal(destroyed, 2);
    assert_true(td_is_poisoned(td_parameter_get(NULL, "x")));
    expect_error(TD_ERR_ARGUMENT, "td_parameter_get: the module is NULL");
}

static void parameters_outlive_their_scope(void **state)
{
    td_module *m;
    td_tensor *w, *kept;
    {
        TD_SCOPE();
        m = td_module_new(&block_type);
        w = td_module_parameter(m, "w", td_full(TD_SHAPE(2, 3), TD_F32, 5));
        kept = td_keep(td_full(TD_SHAPE(2), TD_F64, 7));
        assert_ptr_equal(td_module_buffer(m, "kept", kept), kept);  /* td_keep's reference is the module's now */
    }
    assert_true(td_item(td_sum(w, NULL, 0, false)) == 30);
    assert_true(td_at(kept, TD_SHAPE(1)) == 7);
    /* a view gets a storage of its own: parameters are moved into flats */
    td_tensor *x = td_from((const float[]){ 1, 2, 3, 4, 5, 6 }, TD_SHAPE(2, 3), TD_F32);
    td_tensor *v = td_module_parameter(m, "v", td_transpose(x, 0, 1));
    assert_true(td_is_contiguous(v));
    assert_true(td_at(v, TD_SHAPE(2, 1)) == 6 && td_at(v, TD_SHAPE(1, 0)) == 2);
    td_fill(x, 0);
    assert_true(td_at(v, TD_SHAPE(2, 1)) == 6);
    td_module_free(m);
}

static void tied_parameters(void **state)
{
    td_module *a = td_nn_linear(3, 3, NULL), *m = td_module_new(&block_type), *other = td_module_new(&block_type);
    td_module_child(m, "a", a);
    td_tensor *w = td_parameter_get(a, "weight");
    assert_ptr_equal(td_module_parameter(m, "again", w), w);
    assert_ptr_equal(td_module_parameter(other, "third", w), w);
    assert_int_equal(td_parameters(m).n, 2);
    assert_int_equal(td_parameters(other).n, 1);
    assert_string_equal(td_parameter_name(w), "a.weight");
    {
        TD_SCOPE();
        td_tensor *x = td_ones(TD_SHAPE(1, 3), TD_F32);
        td_backward(td_sum(td_add(td_linear(x, w, NULL), td_linear(x, td_parameter_get(m, "again"), NULL)), NULL, 0, false));
        assert_true(td_at(td_grad(w), TD_SHAPE(2, 1)) == 2);        /* one gradient: both uses add up */
    }
    td_module_free(m);                                              /* the owner goes, the tensor lives on */
    assert_string_equal(td_parameter_name(w), "third");
    assert_int_equal(td_dim(w, 0), 3);
    td_module_free(other);
}

static void forward_keeps_only_its_result(void **state)
{
    td_module *net = td_nn_sequential(td_nn_linear(4, 8, NULL), td_nn_relu(), new_block(8), td_nn_dropout(0.5), td_nn_linear(8, 2, NULL));
    TD_SCOPE();
    td_tensor *x = td_ones(TD_SHAPE(5, 4), TD_F32);
    td_train(net, false);
    assert_false(td_is_training(td_module_get(net, "2.in")));
    int64_t before = td_memory().live_tensors;
    td_tensor *y;
    {
        TD_NO_GRAD();
        y = td_forward(net, x);
    }
    assert_int_equal(td_memory().live_tensors, before + 1);
    assert_int_equal(td_dim(y, 1), 2);
    /* by hand */
    td_tensor *h = td_relu(td_linear(x, td_parameter_get(net, "0.weight"), td_parameter_get(net, "0.bias")));
    h = td_linear(td_relu(td_linear(h, td_parameter_get(net, "2.in.weight"), td_parameter_get(net, "2.in.bias"))),
                  td_parameter_get(net, "2.out.weight"), NULL);
    h = td_linear(td_mul(h, td_parameter_get(net, "2.gain")), td_parameter_get(net, "4.weight"), td_parameter_get(net, "4.bias"));
    for (int i = 0; i < 10; i++)
        assert_true(((float *)td_data(y))[i] == ((float *)td_data(h))[i]);
    /* a forward that changes nothing returns its input, and the input stays where it was */
    td_module *none = td_nn_sequential(td_nn_dropout(0.1), td_nn_sequential_n(NULL, 0));
    td_train(none, false);
    {
        TD_SCOPE();
        assert_ptr_equal(td_forward(none, x), x);
    }
    assert_int_equal(td_dim(x, 0), 5);
    td_train(net, true);
    assert_true(td_is_training(td_module_get(net, "2.in")));
    td_module_free(none);
    td_module_free(net);
}

static void messages_name_the_module(void **state)
{
    td_module *net = td_nn_sequential(td_nn_relu(), new_block(3));
    assert_true(td_is_poisoned(td_forward(net, td_ones(TD_SHAPE(2, 4), TD_F32))));
    assert_non_null(strstr(td_error_message(), "(in module 1.in (linear))"));
    td_error_clear();
    {
        TD_MODULE_SCOPE(td_module_get(net, "1"));
        assert_true(td_is_poisoned(td_add(td_ones(TD_SHAPE(2), TD_F32), td_ones(TD_SHAPE(3), TD_F32))));
        assert_non_null(strstr(td_error_message(), "(in module 1 (block))"));
        td_error_clear();
    }
    assert_true(td_is_poisoned(td_forward(net, NULL)));
    expect_error(TD_ERR_ARGUMENT, "td_forward: the input of module sequential is NULL");
    assert_true(td_is_poisoned(td_forward(NULL, NULL)));
    expect_error(TD_ERR_ARGUMENT, "td_forward: the module is NULL");
    static const td_module_type mute_type = { .kind = "mute", .size = sizeof(td_module) };
    td_module *mute = td_module_child(net, "mute", td_module_new(&mute_type));
    assert_true(td_is_poisoned(td_forward(mute, td_ones(TD_SCALAR, TD_F32))));
    expect_error(TD_ERR_UNSUPPORTED, "td_forward: module mute (mute) has no forward of one input; call its own function");
    td_module_free(net);
}

static void wrong_names_and_adoptions(void **state)
{
    td_module *m = td_module_new(&block_type), *child = td_nn_relu();
    td_module_parameter(m, "w", td_ones(TD_SCALAR, TD_F32));
    assert_true(td_is_poisoned(td_module_parameter(m, "w", td_ones(TD_SCALAR, TD_F32))));
    expect_error(TD_ERR_ARGUMENT, "td_module_parameter: module \"block\" has a parameter named \"w\" already");
    td_module_buffer(m, "a.b", td_ones(TD_SCALAR, TD_F32));
    expect_error(TD_ERR_ARGUMENT, "td_module_buffer: the name \"a.b\" in module \"block\" has the character '.', expected letters, digits and '_'");
    td_module_child(m, "", child);
    expect_error(TD_ERR_ARGUMENT, "td_module_child: the name in module \"block\" is empty, expected letters, digits and '_'");
    td_module_child(m, NULL, child);
    expect_error(TD_ERR_ARGUMENT, "td_module_child: the name in module \"block\" is NULL, expected letters, digits and '_'");
    td_module_child(m, "c", NULL);
    expect_error(TD_ERR_ARGUMENT, "td_module_child: the child \"c\" of module \"block\" is NULL");
    assert_ptr_equal(td_module_child(m, "c", child), child);
    td_module *two = td_module_new(&block_type);
    td_module_child(two, "c", child);
    expect_error(TD_ERR_ARGUMENT, "td_module_child: \"c\" for module \"block\" has a parent already: it is \"c\" of module \"block\"");
    td_module_child(m, "self", m);
    expect_error(TD_ERR_ARGUMENT, "td_module_child: \"self\" would make module \"block\" its own descendant");
    td_module_free(child);
    expect_error(TD_ERR_STATE, "td_module_free: module \"relu\" is \"c\" of module \"block\", which frees it with itself");
    td_module_parameter(m, "i", td_ones(TD_SHAPE(3), TD_I64));
    expect_error(TD_ERR_DTYPE, "td_module_parameter: \"i\" in module \"block\": the tensor (3) is i64, expected f32 or f64");
    td_module_parameter(m, "r", td_neg(td_parameter_get(m, "w")));
    expect_error(TD_ERR_ARGUMENT, "td_module_parameter: \"r\" in module \"block\": the tensor () is the result of an operation with gradients; td_detach "
                                  "it first");
    td_module_buffer(m, "b", td_parameter_get(m, "w"));
    expect_error(TD_ERR_ARGUMENT, "td_module_buffer: \"b\" in module \"block\": the tensor () is a parameter already (\"w\")");
    td_tensor *leaf = td_ones(TD_SCALAR, TD_F32);
    td_requires_grad((td_tensors){ &leaf, 1 }, true);
    td_module_buffer(m, "b", leaf);
    expect_error(TD_ERR_ARGUMENT, "td_module_buffer: \"b\" in module \"block\": the tensor () needs gradients, a buffer has none; use "
                                  "td_module_parameter");
    assert_true(td_is_poisoned(td_parameter_get(m, "nothing")));
    expect_error(TD_ERR_ARGUMENT, "td_parameter_get: module \"block\" has no parameter or buffer \"nothing\"");
    td_parameter_get(m, "c");
    expect_error(TD_ERR_ARGUMENT, "td_parameter_get: module \"block\" has no parameter or buffer \"c\": that is a module");
    td_module_new(NULL);
    expect_error(TD_ERR_ARGUMENT, "td_module_new: the type is NULL");
    td_module_new(&(td_module_type){ .kind = "small", .size = 1 });
    expect_error(TD_ERR_ARGUMENT, "td_module_new: type \"small\" has size 1, expected that of a struct whose first member is a td_module, 16 to 65536");
    assert_int_equal(td_parameters(m).n, 1);                        /* nothing of all that was taken */
    td_module_free(m);
    td_module_free(two);
    td_module_free(NULL);
}

/* An error in a constructor gives the poisoned module; what goes on with it is harmless and adds no second sentence. */
static void poison_passes_on(void **state)
{
    td_module *ok = td_nn_relu(), *net = td_nn_sequential(ok, td_nn_linear(0, 3, NULL), td_nn_relu());
    assert_ptr_equal(net, td__module_poison());
    block *b = (block *)net;
    b->gain = NULL;
    b->destroyed_into = 3;
    assert_true(td_is_poisoned(td_forward(net, td_ones(TD_SHAPE(1, 3), TD_F32))));
    assert_int_equal(td_parameters(net).n, 0);
    assert_true(td_is_poisoned(td_module_parameter(net, "x", td_ones(TD_SCALAR, TD_F32))));
    assert_ptr_equal(td_module_child(net, "x", ok), net);
    td_train(net, true);
    assert_false(td_is_training(net));
    char text[64] = "x";
    assert_int_equal(td_summary_format(net, text, sizeof text), 0);
    assert_string_equal(text, "");
    td_module_free(net);
    assert_int_equal(td_module_to(net, TD_F64), TD_ERR_ARGUMENT);
    assert_ptr_equal(td_nn_linear(2, 2, NULL), td__module_poison()); /* an error is pending: no half-made layers */
    expect_error(TD_ERR_ARGUMENT, "td_nn_linear: in is 0 and out is 3, expected 1 or more");
    td_nn_sequential_n(NULL, 2);
    expect_error(TD_ERR_ARGUMENT, "td_nn_sequential_n: the list of 2 layers is NULL");
}

static void conversion(void **state)
{
    td_module *net = td_nn_sequential(td_nn_linear(3, 2, NULL), td_nn_batch_norm(2, NULL));
    td_module_buffer(net, "count", td_zeros(TD_SCALAR, TD_I64));
    td_tensor *w = td_parameter_get(net, "0.weight");
    double first = td_at(w, TD_SHAPE(1, 2));
    assert_int_equal(td_module_to(net, TD_F64), 0);
    assert_ptr_equal(td_parameter_get(net, "0.weight"), w);
    assert_int_equal(td_dtype_of(w), TD_F64);
    assert_true(td_at(w, TD_SHAPE(1, 2)) == first);
    assert_int_equal(td_dtype_of(td_parameter_get(net, "1.running_var")), TD_F64);
    assert_int_equal(td_dtype_of(td_parameter_get(net, "count")), TD_I64);
    assert_true(td_needs_grad(w));
    TD_SCOPE();
    td_backward(td_sum(td_forward(net, td_randn(TD_SHAPE(4, 3), 1, 1)), NULL, 0, false));
    assert_int_equal(td_error_pending(), TD_ERR_DTYPE);             /* the input is f32 still */
    td_error_clear();
    td_backward(td_sum(td_forward(net, td_cast(td_randn(TD_SHAPE(4, 3), 1, 1), TD_F64)), NULL, 0, false));
    assert_int_equal(td_dtype_of(td_grad(w)), TD_F64);
    assert_int_equal(td_module_to(net, TD_F64), 0);                 /* nothing to do */
    td_module_to(net, TD_F32);
    expect_error(TD_ERR_STATE, "td_module_to: parameter \"0.weight\" has a gradient, an optimizer or a ddp already; convert before them");
    td_module_to(net, TD_BF16);
    expect_error(TD_ERR_DTYPE, "td_module_to: dtype is bf16, expected f32 or f64");
    td_module_free(net);
}

/* Between a forward and its backward: the graph holds values and shapes of the old dtype. */
static void conversion_of_a_live_graph(void **state)
{
    (void)state;
    TD_SCOPE();
    td_module *net = td_nn_sequential(td_nn_linear(3, 2, NULL), td_nn_linear(2, 1, NULL));
    td_tensors p = td_parameters(net);
    td_tensor *x = td_ones(TD_SHAPE(4, 3), TD_F32), *loss = td_sum(td_forward(net, x), NULL, 0, false);
    assert_int_equal(td_module_to(net, TD_F64), 0);
    assert_int_equal(td_backward(loss), TD_ERR_STATE);
    assert_non_null(strstr(td_error_message(), "td_linear"));
    td_error_clear();
    assert_null(td_grad(p.list[0]));
    /* what is saved but frozen is found by its version */
    td_module_free(net);
    net = td_nn_sequential(td_nn_linear(3, 2, NULL), td_nn_linear(2, 1, NULL));
    p = td_parameters(net);
    td_requires_grad((td_tensors){ p.list + 2, 2 }, false);
    loss = td_sum(td_forward(td_module_get(net, "1"), td_forward(td_module_get(net, "0"), x)), NULL, 0, false);
    assert_int_equal(td_module_to(td_module_get(net, "1"), TD_F64), 0);
    assert_int_equal(td_backward(loss), TD_ERR_STATE);
    assert_non_null(strstr(td_error_message(), "td_linear saved its input 1, shape (1,2), for the gradient, and it was changed in place"));
    td_error_clear();
    assert_null(td_grad(p.list[0]));
    td_module_free(net);
}

static void summary(void **state)
{
    td_module *net = td_nn_sequential(td_nn_conv2d(1, 8, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_batch_norm(8, NULL), td_nn_relu(),
                                      td_nn_max_pool2d(2, NULL), td_nn_flatten(), td_nn_linear(1568, 10, NULL));
    td_tensor *frozen = td_parameter_get(net, "5.bias");
    td_requires_grad((td_tensors){ &frozen, 1 }, false);
    td_module_parameter(net, "tied", td_parameter_get(net, "5.weight"));
    /* 8*9+8, 8+8, 1568*10+10 numbers of four bytes; running statistics are bytes but no parameters */
    static const char want[] =
        "name  kind                                                 shapes                                                   parameters   bytes\n"
        "      sequential                                           tied (10,1568) tied                                               0       0\n"
        "0     conv2d (in=1, out=8, kernel=3, stride=1, padding=1)  weight (8,1,3,3), bias (8)                                       80     320\n"
        "1     batch_norm (channels=8)                              weight (8), bias (8), running_mean (8), running_var (8)          16     128\n"
        "2     relu                                                                                                                   0       0\n"
        "3     max_pool2d (window=2, stride=2, padding=0)                                                                             0       0\n"
        "4     flatten                                                                                                                0       0\n"
        "5     linear (in=1568, out=10)                             weight (10,1568), bias (10)                                  15,690  62,760\n"
        "15,786 parameters (15,776 trainable, 10 frozen), 63,208 bytes with buffers\n";
    char text[4096];
    size_t n = td_summary_format(net, text, sizeof text);
    assert_int_equal(n, strlen(text));
    assert_string_equal(text, want);
    char little[10];
    assert_int_equal(td_summary_format(net, little, sizeof little), n);
    assert_memory_equal(little, text, 9);
    assert_int_equal(little[9], '\0');
    td_module_free(net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(names_and_lists), TEST(parameters_outlive_their_scope), TEST(tied_parameters), TEST(forward_keeps_only_its_result),
        TEST(messages_name_the_module), TEST(wrong_names_and_adoptions), TEST(poison_passes_on), TEST(conversion), TEST(conversion_of_a_live_graph), TEST(summary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
