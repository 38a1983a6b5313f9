// The operations of methods.ops.interface on a CUDA device: one launch per operation and grain.
//
// What is computed for an element is what methods.ops.loops computes, operation by operation
// (compile with contraction off), so that elementwise operations give the same bits as the CPU.
// Sums are added up in an order that depends on the number of elements alone: by thread, by block,
// and by the block that is done last.

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

// What a device offers, so that tests can emulate it: threads, barriers, atomic operations.
#ifdef MERGELOOM_EMULATED
#include "emulated_device.h"
#else
#define KERNEL extern "C" __global__ void __launch_bounds__(256)
#define PARAM const __grid_constant__
#define DEVICE __device__ __forceinline__
#define SHARED __shared__
static const int THREADS = 256, WARP = 32;
DEVICE int thread() { return threadIdx.x; }
DEVICE int block_index() { return blockIdx.x; }
DEVICE int block_count() { return gridDim.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE void sync_block() { __syncthreads(); }
DEVICE void fence() { __threadfence(); }
DEVICE void atomic_add(u64 *to, u64 more) { atomicAdd(to, more); }
DEVICE void atomic_add(u32 *to, u32 more) { atomicAdd(to, more); }
DEVICE u32 take_ticket(u32 *ticket) { return atomicAdd(ticket, 1u); }
DEVICE void atomic_max(u32 *to, u32 least) { atomicMax(to, least); }
DEVICE u32 warp_max(u32 x) {
  for (int far = WARP / 2; far; far /= 2) {
    u32 other = __shfl_xor_sync(0xFFFFFFFFu, x, far);
    x = other > x ? other : x;
  }
  return x;
}
// What the threads of a warp get that take one of a counter each, in their order.
DEVICE u32 take_in_order(u32 *next) {
  u32 same = __match_any_sync(0xFFFFFFFFu, (u64)next);
  u32 before = __popc(same & ((1u << threadIdx.x % WARP) - 1)), first = *next;
  __syncwarp();
  if (before == 0) *next = first + __popc(same);
  __syncwarp();
  return first + before;
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

static const int MAX_VECTORS = 16;
struct Vectors { Vector each[MAX_VECTORS]; };

// A table of counters for each vector.
struct Tables { i64 each[MAX_VECTORS]; };

// The keys of all vectors, one vector after the other: those of vector n begin at ``first[n]``.
static const int MAX_KEYS = 48;
struct Keys { int first[MAX_VECTORS + 1], high[MAX_KEYS]; i64 table[MAX_KEYS]; };

// What one launch has to itself: partial sums of its blocks, tickets, counters that are 0 between
// launches.
static const int MAX_BLOCKS = 256, MAX_SUMS = 160, MAX_LEVELS = 64 * MAX_KEYS;
struct Workspace {
  double partial[MAX_SUMS][MAX_BLOCKS];
  u32 ticket[MAX_SUMS];
  u32 levels[MAX_LEVELS];
};

#define FOR_EACH(i, size)                                           \
  for (i64 i = (i64)block_index() * THREADS + thread(); i < (size); \
       i += (i64)block_count() * THREADS)

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
