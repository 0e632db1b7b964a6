"""The C99 functions that a generated file is made of; each file holds those that it calls.

Images are NHWC. Inner loops of LANES have a count that compilers know, so that they become vector instructions at -O2.
"""

REQUANTIZE = """\
/* v / 2^shift, halves to even. */
static uint64_t dropped(uint64_t v, int shift)
{
    return shift == 0 ? v : (v + ((uint64_t)1 << (shift - 1)) - 1 + ((v >> shift) & 1)) >> shift;
}

static int8_t clamped(int64_t code)
{
    return (int8_t)(code < -128 ? -128 : code > 127 ? 127 : code);
}

/* clamp(round(product / 2^shift) + zero) of the product's 24 leading bits, halves to even both times. */
static int8_t code_of(int64_t product, int shift, int32_t zero)
{
    uint64_t v = product < 0 ? (uint64_t)-product : (uint64_t)product;
    uint64_t left = v >> 24;
    int excess = 0;
    while (left > 0) {
        left >>= 1;
        excess++;
    }
    v = dropped(dropped(v, excess) << excess, shift);
    return clamped((product < 0 ? -(int64_t)v : (int64_t)v) + zero);
}
"""

CONV_STRUCT = """\
/* Loops whose length is a constant become vector instructions. */
enum { LANES = 16 };

/* Output o is code_of((start[o] + sum of code * weight) * value[o], shift[o], y_zero). */
struct conv {
    int32_t channels, size;       /* of the image that it reads; images are square */
    int32_t outputs, out_size;    /* of the image that it writes */
    int32_t rows, columns;        /* of the kernel */
    int32_t stride, top, left, groups;
    int32_t x_zero, y_zero;
    const int8_t *weight;         /* [output][row][column][input]; depthwise: [row][column][channel] */
    const int32_t *start;         /* bias - x_zero * sum of weights; depthwise: bias */
    const int32_t *value;
    const uint8_t *shift;
};
"""

CONV = """\
static int32_t dot(const int8_t *x, const int8_t *w, int32_t count)
{
    int32_t sum = 0, i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int32_t k = 0; k < LANES; k++)
            sum += (int32_t)x[i + k] * w[i + k];
    for (; i < count; i++)
        sum += (int32_t)x[i] * w[i];
    return sum;
}

/* scratch: a window's bytes, or NULL where windows lie contiguous in x. */
static void conv(const struct conv *c, const int8_t *x, int8_t *scratch, int8_t *y)
{
    const int32_t inputs = c->channels / c->groups, outputs = c->outputs / c->groups;
    const int32_t count = c->rows * c->columns * inputs;
    for (int32_t p = 0; p < c->out_size * c->out_size; p++) {
        const int32_t row = p / c->out_size * c->stride, column = p % c->out_size * c->stride;
        int32_t o = 0;
        for (int32_t first = 0; first < c->channels; first += inputs) {
            const int8_t *window = scratch;
            if (scratch)
                copy_window(c, x + first, row - c->top, column - c->left, scratch);
            else
                window = x + (row * c->size + column) * c->channels + first;
            for (const int32_t end = o + outputs; o < end; o++) {
                const int32_t sum = c->start[o] + dot(window, c->weight + o * count, count);
                *y++ = code_of((int64_t)sum * c->value[o], c->shift[o], c->y_zero);
            }
        }
    }
}
"""

WINDOW = """\
/* What the kernel sees with its corner at (top, left): [row][column][input], the border x_zero. */
static void copy_window(const struct conv *c, const int8_t *x, int32_t top, int32_t left, int8_t *window)
{
    const size_t inputs = (size_t)(c->channels / c->groups);
    for (int32_t row = top; row < top + c->rows; row++)
        for (int32_t column = left; column < left + c->columns; column++, window += inputs)
            if (row < 0 || row >= c->size || column < 0 || column >= c->size)
                memset(window, c->x_zero, inputs);
            else
                memcpy(window, x + (row * c->size + column) * c->channels, inputs);
}
"""

DEPTHWISE = """\
/* sum[k] += (x[k] - x_zero) * w[k], the border adds nothing. */
static void add_products(int32_t *sum, const int8_t *x, const int8_t *w, int32_t x_zero, int32_t count)
{
    if (count == LANES)
        for (int32_t k = 0; k < LANES; k++)
            sum[k] += ((int32_t)x[k] - x_zero) * w[k];
    else
        for (int32_t k = 0; k < count; k++)
            sum[k] += ((int32_t)x[k] - x_zero) * w[k];
}

static void depthwise(const struct conv *c, const int8_t *x, int8_t *y)
{
    for (int32_t p = 0; p < c->out_size * c->out_size; p++) {
        const int32_t top = p / c->out_size * c->stride - c->top, left = p % c->out_size * c->stride - c->left;
        for (int32_t first = 0; first < c->channels; first += LANES) {
            const int32_t count = c->channels - first < LANES ? c->channels - first : LANES;
            int32_t sum[LANES] = {0};
            for (int32_t row = top < 0 ? 0 : top; row < top + c->rows && row < c->size; row++)
                for (int32_t column = left < 0 ? 0 : left; column < left + c->columns && column < c->size; column++) {
                    const int32_t tap = (row - top) * c->columns + column - left;
                    add_products(sum, x + (row * c->size + column) * c->channels + first,
                                 c->weight + tap * c->channels + first, c->x_zero, count);
                }
            for (int32_t k = 0, o = first; k < count; k++, o++)
                *y++ = code_of((int64_t)(c->start[o] + sum[k]) * c->value[o], c->shift[o], c->y_zero);
        }
    }
}
"""

POOL_STRUCT = """\
struct pool {
    int32_t channels, size, out_size;
    int32_t kernel, stride, padding;
};
"""

MAX_POOL = """\
/* The border never wins. Without padding y may be x: what is read later lies behind what is written. */
static void max_pool(const struct pool *c, const int8_t *x, int8_t *y)
{
    for (int32_t p = 0; p < c->out_size * c->out_size; p++) {
        const int32_t top = p / c->out_size * c->stride - c->padding, left = p % c->out_size * c->stride - c->padding;
        for (int32_t k = 0; k < c->channels; k++) {
            int8_t best = -128;
            for (int32_t row = top < 0 ? 0 : top; row < top + c->kernel && row < c->size; row++)
                for (int32_t column = left < 0 ? 0 : left; column < left + c->kernel && column < c->size; column++) {
                    const int8_t code = x[(row * c->size + column) * c->channels + k];
                    best = code > best ? code : best;
                }
            *y++ = best;
        }
    }
}
"""

AVERAGE_POOL = """\
/* The mean, halves to even, of codes moved up by 128, so that no sum is negative. y may be x, as in a max pool. */
static void average_pool(const struct pool *c, const int8_t *x, int8_t *y)
{
    const uint32_t count = (uint32_t)(c->kernel * c->kernel);
    for (int32_t p = 0; p < c->out_size * c->out_size; p++) {
        const int32_t top = p / c->out_size * c->stride, left = p % c->out_size * c->stride;
        for (int32_t k = 0; k < c->channels; k++) {
            uint32_t sum = 0;
            for (int32_t row = top; row < top + c->kernel; row++)
                for (int32_t column = left; column < left + c->kernel; column++)
                    sum += (uint32_t)(x[(row * c->size + column) * c->channels + k] + 128);
            const uint32_t mean = sum / count, rest = sum % count;
            const int up = 2 * rest > count || (2 * rest == count && mean % 2 == 1);
            *y++ = (int8_t)((int32_t)mean + up - 128);
        }
    }
}
"""

ADD = """\
/* floor(v / 2^shift). C99 leaves >> of a negative number to the compiler; ~v is none then. */
static int64_t shifted(int64_t v, int shift)
{
    return v < 0 ? ~(~v >> shift) : v >> shift;
}

struct add {
    int32_t count;                /* bytes of the image */
    int32_t shortcut_zero, shortcut_value;
    int32_t body_zero, body_value;
    int32_t shift, y_zero;        /* of both values, of what it writes */
};

/* y may be either of what is added. */
static void add(const struct add *c, const int8_t *shortcut, const int8_t *body, int8_t *y)
{
    for (int32_t i = 0; i < c->count; i++) {
        const int64_t first = (int64_t)(shortcut[i] - c->shortcut_zero) * c->shortcut_value;
        const int64_t second = (int64_t)(body[i] - c->body_zero) * c->body_value;
        const int64_t half = (int64_t)1 << (c->shift - 1);
        y[i] = clamped(shifted(first + second + half, c->shift) + c->y_zero);
    }
}
"""
