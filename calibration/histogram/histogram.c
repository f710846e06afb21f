/* The compiled counting of calibration.histogram.accumulate: |x| into 16,384 bins over [0, 2^exponent), in one pass.

Counts are exact integers, the product with a power of two is exact, so the result is that of numpy to the byte.
The values are taken in blocks that stay in the first-level cache: a block is scanned for its extremes and its bins, and
once more where the extremes tell that the range must double. Values of bin 0, among them all that Relu cut, are counted
by what is left over.
*/
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define X86 1
#include <immintrin.h>
#endif
#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define PREFETCH(address) __builtin_prefetch(address) /* Of the next block; harmless beyond the end. */
#else
#define INLINE static inline
#define PREFETCH(address)
#endif

#define NUM_BINS 16384
#define LOG2_NUM_BINS 14
#define LEAST_EXPONENT (-110)
#define BLOCK 2048
#define LINE 16 /* Values in a line of the cache. */
#define LOCAL 65535 /* So many values fit into 16 bits, whatever their bin. */
#define FEW 8192 /* Fewer values are not worth a table of their own. */

#define INFINITE 0x7f800000

typedef struct {
    int32_t low, high; /* Keys of the extremes, see key(). */
    int64_t num_zeros;
} Seen;

typedef void (*Emptied)(uint16_t *local, uint32_t *table);
/* Writes the bins that are not 0, one after the other, and room for 16 more; returns how many. */
typedef int (*Scan)(const float *values, int num, float factor, int32_t *bins, Seen *seen);

/* A float's bits as an integer of the same order; its own inverse. NaN and infinity lie at both ends. */
INLINE int32_t key(uint32_t bits) {
    return (int32_t)(bits ^ ((uint32_t)((int32_t)bits >> 31) & 0x7fffffffu));
}

INLINE Seen extremes(const uint32_t *bits, int num) {
    int32_t low = INT32_MAX, high = INT32_MIN, num_zeros = 0;
    for (int i = 0; i < num; i++) {
        int32_t k = key(bits[i]);
        low = k < low ? k : low;
        high = k > high ? k : high;
        num_zeros += (bits[i] << 1) == 0;
    }
    Seen seen = {low, high, num_zeros};
    return seen;
}

INLINE int scan(const float *values, int num, float factor, int32_t *bins, Seen *seen) {
    int32_t all[BLOCK];
    *seen = extremes((const uint32_t *)values, num);
    for (int i = 0; i < num; i++) {
        const float bin = fabsf(values[i]) * factor;
        all[i] = (int32_t)(bin < NUM_BINS ? bin : NUM_BINS); /* Beyond the range, or NaN: the block is scanned again. */
    }
    int found = 0;
    for (int i = 0; i < num; i++) {
        bins[found] = all[i];
        found += all[i] != 0;
    }
    return found;
}

/* Adds the small counters to the large ones, and clears them. Most of the far bins are empty: of those the large
   counters, which lie far away in memory, are not touched. */
INLINE void emptied(uint16_t *local, uint32_t *table) {
    for (int begin = 0; begin < NUM_BINS; begin += 2 * LINE) {
        uint16_t any = 0;
        for (int bin = begin; bin < begin + 2 * LINE; bin++) any |= local[bin];
        if (!any) continue;
        for (int bin = begin; bin < begin + 2 * LINE; bin++) table[bin] += local[bin];
    }
    memset(local, 0, NUM_BINS * sizeof *local);
}

static int scan_plain(const float *v, int num, float factor, int32_t *bins, Seen *seen) {
    return scan(v, num, factor, bins, seen);
}
static void emptied_plain(uint16_t *local, uint32_t *table) { emptied(local, table); }

#ifdef X86
/* Of a mask of eight the places that are set, first; set up by choose(). */
static uint64_t places[256];

static void set_up_places(void) {
    for (int mask = 0; mask < 256; mask++) {
        places[mask] = 0;
        for (int place = 7; place >= 0; place--)
            if (mask >> place & 1) places[mask] = places[mask] << 8 | (uint64_t)place;
    }
}

/* Key extremes from those of the bits: as unsigned numbers the largest are the most negative floats, if there are any; as
   signed numbers, the largest positive ones. */
INLINE void see(Seen *seen, uint32_t most, uint32_t least, int32_t top) {
    seen->low = key(most > (uint32_t)INT32_MAX ? most : least);
    seen->high = key(top >= 0 ? (uint32_t)top : least);
}

/* Both in one pass, eight values at a time; the last few as eight that lie aside, filled up with the last of them. */
__attribute__((target("avx2,popcnt"))) static int scan_avx2(const float *v, int num, float factor, int32_t *bins,
                                                            Seen *seen) {
    const __m256 by = _mm256_set1_ps(factor);
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), none = _mm256_setzero_si256();
    __m256i most = none, least = _mm256_set1_epi32(-1), top = _mm256_set1_epi32(INT32_MIN);
    float last[8];
    int found = 0, num_zeros = 0;
    for (int i = 0; i < num; i += 8) {
        const int inside = num - i >= 8 ? 0xff : (1 << (num - i)) - 1;
        const float *from = v + i;
        if (inside != 0xff) {
            for (int each = 0; each < 8; each++) last[each] = v[i + each < num ? i + each : num - 1];
            from = last;
        }
        const __m256i bits = _mm256_loadu_si256((const __m256i *)from), positive = _mm256_and_si256(bits, magnitude);
        most = _mm256_max_epu32(most, bits);
        least = _mm256_min_epu32(least, bits);
        top = _mm256_max_epi32(top, bits);
        const int zeros = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(positive, none)));
        num_zeros += __builtin_popcount(zeros & inside);
        const __m256i bin = _mm256_cvttps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(positive), by));
        const int empty = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(bin, none)));
        const int kept = ~empty & inside;
        const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)&places[kept]));
        _mm256_storeu_si256((__m256i *)(bins + found), _mm256_permutevar8x32_epi32(bin, order));
        found += __builtin_popcount(kept);
    }
    uint32_t mosts[8], leasts[8];
    int32_t tops[8];
    _mm256_storeu_si256((__m256i *)mosts, most);
    _mm256_storeu_si256((__m256i *)leasts, least);
    _mm256_storeu_si256((__m256i *)tops, top);
    for (int each = 1; each < 8; each++) {
        mosts[0] = mosts[each] > mosts[0] ? mosts[each] : mosts[0];
        leasts[0] = leasts[each] < leasts[0] ? leasts[each] : leasts[0];
        tops[0] = tops[each] > tops[0] ? tops[each] : tops[0];
    }
    see(seen, mosts[0], leasts[0], tops[0]);
    seen->num_zeros = num_zeros;
    return found;
}
__attribute__((target("avx2"))) static void emptied_avx2(uint16_t *local, uint32_t *table) { emptied(local, table); }

/* As scan_avx2, sixteen at a time. */
__attribute__((target("avx512f"))) static int scan_avx512(const float *v, int num, float factor, int32_t *bins,
                                                          Seen *seen) {
    const __m512 by = _mm512_set1_ps(factor);
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i most = _mm512_setzero_si512(), least = _mm512_set1_epi32(-1), top = _mm512_set1_epi32(INT32_MIN);
    int found = 0, num_zeros = 0;
    for (int i = 0; i < num; i += 16) {
        const __mmask16 inside = num - i >= 16 ? 0xffff : (__mmask16)((1u << (num - i)) - 1);
        const __m512i bits = _mm512_maskz_loadu_epi32(inside, v + i), positive = _mm512_and_si512(bits, magnitude);
        most = _mm512_mask_max_epu32(most, inside, most, bits);
        least = _mm512_mask_min_epu32(least, inside, least, bits);
        top = _mm512_mask_max_epi32(top, inside, top, bits);
        num_zeros += __builtin_popcount(_mm512_mask_testn_epi32_mask(inside, positive, positive));
        const __m512i bin = _mm512_cvttps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(positive), by));
        const __mmask16 kept = _mm512_test_epi32_mask(bin, bin);
        _mm512_storeu_si512(bins + found, _mm512_maskz_compress_epi32(kept, bin));
        found += __builtin_popcount(kept);
    }
    see(seen, _mm512_reduce_max_epu32(most), _mm512_reduce_min_epu32(least), _mm512_reduce_max_epi32(top));
    seen->num_zeros = num_zeros;
    return found;
}
#endif

static Scan scan_best = scan_plain;
static Emptied emptied_best = emptied_plain;
static const char *instructions = "plain";

static void choose(const char *wanted) {
    scan_best = scan_plain, emptied_best = emptied_plain, instructions = "plain";
#ifdef X86
    __builtin_cpu_init();
    set_up_places();
    if (__builtin_cpu_supports("avx2") && strcmp(wanted, "plain")) {
        scan_best = scan_avx2, emptied_best = emptied_avx2, instructions = "avx2";
        if (__builtin_cpu_supports("avx512f") && strcmp(wanted, "avx2")) {
            scan_best = scan_avx512, instructions = "avx512";
        }
    }
#else
    (void)wanted;
#endif
}

static float float_of(int32_t k) {
    uint32_t bits = (uint32_t)key((uint32_t)k);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The least e >= LEAST_EXPONENT with both extremes in (-2^e, 2^e). */
static int exponent_of(float low, float high) {
    float amax = fmaxf(fabsf(low), fabsf(high));
    int exponent = LEAST_EXPONENT;
    if (amax > 0) frexpf(amax, &exponent);
    return exponent < LEAST_EXPONENT ? LEAST_EXPONENT : exponent;
}

static void widen(uint32_t *table, int steps) {
    const int shift = steps < LOG2_NUM_BINS ? steps : LOG2_NUM_BINS;
    for (int bin = 1; bin < NUM_BINS; bin++) {
        uint32_t count = table[bin];
        table[bin] = 0;
        table[bin >> shift] += count;
    }
}

/* Eight at a time: the compiler then keeps eight bins in registers, instead of reading each after a store. Counting is
   the slowest of the steps and reads little, so meanwhile the next block comes: one line for each LINE values. */
#define COUNT(counters)                                                  \
    do {                                                                 \
        int i = 0;                                                       \
        for (; i + 8 <= found; i += 8) {                                 \
            PREFETCH(values + begin + BLOCK + i);                        \
            for (int each = 0; each < 8; each++) counters[bins[i + each]]++; \
        }                                                                \
        for (; i < found; i++) counters[bins[i]]++;                      \
        for (i = found; i < num; i += LINE) PREFETCH(values + begin + BLOCK + i); \
    } while (0)

/* The finite values of a block, and how many; -1 if one is NaN. */
static int finite_of(const float *block, int num, float *finite) {
    int kept = 0;
    for (int i = 0; i < num; i++) {
        if (isnan(block[i])) return -1;
        if (!isinf(block[i])) finite[kept++] = block[i];
    }
    return kept;
}

/* Adds what is finite to the table; 0, or -1 at a NaN: the table is then of no use any more. */
static int count(const float *values, Py_ssize_t size, uint32_t *table, int *exponent, Seen *seen,
                 int64_t *num_infinite) {
    int32_t bins[BLOCK + 16];
    float finite[BLOCK];
    uint16_t local[NUM_BINS]; /* Fits the first-level cache, which a table for each of a hundred tensors does not. */
    const int few = size < FEW;
    if (!few) memset(local, 0, sizeof local);
    int num_local = 0;
    for (Py_ssize_t begin = 0; begin < size; begin += BLOCK) {
        int num = size - begin < BLOCK ? (int)(size - begin) : BLOCK;
        const float *block = values + begin;
        Seen here;
        int found = scan_best(block, num, ldexpf(1.0f, LOG2_NUM_BINS - *exponent), bins, &here);
        if (here.high >= INFINITE || here.low <= key(0xff800000u)) {
            const int kept = finite_of(block, num, finite);
            if (kept < 0) return -1;
            *num_infinite += num - kept;
            if (!kept) continue;
            block = finite, num = kept;
            found = scan_best(block, num, ldexpf(1.0f, LOG2_NUM_BINS - *exponent), bins, &here);
        }
        if (here.low < seen->low) seen->low = here.low;
        if (here.high > seen->high) seen->high = here.high;
        seen->num_zeros += here.num_zeros;
        const int needed = exponent_of(float_of(here.low), float_of(here.high));
        if (needed > *exponent || num_local + num > LOCAL) {
            if (!few) emptied_best(local, table);
            num_local = 0;
        }
        if (needed > *exponent) {
            widen(table, needed - *exponent);
            *exponent = needed;
            found = scan_best(block, num, ldexpf(1.0f, LOG2_NUM_BINS - *exponent), bins, &here);
        }
        table[0] += (uint32_t)(num - found);
        if (few) {
            COUNT(table);
        } else {
            COUNT(local);
        }
        num_local += num;
    }
    if (!few) emptied_best(local, table);
    return 0;
}

static PyObject *add(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer values, table;
    int exponent;
    if (!PyArg_ParseTuple(args, "y*w*i", &values, &table, &exponent)) return NULL;
    PyObject *result = NULL;
    if (table.len != NUM_BINS * (Py_ssize_t)sizeof(uint32_t) || values.len % (Py_ssize_t)sizeof(float)) {
        PyErr_SetString(PyExc_ValueError, "add: takes float32 values and a table of (16384,) uint32");
    } else {
        Seen seen = {INT32_MAX, INT32_MIN, 0};
        int64_t num_infinite = 0;
        int failed;
        Py_BEGIN_ALLOW_THREADS
        failed = count(values.buf, values.len / (Py_ssize_t)sizeof(float), table.buf, &exponent, &seen,
                       &num_infinite);
        Py_END_ALLOW_THREADS
        if (failed) {
            PyErr_SetString(PyExc_ArithmeticError, "add: a value is NaN");
        } else {
            if (seen.low > seen.high) seen.low = 1, seen.high = 0; /* Nothing is finite: the ends are of no use. */
            result = Py_BuildValue("iddLL", exponent, (double)float_of(seen.low), (double)float_of(seen.high),
                                   (long long)seen.num_zeros, (long long)num_infinite);
        }
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&table);
    return result;
}

/* Sums of channels, in double precision: of (num_groups, num_positions, num_lanes) values, each lane a channel. The value
   at position p goes to accumulator p % SUMS of its channel, in order, and the accumulators are added up in order: so the
   layout in memory changes no bit, nor do the instructions. Rows are lanes of one each. */
#define SUMS 8

INLINE void sum_rows(const float *values, Py_ssize_t num_rows, Py_ssize_t num_positions, double *sums) {
    for (Py_ssize_t row = 0; row < num_rows; row++, values += num_positions) {
        double parts[SUMS] = {0};
        Py_ssize_t p = 0;
        for (; p + SUMS <= num_positions; p += SUMS)
            for (int each = 0; each < SUMS; each++) parts[each] += (double)values[p + each];
        for (int each = 0; p < num_positions; p++, each++) parts[each] += (double)values[p];
        double sum = 0;
        for (int each = 0; each < SUMS; each++) sum += parts[each];
        sums[row] = sum;
    }
}

/* Of LANES lanes side by side among num_lanes: their accumulators stay in the first-level cache. */
#define LANES 16
INLINE void sum_lanes(const float *values, Py_ssize_t num_positions, Py_ssize_t num_lanes, int num, double *sums) {
    double parts[SUMS][LANES] = {{0}};
    for (Py_ssize_t p = 0; p < num_positions; p++, values += num_lanes) {
        double *part = parts[p % SUMS];
        if (num == LANES) {
            for (int lane = 0; lane < LANES; lane++) part[lane] += (double)values[lane];
        } else {
            for (int lane = 0; lane < num; lane++) part[lane] += (double)values[lane];
        }
    }
    for (int lane = 0; lane < num; lane++) {
        sums[lane] = 0;
        for (int each = 0; each < SUMS; each++) sums[lane] += parts[each][lane];
    }
}

INLINE void sum_all(const float *values, Py_ssize_t num_groups, Py_ssize_t num_positions, Py_ssize_t num_lanes,
                    double *sums) {
    if (num_lanes == 1) {
        sum_rows(values, num_groups, num_positions, sums);
        return;
    }
    for (Py_ssize_t group = 0; group < num_groups; group++, values += num_positions * num_lanes, sums += num_lanes) {
        for (Py_ssize_t lane = 0; lane < num_lanes; lane += LANES) {
            const int num = num_lanes - lane < LANES ? (int)(num_lanes - lane) : LANES;
            sum_lanes(values + lane, num_positions, num_lanes, num, sums + lane);
        }
    }
}

typedef void (*Sum)(const float *values, Py_ssize_t num_groups, Py_ssize_t num_positions, Py_ssize_t num_lanes,
                    double *sums);
static void sum_plain(const float *v, Py_ssize_t groups, Py_ssize_t positions, Py_ssize_t lanes, double *sums) {
    sum_all(v, groups, positions, lanes, sums);
}
#ifdef X86
__attribute__((target("avx2"))) static void sum_avx2(const float *v, Py_ssize_t groups, Py_ssize_t positions,
                                                     Py_ssize_t lanes, double *sums) {
    sum_all(v, groups, positions, lanes, sums);
}
#endif

static PyObject *channel_sums(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer values, sums;
    Py_ssize_t groups, positions, lanes;
    if (!PyArg_ParseTuple(args, "y*w*nnn", &values, &sums, &groups, &positions, &lanes)) return NULL;
    const int fits = groups >= 0 && positions >= 0 && lanes >= 0 &&
                     values.len == groups * positions * lanes * (Py_ssize_t)sizeof(float) &&
                     sums.len == groups * lanes * (Py_ssize_t)sizeof(double);
    if (fits) {
        Sum sum = sum_plain;
#ifdef X86
        if (scan_best != scan_plain) sum = sum_avx2;
#endif
        Py_BEGIN_ALLOW_THREADS
        sum(values.buf, groups, positions, lanes, sums.buf);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "channel_sums: takes (groups, positions, lanes) float32 and (groups, lanes) "
                                          "float64");
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&sums);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

static PyObject *use(PyObject *self, PyObject *args) {
    (void)self;
    const char *wanted;
    if (!PyArg_ParseTuple(args, "s", &wanted)) return NULL;
    choose(wanted);
    return PyUnicode_FromString(instructions);
}

static PyMethodDef methods[] = {
    {"add", add, METH_VARARGS, "add(values, table, exponent) -> (exponent, min, max, num_zeros, num_infinite)"},
    {"channel_sums", channel_sums, METH_VARARGS, "channel_sums(values, sums, num_groups, num_positions, num_lanes)"},
    {"use", use, METH_VARARGS, "use('plain' | 'avx2' | 'avx512') -> the best of these up to it that this CPU has"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "calibration.histogram._histogram", "Counts |x| into bins; see histogram.c.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__histogram(void) {
    choose("avx512");
    PyObject *made = PyModule_Create(&module);
    if (made && (PyModule_AddIntConstant(made, "NUM_COUNTERS", NUM_BINS) < 0 ||
                 PyModule_AddIntConstant(made, "NUM_RESULTS", 5) < 0))
        Py_CLEAR(made);
    return made;
}
