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
    i64 i = start + (i64)k * block_count() * THREADS;
    found[k] = i < size ? magnitude_of(v, i) : NONE;
  }
}

// Call ``visit`` with each nonzero magnitude; returns the number of zeros. Both of the thread's
// part.
template <typename Visit>
DEVICE u32 for_each_nonzero(const Vector &v, i64 size, Visit visit) {
  u32 zeros = 0;
  i64 step = (i64)BATCH * block_count() * THREADS;
  for (i64 start = (i64)block_index() * THREADS + thread(); start < size; start += step) {
    u32 found[BATCH];
    magnitudes_of(v, start, size, found);
#pragma unroll
    for (int k = 0; k < BATCH; k++) {
      if (found[k] == NONE) continue;
      if (found[k] == 0) zeros++;
      else visit(found[k]);
    }
  }
  return zeros;
}

// Each block keeps the counters of 16 octaves, which end two above the largest of its first
// elements. Others go to the table: they are few, and thus seldom meet.
KERNEL count_high(PARAM Vectors vectors, PARAM Tables tables, i64 count, i64 size, i64 low,
                  i64 sums, i64 workspace) {
  SHARED u32 inside[WINDOW], highest;
  const Vector &v = vectors.each[block_y()];
  u64 *table = at<u64>(tables.each[block_y()]);
  for (u32 b = thread(); b < WINDOW; b += THREADS) inside[b] = 0;
  if (thread() == 0) highest = 0;
  sync_block();
  i64 own = (i64)block_index() * THREADS + thread();
  u32 most = warp_max(own < size ? magnitude_of(v, own) >> low : 0);
  if (thread() % WARP == 0) atomic_max(&highest, most);
  sync_block();
  u32 octave = 1u << (23 - low), end = (highest / octave + 3) * octave;
  u32 first = end > WINDOW ? end - WINDOW : 0, nonzero = 0;
  u32 zeros = for_each_nonzero(v, size, [&](u32 magnitude) {
    nonzero++;
    u32 bucket = magnitude >> low;
    if (bucket - first < WINDOW) atomic_add(inside + (bucket - first), 1u);
    else atomic_add(table + bucket, 1ull);
  });
  double alone = block_sum(zeros);
  if (thread() == 0 && alone > 0.0) atomic_add(table, (u64)alone);
  for (u32 b = thread(); b < WINDOW; b += THREADS)
    if (inside[b]) atomic_add(table + first + b, (u64)inside[b]);
  grid_sum(at<Workspace>(workspace), block_y(), nonzero, at<double>(sums) + block_y());
}

// Differences of 16-bit floats mostly have 0 as their lowest bits, so those are the counters that
// each block keeps; there are the ``levels``, too.
KERNEL count_low(PARAM Vectors vectors, PARAM Keys keys, i64 count, i64 size, i64 low, i64 step,
                 i64 levels, i64 workspace) {
  SHARED u32 inside[MAX_LEVELS];
  SHARED bool last;
  const Vector &v = vectors.each[block_y()];
  Workspace *work = at<Workspace>(workspace);
  int first = keys.first[block_y()], end = keys.first[block_y() + 1];
  int rows = 1 << (low - step), cells = (end - first) * rows;
  u32 lowest = (1u << low) - 1, finer = (1u << step) - 1;
  for (int i = thread(); i < cells; i += THREADS) inside[i] = 0;
  sync_block();
  u32 zeros = for_each_nonzero(v, size, [&](u32 magnitude) {
    for (int key = first; key < end; key++) {
      if ((int)(magnitude >> low) != keys.high[key]) continue;
      u32 rest = magnitude & lowest;
      if (rest & finer) atomic_add(at<u64>(keys.table[key]) + rest, 1ull);
      else atomic_add(inside + (key - first) * rows + (rest >> step), 1u);
    }
  });
  double alone = block_sum(zeros);
  if (thread() == 0 && alone > 0.0)
    for (int key = first; key < end; key++)
      if (keys.high[key] == 0) atomic_add(inside + (key - first) * rows, (u32)alone);
  sync_block();
  u32 *all_found = work->levels + first * rows;
  for (int i = thread(); i < cells; i += THREADS)
    if (inside[i]) {
      atomic_add(at<u64>(keys.table[first + i / rows]) + ((u64)(i % rows) << step), (u64)inside[i]);
      atomic_add(all_found + i, inside[i]);
    }
  fence();
  sync_block();
  if (thread() == 0) last = take_ticket(&work->ticket[block_y()]) == (u32)block_count() - 1;
  sync_block();
  if (!last) return;
  fence();
  for (int i = thread(); i < cells; i += THREADS) {
    at<int>(levels)[first * rows + i] = (int)((volatile u32 *)all_found)[i];
    all_found[i] = 0;
  }
  if (thread() == 0) work->ticket[block_y()] = 0;
}

// By one block: it looks for the part in which what is sought ends, and for the place in there.
KERNEL end_of_equal(PARAM Vectors vectors, i64 size, double value, i64 most, i64 result) {
  const Vector &v = vectors.each[0];
  i64 found = 0, start = 0;
  for (i64 each = 64; each; each = each == 1 ? 0 : 1) {
    for (; start < size; start += (i64)THREADS * each) {
      double own = 0.0;
      for (i64 k = 0; k < each; k++) {
        i64 i = start + k * THREADS + thread();
        if (i < size) own += fabsf(element(v, i)) == (float)value;
      }
      i64 more = (i64)block_sum(own);
      if (found + more > most) break;
      found += more;
    }
  }
  if (thread()) return;
  for (; start < size; start++) {
    found += fabsf(element(v, start)) == (float)value;
    if (found > most) break;
  }
  *at<double>(result) = (double)(start < size ? start : size);
}
