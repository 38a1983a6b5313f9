// The operations of methods.ops.interface on a CUDA device: one launch per operation and grain.
//
// What is computed for an element is what methods.ops.loops computes, operation by operation
// (compile with contraction off), so that elementwise operations give the same bits as the CPU. Sums are
// added up in an order that depends on the number of elements alone: by thread, by block, and by the
// block that is done last.

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

// What a device offers, so that tests can emulate it: lanes, barriers, atomic operations.
#ifdef MERGELOOM_EMULATED
#include "emulated_device.h"
#else
#define KERNEL extern "C" __global__ void __launch_bounds__(256)
#define GIVEN const __grid_constant__
#define DEVICE __device__ __forceinline__
#define SHARED __shared__
static const int THREADS = 256, WARP = 32;
DEVICE int lane() { return threadIdx.x; }
DEVICE int block() { return blockIdx.x; }
DEVICE int blocks() { return gridDim.x; }
DEVICE int block_row() { return blockIdx.y; }
DEVICE void together() { __syncthreads(); }
DEVICE void visible() { __threadfence(); }
DEVICE void add(u64 *to, u64 more) { atomicAdd(to, more); }
DEVICE void add(u32 *to, u32 more) { atomicAdd(to, more); }
DEVICE u32 next(u32 *ticket) { return atomicAdd(ticket, 1u); }
DEVICE void raise_to(u32 *to, u32 least) { atomicMax(to, least); }
DEVICE u32 highest_of_warp(u32 x) {
  for (int far = WARP / 2; far; far /= 2) {
    u32 other = __shfl_xor_sync(0xFFFFFFFFu, x, far);
    x = other > x ? other : x;
  }
  return x;
}
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 x) { return __uint_as_float(x); }
template <typename T> DEVICE T *at(i64 address) { return (T *)address; }
#endif

// methods.ops.loops.record.VECTOR
struct Vector {
  i64 address, bytes, minus, minus_bytes, factors, factor_row, factor_columns, first_column;
  bool above;
  i64 above_end;
  float above_before, above_after;
  bool upto;
  i64 upto_end;
  float upto_before, upto_after;
  bool draws;
  u32 first, second;
  i64 word_end;
  u32 next_first, next_second;
  int bound;
  i64 marks;
  float vote, coefficient, share;
};

static const int MOST = 16;
struct Vectors { Vector each[MOST]; };

// A table of counters for each vector.
struct Tables { i64 each[MOST]; };

// The keys of all vectors, one vector after the other: those of vector n begin at ``first[n]``.
static const int MOST_KEYS = 48;
struct Keys { int first[MOST + 1], high[MOST_KEYS]; i64 table[MOST_KEYS]; };

// What one launch has to itself: partial sums of its blocks, tickets, counters that are 0 between
// launches.
static const int MOST_BLOCKS = 256, MOST_SUMS = 160, MOST_LEVELS = 64 * MOST_KEYS;
struct Workshop {
  double partial[MOST_SUMS][MOST_BLOCKS];
  u32 ticket[MOST_SUMS];
  u32 levels[MOST_LEVELS];
};

#define EACH(i, size) \
  for (i64 i = (i64)block() * THREADS + lane(); i < (size); i += (i64)blocks() * THREADS)

// --- elements -----------------------------------------------------------------------------------

DEVICE float load(i64 address, i64 bytes, i64 i) {
  return bytes == 2 ? float_of((u32)at<const u16>(address)[i] << 16) : at<const float>(address)[i];
}

DEVICE float element(const Vector &v, i64 i) {
  float x = load(v.address, v.bytes, i);
  if (v.minus) x -= load(v.minus, v.minus_bytes, i);
  if (v.factors) {
    i64 place = v.factor_columns ? (v.first_column + i) % v.factor_columns : i / v.factor_row;
    x *= at<const float>(v.factors)[place];
  }
  return x;
}

// methods.ops.draws; the constants are HASH.
DEVICE int drawn(const Vector &v, i64 i) {
  bool later = i >= v.word_end;
  u32 first = later ? v.next_first : v.first, second = later ? v.next_second : v.second;
  u32 place = (u32)(later ? i - v.word_end : i);
  u32 x = first + place * 0x9E3779B1u;
  x ^= x >> 16;
  x = (x * 0x21F0AAADu) ^ second;
  x ^= x >> 15;
  return (int)(x * 0xD35A2D97u);
}

// What methods.ops.interface.KeepRule leaves of an element.
DEVICE float kept(const Vector &v, i64 i, float x) {
  if (v.above && fabsf(x) <= (i < v.above_end ? v.above_before : v.above_after)) x = 0.0f;
  if (v.upto && !(fabsf(x) <= (i < v.upto_end ? v.upto_before : v.upto_after))) x = 0.0f;
  if (v.draws && drawn(v, i) >= v.bound) x = 0.0f;
  if (v.marks && !at<const u8>(v.marks)[i]) x = 0.0f;
  return x;
}

DEVICE bool trims(const Vector &v) { return v.above || v.upto || v.draws || v.marks; }

// --- sums ---------------------------------------------------------------------------------------

// The sum over a block, which all its threads ask for and get.
DEVICE double sum_of_block(double x) {
  SHARED double lanes[THREADS];
  together();
  lanes[lane()] = x;
  together();
  for (int half = THREADS / 2; half; half /= 2) {
    if (lane() < half) lanes[lane()] += lanes[lane() + half];
    together();
  }
  return lanes[0];
}

// Adds up one sum over all blocks. Whoever calls for several of them calls in the same order.
DEVICE void sum_of_all(Workshop *shop, int number, double x, double *result) {
  SHARED bool last;
  double own = sum_of_block(x);
  if (lane() == 0) {
    shop->partial[number][block()] = own;
    visible();
    last = next(&shop->ticket[number]) == (u32)blocks() - 1;
  }
  together();
  if (!last) return;
  visible();
  double rest = 0.0;
  for (int i = lane(); i < blocks(); i += THREADS)
    rest += ((volatile double *)shop->partial[number])[i];
  double total = sum_of_block(rest);
  if (lane() == 0) {
    *result = total;
    shop->ticket[number] = 0;
  }
}

KERNEL dots(GIVEN Vectors vectors, i64 count, i64 size, i64 sums, i64 shop) {
  int pair = block_row(), one = 0;
  while ((one + 1) * (one + 2) / 2 <= pair) one++;
  const Vector &a = vectors.each[one], &b = vectors.each[pair - one * (one + 1) / 2];
  double total = 0.0;
  EACH(i, size) total = total + (double)element(a, i) * (double)element(b, i);
  sum_of_all(at<Workshop>(shop), pair, total, at<double>(sums) + pair);
}

KERNEL magnitudes(GIVEN Vectors vectors, i64 size, i64 squares, i64 sums, i64 shop) {
  const Vector &v = vectors.each[0];
  double whole = 0.0, rest = 0.0;
  EACH(i, size) {
    float x = element(v, i);
    double y = x, z = trims(v) ? kept(v, i, x) : x;
    whole += squares ? y * y : fabs(y);
    rest += squares ? z * z : fabs(z);
  }
  sum_of_all(at<Workshop>(shop), 0, whole, at<double>(sums));
  sum_of_all(at<Workshop>(shop), 1, rest, at<double>(sums) + 1);
}

KERNEL shared(GIVEN Vectors vectors, i64 count, i64 size, double epsilon, i64 sums, i64 shop) {
  float least = (float)epsilon;
  double larger[MOST], alone[MOST];
  for (int n = 0; n < count; n++) larger[n] = alone[n] = 0.0;
  EACH(i, size) {
    int by = 0, which = 0;
    for (int n = 0; n < count; n++)
      if (!(fabsf(element(vectors.each[n], i)) <= least)) {
        larger[n] += 1.0;
        which = n;
        by++;
      }
    if (by == 1) alone[which] += 1.0;
  }
  for (int n = 0; n < count; n++) {
    sum_of_all(at<Workshop>(shop), 2 * n, larger[n], at<double>(sums) + 2 * n);
    sum_of_all(at<Workshop>(shop), 2 * n + 1, alone[n], at<double>(sums) + 2 * n + 1);
  }
}

KERNEL count_equal(GIVEN Vectors vectors, i64 size, double value, i64 sums, i64 shop) {
  const Vector &v = vectors.each[0];
  double found = 0.0;
  EACH(i, size) found += fabsf(element(v, i)) == (float)value;
  sum_of_all(at<Workshop>(shop), 0, found, at<double>(sums));
}

// --- counting -----------------------------------------------------------------------------------

// Counters that many elements share are kept by each block for itself, in shared memory, where a
// warp's additions to one counter are one; a block then adds what it found to the table. A row of
// blocks counts one vector.

static const int BATCH = 8;         // elements that a thread loads before it counts them
static const u32 NONE = ~0u;        // no magnitude
static const u32 WINDOW = 4096;     // 16 octaves of 256 buckets

DEVICE u32 magnitude_of(const Vector &v, i64 i) { return bits_of(element(v, i)) & 0x7FFFFFFFu; }

// Magnitudes of BATCH elements, from ``start`` on by a row's threads.
DEVICE void magnitudes_of(const Vector &v, i64 start, i64 size, u32 *found) {
#pragma unroll
  for (int k = 0; k < BATCH; k++) {
    i64 i = start + (i64)k * blocks() * THREADS;
    found[k] = i < size ? magnitude_of(v, i) : NONE;
  }
}

#define EACH_BATCH(start, size)                                     \
  for (i64 start = (i64)block() * THREADS + lane(); start < (size); \
       start += (i64)BATCH * blocks() * THREADS)

// Each block keeps the counters of 16 octaves, which end two above the largest of its first
// elements. Others go to the table: they are few, and thus seldom meet.
KERNEL count_high(GIVEN Vectors vectors, GIVEN Tables tables, i64 count, i64 size, i64 low,
                  i64 sums, i64 shop) {
  SHARED u32 inside[WINDOW], highest;
  const Vector &v = vectors.each[block_row()];
  u64 *table = at<u64>(tables.each[block_row()]);
  for (u32 b = lane(); b < WINDOW; b += THREADS) inside[b] = 0;
  if (lane() == 0) highest = 0;
  together();
  i64 own = (i64)block() * THREADS + lane();
  u32 most = highest_of_warp(own < size ? magnitude_of(v, own) >> low : 0);
  if (lane() % WARP == 0) raise_to(&highest, most);
  together();
  u32 octave = 1u << (23 - low), end = (highest / octave + 3) * octave;
  u32 first = end > WINDOW ? end - WINDOW : 0, zeros = 0, nonzero = 0;
  EACH_BATCH(start, size) {
    u32 found[BATCH];
    magnitudes_of(v, start, size, found);
#pragma unroll
    for (int k = 0; k < BATCH; k++) {
      if (found[k] == NONE) continue;
      if (found[k] == 0) {
        zeros++;
        continue;
      }
      nonzero++;
      u32 bucket = found[k] >> low;
      if (bucket - first < WINDOW) add(inside + (bucket - first), 1u);
      else add(table + bucket, 1ull);
    }
  }
  double alone = sum_of_block(zeros);
  if (lane() == 0 && alone > 0.0) add(table, (u64)alone);
  for (u32 b = lane(); b < WINDOW; b += THREADS)
    if (inside[b]) add(table + first + b, (u64)inside[b]);
  sum_of_all(at<Workshop>(shop), block_row(), nonzero, at<double>(sums) + block_row());
}

// Differences of 16-bit floats mostly have 0 as their lowest bits, so those are the counters that
// each block keeps; there are the ``levels``, too.
KERNEL count_low(GIVEN Vectors vectors, GIVEN Keys keys, i64 count, i64 size, i64 low, i64 step,
                 i64 levels, i64 shop) {
  SHARED u32 inside[MOST_LEVELS];
  SHARED bool last;
  const Vector &v = vectors.each[block_row()];
  Workshop *work = at<Workshop>(shop);
  int first = keys.first[block_row()], end = keys.first[block_row() + 1];
  int rows = 1 << (low - step), cells = (end - first) * rows;
  u32 lowest = (1u << low) - 1, finer = (1u << step) - 1, zeros = 0;
  for (int i = lane(); i < cells; i += THREADS) inside[i] = 0;
  together();
  EACH_BATCH(start, size) {
    u32 found[BATCH];
    magnitudes_of(v, start, size, found);
#pragma unroll
    for (int k = 0; k < BATCH; k++) {
      if (found[k] == NONE) continue;
      if (found[k] == 0) {
        zeros++;
        continue;
      }
      for (int key = first; key < end; key++) {
        if ((int)(found[k] >> low) != keys.high[key]) continue;
        u32 rest = found[k] & lowest;
        if (rest & finer) add(at<u64>(keys.table[key]) + rest, 1ull);
        else add(inside + (key - first) * rows + (rest >> step), 1u);
      }
    }
  }
  double alone = sum_of_block(zeros);
  if (lane() == 0 && alone > 0.0)
    for (int key = first; key < end; key++)
      if (keys.high[key] == 0) add(inside + (key - first) * rows, (u32)alone);
  together();
  u32 *together_found = work->levels + first * rows;
  for (int i = lane(); i < cells; i += THREADS)
    if (inside[i]) {
      add(at<u64>(keys.table[first + i / rows]) + ((u64)(i % rows) << step), (u64)inside[i]);
      add(together_found + i, inside[i]);
    }
  visible();
  together();
  if (lane() == 0) last = next(&work->ticket[block_row()]) == (u32)blocks() - 1;
  together();
  if (!last) return;
  visible();
  for (int i = lane(); i < cells; i += THREADS) {
    at<int>(levels)[first * rows + i] = (int)((volatile u32 *)together_found)[i];
    together_found[i] = 0;
  }
  if (lane() == 0) work->ticket[block_row()] = 0;
}

// By one block: it looks for the part in which what is sought ends, and for the place in there.
KERNEL end_of_equal(GIVEN Vectors vectors, i64 size, double value, i64 most, i64 result) {
  const Vector &v = vectors.each[0];
  i64 found = 0, start = 0;
  for (i64 each = 64; each; each = each == 1 ? 0 : 1) {
    for (; start < size; start += (i64)THREADS * each) {
      double own = 0.0;
      for (i64 k = 0; k < each; k++) {
        i64 i = start + k * THREADS + lane();
        if (i < size) own += fabsf(element(v, i)) == (float)value;
      }
      i64 more = (i64)sum_of_block(own);
      if (found + more > most) break;
      found += more;
    }
  }
  if (lane()) return;
  for (; start < size; start++) {
    found += fabsf(element(v, start)) == (float)value;
    if (found > most) break;
  }
  *at<double>(result) = (double)(start < size ? start : size);
}

// --- choosing -----------------------------------------------------------------------------------

KERNEL mark(GIVEN Vectors vectors, i64 size, i64 marks) {
  const Vector &v = vectors.each[0];
  EACH(i, size) at<u8>(marks)[i] = kept(v, i, element(v, i)) != 0.0f;
}

static const int BUCKETS = 4096, BUCKET_SHIFT = 31 - 12;

// A block for each row. Magnitudes are counted by their upper bits, which bounds the rank of each;
// only of those whose number lies between the steps of both bounds the rank itself is counted.
// Zeros stay what they are, marked or not. ``room`` has 8 bytes for each element.
KERNEL choose_by_rank(GIVEN Vectors vectors, i64 steps_at, i64 row, i64 marks, i64 size, i64 room) {
  const Vector &v = vectors.each[0];
  const int *steps = at<const int>(steps_at);
  SHARED u32 above[BUCKETS + 1], parts[THREADS], asked;
  const int each = BUCKETS / THREADS;
  for (i64 first = (i64)block() * row; first < size; first += (i64)blocks() * row) {
    u32 *magnitudes = at<u32>(room) + first, *places = at<u32>(room) + size + first;
    together();
    for (int b = lane(); b <= BUCKETS; b += THREADS) above[b] = 0;
    if (lane() == 0) asked = 0;
    together();
    for (i64 i = lane(); i < row; i += THREADS) {
      u32 magnitude = bits_of(element(v, first + i)) & 0x7FFFFFFFu;
      magnitudes[i] = magnitude;
      if (magnitude) add(above + (magnitude >> BUCKET_SHIFT), 1u);
    }
    together();
    u32 own = 0;
    for (int k = 0; k < each; k++) own += above[lane() * each + k];
    parts[lane()] = own;
    // The sum of this lane's and all later parts, over twice as many of them at every step.
    for (int far = 1; far < THREADS; far *= 2) {
      together();
      u32 more = lane() + far < THREADS ? parts[lane() + far] : 0;
      together();
      parts[lane()] += more;
    }
    u32 larger = parts[lane()] - own;
    for (int k = each - 1; k >= 0; k--) {
      u32 inside = above[lane() * each + k];
      above[lane() * each + k] = larger;
      larger += inside;
    }
    together();
    for (i64 i = lane(); i < row; i += THREADS) {
      int b = magnitudes[i] >> BUCKET_SHIFT, number = drawn(v, first + i);
      u32 end = b ? above[b - 1] : (u32)row;
      bool sure = magnitudes[i] && number < steps[end > above[b] ? end - 1 : above[b]];
      at<u8>(marks)[first + i] = sure;
      if (magnitudes[i] && !sure && number < steps[above[b]]) places[next(&asked)] = (u32)i;
    }
    together();
    for (u32 k = lane(); k < asked; k += THREADS) {
      u32 i = places[k], mine = magnitudes[i], rank = 0;
      for (u32 j = 0; j < i; j++) rank += magnitudes[j] >= mine;
      for (u32 j = i + 1; j < row; j++) rank += magnitudes[j] > mine;
      at<u8>(marks)[first + i] = drawn(v, first + i) < steps[rank];
    }
  }
}

// --- rows ---------------------------------------------------------------------------------------

DEVICE double highest_of_block(double x) {
  SHARED double lanes[THREADS];
  together();
  lanes[lane()] = x;
  together();
  for (int half = THREADS / 2; half; half /= 2) {
    if (lane() < half) lanes[lane()] = fmax(lanes[lane()], lanes[lane() + half]);
    together();
  }
  return lanes[0];
}

// A block for each row; see methods.ops.compiled_ops.divergences_of.
KERNEL divergences(i64 base, i64 base_bytes, i64 other, i64 other_bytes, i64 rows, i64 row,
                   i64 out) {
  for (i64 number = block(); number < rows; number += blocks()) {
    i64 first = number * row;
    double top = float_of(0xFF800000u), other_top = float_of(0xFF800000u);
    for (i64 i = lane(); i < row; i += THREADS) {
      top = fmax(top, (double)load(base, base_bytes, first + i));
      other_top = fmax(other_top, (double)load(other, other_bytes, first + i));
    }
    top = highest_of_block(top);
    other_top = highest_of_block(other_top);
    double low = 0.0, high = 0.0, weighted = 0.0;
    for (i64 i = lane(); i < row; i += THREADS) {
      double x = load(base, base_bytes, first + i), y = load(other, other_bytes, first + i);
      double power = exp(y - other_top);
      low += exp(x - top);
      high += power;
      weighted += power * (y - x);
    }
    low = sum_of_block(low);
    high = sum_of_block(high);
    weighted = sum_of_block(weighted);
    double found = weighted / high + (top - other_top) + log(low / high);
    if (lane() == 0) at<float>(out)[number] = (float)(found < 0.0 ? 0.0 : found);
  }
}

// --- writing ------------------------------------------------------------------------------------

// methods.ops.interface.Ops.combine; elects: 0 no, 1 by sum, 2 by count.
KERNEL combine(GIVEN Vectors vectors, i64 count, i64 hash, i64 elects, i64 divides,
               double cancelled, i64 base, i64 base_bytes, double scale, i64 out, i64 size) {
  EACH(i, size) {
    float values[MOST];
    float total = base ? 0.0f : -0.0f, divisor = 0.0f;
    for (int n = 0; n < count; n++) {
      const Vector &v = vectors.each[n];
      float x = kept(v, i, element(v, i));
      values[n] = x;
      float vote = elects != 2 ? x : x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f;
      total = fmaf(elects ? v.vote : v.coefficient, vote, total);
    }
    if (elects) {
      float sign = total >= 0.0f ? 1.0f : -1.0f;
      total = 0.0f;
      for (int n = 0; n < count; n++) {
        const Vector &v = vectors.each[n];
        float flip = v.vote < 0.0f ? -1.0f : 1.0f, value = values[n] * sign * flip;
        float agreeing = value != value ? value : value > 0.0f ? value : 0.0f;
        total = fmaf(flip * v.coefficient, agreeing, total);
        divisor += agreeing > 0.0f ? v.share : 0.0f;
      }
      total *= sign;
      if (divides) total /= divisor + (fabsf(divisor) <= (float)cancelled ? 1.0f : 0.0f);
    }
    at<float>(out)[i] = base ? fmaf((float)scale, total, load(base, base_bytes, i)) : total;
  }
}

KERNEL choose(GIVEN Vectors vectors, double least, i64 out, i64 size) {
  const Vector &v = vectors.each[0];
  EACH(i, size) {
    bool chosen = fabsf(element(v, i)) >= (float)least;
    at<float>(out)[i] = chosen ? load(v.address, v.bytes, i) : load(v.minus, v.minus_bytes, i);
  }
}

KERNEL step(GIVEN Vectors vectors, double limit, i64 base, i64 base_bytes, i64 out, i64 size) {
  float most = (float)limit;
  EACH(i, size) {
    float x = element(vectors.each[0], i);
    x = x > most ? most : x < -most ? -most : x;
    at<float>(out)[i] = x + load(base, base_bytes, i);
  }
}

KERNEL disjoint(GIVEN Vectors vectors, i64 count, double epsilon, i64 base, i64 base_bytes, i64 out,
                i64 size) {
  float least = (float)epsilon;
  EACH(i, size) {
    float total = 0.0f, more = 0.0f, by = 0.0f;
    for (int n = 0; n < count; n++) {
      float x = element(vectors.each[n], i);
      if (fabsf(x) <= least) x = 0.0f;
      total += x;
      more = fmaf(vectors.each[n].coefficient, x, more);
      by += x != 0.0f ? 1.0f : 0.0f;
    }
    total += by == 1.0f ? more : 0.0f;
    at<float>(out)[i] = total / (by > 1.0f ? by : 1.0f) + load(base, base_bytes, i);
  }
}

KERNEL variance(GIVEN Vectors vectors, i64 count, i64 out, i64 size) {
  EACH(i, size) {
    float mean = 0.0f, total = 0.0f;
    for (int n = 0; n < count; n++) mean += element(vectors.each[n], i);
    mean /= (float)count;
    for (int n = 0; n < count; n++) {
      float away = element(vectors.each[n], i) - mean;
      total += away * away;
    }
    at<float>(out)[i] = total;
  }
}

// --- types of elements (methods.ops.loops.sizes.Kind) -------------------------------------------

enum Kind { BF16 = 0, F32 = 1, F16 = 2, F64 = 3, F8_E4M3 = 4, F8_E5M2 = 5 };

DEVICE float from_half(u32 code) {
  float x = float_of((code & 0x7FFFu) << 13) * float_of(0x77800000u);  // 2^112
  u32 special = (code & 0x7C00u) == 0x7C00u ? 0x7F800000u : 0u;
  return float_of(bits_of(x) | special | (code & 0x8000u) << 16);
}

DEVICE float from_e4m3(u32 code) {
  float x = float_of((code & 0x7Fu) << 20) * float_of(0x7B800000u);  // 2^120
  u32 nan = (code & 0x7Fu) == 0x7Fu ? 0x7FC00000u : 0u;
  return float_of(bits_of(x) | nan | (code & 0x80u) << 24);
}

KERNEL widen(i64 address, i64 kind, i64 size, i64 out) {
  EACH(i, size) {
    float x;
    if (kind == BF16) x = load(address, 2, i);
    else if (kind == F32) x = load(address, 4, i);
    else if (kind == F16) x = from_half(at<const u16>(address)[i]);
    else if (kind == F64) x = (float)at<const double>(address)[i];
    else if (kind == F8_E4M3) x = from_e4m3(at<const u8>(address)[i]);
    else x = from_half((u32)at<const u8>(address)[i] << 8);
    at<float>(out)[i] = x;
  }
}

// The code, without sign, of a float32 in a type of fewer bits; see methods.ops.loops.convert.
DEVICE u32 narrowed(float x, int mantissa, int bias, u32 top, u32 nan) {
  u32 own = bits_of(x) & 0x7FFFFFFFu, width = 23 - mantissa;
  if (own > 0x7F800000u) return nan;
  u32 magic = (u32)(127 - bias + 24 - mantissa) << 23;
  if (own < (u32)(128 - bias) << 23) return bits_of(float_of(magic) + fabsf(x)) - magic;
  u32 odd = (own >> width) & 1u, half = (1u << (width - 1)) - 1u;
  u32 code = (own - ((u32)(127 - bias) << 23) + half + odd) >> width;
  return code < top ? code : top;
}

// Writes 1 to ``found`` where any result is not finite.
KERNEL store(i64 source, i64 size, i64 out, i64 kind, i64 found) {
  bool bad = false;
  EACH(i, size) {
    float x = at<const float>(source)[i];
    u32 bits = bits_of(x);
    if (kind == BF16) {
      bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
      u32 code = nan ? bits >> 16 | 0x40u : (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
      at<u16>(out)[i] = (u16)code;
      bad |= (code & 0x7F80u) == 0x7F80u;
    } else if (kind == F32 || kind == F64) {
      bad |= (bits & 0x7F800000u) == 0x7F800000u;
      if (kind == F64) at<double>(out)[i] = x;
      else if (out != source) at<float>(out)[i] = x;
    } else if (kind == F16) {
      u32 code = narrowed(x, 10, 15, 0x7C00u, 0x7E00u);
      bad |= code >= 0x7C00u;
      at<u16>(out)[i] = (u16)(code | (bits >> 16 & 0x8000u));
    } else {
      bool wide = kind == F8_E5M2;
      u32 code = wide ? narrowed(x, 2, 15, 0x7Cu, 0x7Fu) : narrowed(x, 3, 7, 0x7Fu, 0x7Fu);
      bad |= code >= (wide ? 0x7Cu : 0x7Fu);
      at<u8>(out)[i] = (u8)(code | (bits >> 24 & 0x80u));
    }
  }
  if (bad) *at<double>(found) = 1.0;
}
