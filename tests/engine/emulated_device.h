// A CUDA device on this machine, for the code in methods/ops/cuda: a block's threads are fibers that run one at a
// time, in another order after every barrier, and lose the processor at some of the atomic
// operations. What a barrier is missing for is thus read too early or too late.
//
// As on a device, memory shared by a block holds rubbish when a block begins; memory of the device
// is out of the host's reach (its addresses have a bit more), and the host's out of the device's,
// except for what is mapped. Barriers that only some threads reach end the process with a message.

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define KERNEL static void  // not extern: the C library has a step() too
#define PARAM const
#define DEVICE static inline
#define SHARED static __attribute__((section("block_shared")))

static const int THREADS = 64, WARP = 32;

extern "C" char __start_block_shared[] __attribute__((visibility("hidden")));
extern "C" char __stop_block_shared[] __attribute__((visibility("hidden")));

namespace emulated {

static const i64 DEVICE_BIT = 1ll << 60;
static const size_t STACK = 64 << 10;
enum State { READY, AT_BLOCK, AT_WARP, ENDED };

struct Fiber {
  ucontext_t context;
  jmp_buf place;
  bool begun;
  State state;
};

static Fiber fibers[THREADS];
static char *stacks = nullptr;
static jmp_buf scheduler;
static int now, column, row, columns;
static u32 seed = 1, staged[THREADS];
static void (*body)(void *);
static void *body_data;
static i64 mapped_from = 0, mapped_to = 0;

static inline void die(const char *message) {
  fprintf(stderr, "emulated device: %s\n", message);
  abort();
}

static inline u32 random_number() {
  seed ^= seed << 13;
  seed ^= seed >> 17;
  seed ^= seed << 5;
  return seed;
}

static inline void leave(State state) {
  fibers[now].state = state;
  if (!_setjmp(fibers[now].place)) _longjmp(scheduler, 1);
}

static void begin() {
  body(body_data);
  fibers[now].state = ENDED;
  _longjmp(scheduler, 1);
}

static inline void go_on(int number) {
  Fiber &fiber = fibers[number];
  now = number;
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stacks + STACK * number;
  fiber.context.uc_stack.ss_size = STACK;
  makecontext(&fiber.context, begin, 0);
  setcontext(&fiber.context);
}

// Lets a group of threads go on if all of it waits for that; a barrier is for all of its group.
static bool release(int first, int count, State where) {
  int waiting = 0, ended = 0;
  for (int i = first; i < first + count; i++) {
    waiting += fibers[i].state == where;
    ended += fibers[i].state == ENDED;
  }
  if (waiting && ended) die("a thread has ended where others wait for it");
  if (waiting != count) return false;
  for (int i = first; i < first + count; i++) fibers[i].state = READY;
  return true;
}

static void run_block() {
  memset(__start_block_shared, 0xA5, __stop_block_shared - __start_block_shared);
  for (int i = 0; i < THREADS; i++) {
    fibers[i].begun = false;
    fibers[i].state = READY;
  }
  for (;;) {
    u32 start = random_number(), stride = random_number() | 1;  // odd: it reaches every thread
    bool ran = false, ended = true;
    for (u32 i = 0; i < THREADS; i++) {
      int number = (start + i * stride) % THREADS;
      if (fibers[number].state == READY) {
        go_on(number);
        ran = true;
      }
    }
    if (ran) continue;
    bool released = false;
    for (int i = 0; i < THREADS; i += WARP) released |= release(i, WARP, AT_WARP);
    for (int i = 0; i < THREADS; i++) ended &= fibers[i].state == ENDED;
    if (ended) return;
    if (!released && !release(0, THREADS, AT_BLOCK)) die("threads wait at different barriers");
  }
}

// Runs ``work(data)`` for every thread of a grid, block by block in any order.
static void run(int width, int height, void (*work)(void *), void *data) {
  if (!stacks) stacks = (char *)malloc(STACK * THREADS);
  body = work;
  body_data = data;
  columns = width;
  int start = random_number() % (width * height);
  for (int i = 0; i < width * height; i++) {
    int number = (start + i) % (width * height);
    column = number % width;
    row = number / width;
    run_block();
  }
}

}  // namespace emulated

// Main memory that the device can access.
extern "C" void map_memory(i64 from, i64 size) {
  emulated::mapped_from = from;
  emulated::mapped_to = from + size;
}

DEVICE int thread() { return emulated::now; }
DEVICE int block_index() { return emulated::column; }
DEVICE int block_count() { return emulated::columns; }
DEVICE int block_y() { return emulated::row; }
DEVICE void sync_block() { emulated::leave(emulated::AT_BLOCK); }
DEVICE void fence() {}

DEVICE void pause() {
  if (emulated::random_number() % 64 == 0) emulated::leave(emulated::READY);
}
template <typename T> DEVICE void atomic_add(T *to, T more) { pause(); *to += more; }
DEVICE u32 take_ticket(u32 *ticket) { pause(); return (*ticket)++; }
DEVICE void atomic_max(u32 *to, u32 least) { pause(); if (*to < least) *to = least; }

DEVICE u32 warp_max(u32 x) {
  emulated::staged[thread()] = x;
  emulated::leave(emulated::AT_WARP);
  u32 most = 0;
  for (int i = 0; i < WARP; i++) {
    u32 other = emulated::staged[thread() / WARP * WARP + i];
    most = other > most ? other : most;
  }
  emulated::leave(emulated::AT_WARP);
  return most;
}

// The last thread of a warp to ask answers for all.
DEVICE u32 take_in_order(u32 *next) {
  static u32 *asked[THREADS], taken[THREADS], waiting[THREADS];
  int warp = thread() / WARP, first = warp * WARP;
  asked[thread()] = next;
  if (++waiting[warp] == WARP) {
    for (int i = first; i < first + WARP; i++) taken[i] = (*asked[i])++;
    waiting[warp] = 0;
  }
  emulated::leave(emulated::AT_WARP);
  return taken[thread()];
}

DEVICE u32 bits_of(float x) { u32 y; memcpy(&y, &x, 4); return y; }
DEVICE float float_of(u32 x) { float y; memcpy(&y, &x, 4); return y; }

template <typename T> DEVICE T *at(i64 address) {
  if (address & emulated::DEVICE_BIT) return (T *)(address & ~emulated::DEVICE_BIT);
  if (address < emulated::mapped_from || address >= emulated::mapped_to)
    emulated::die("an address in main memory that is not mapped");
  return (T *)address;
}
