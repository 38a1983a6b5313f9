// Which elements are kept.

KERNEL mark(PARAM Vectors vectors, i64 size, i64 marks) {
  const Vector &v = vectors.each[0];
  FOR_EACH(i, size) at<u8>(marks)[i] = kept(v, i, element(v, i)) != 0.0f;
}

static const u32 PIECE = 2048;  // methods.ops.loops.sizes.BLOCK
static const int DIGIT_BITS = 8, DIGITS = 1 << DIGIT_BITS, WARPS = THREADS / WARP;

// Elements of whole rows are sorted by row, then descending magnitude, then position: the number of
// an element has its place below, and above it what its magnitude lacks to the largest.
DEVICE u32 digit_of(u64 number, u32 row, int shift) {
  u32 part = shift < 32 ? (u32)(number >> 32) >> shift : (u32)number / row >> (shift - 32);
  return part % DIGITS;
}

// Sorts by one digit, and leaves those with the same digit as they were: a warp counts each digit in
// its part, which then come after all smaller digits, and after the same in earlier parts. Returns
// false, and writes nothing, if all have the same digit.
DEVICE bool sort_by_digit(const u64 *from, u64 *to, u32 count, u32 row, int shift) {
  SHARED u32 next[WARPS][DIGITS + 1];  // the last is for threads without an element
  SHARED bool alike;
  const int each = DIGITS / THREADS;
  u32 warp = thread() / WARP, lane = thread() % WARP, part = (count + THREADS - 1) / THREADS * WARP;
  u32 start = warp * part, end = start + part < count ? start + part : count, own = 0;
  for (int w = 0; w < WARPS; w++)
    for (int d = thread(); d < DIGITS; d += THREADS) next[w][d] = 0;
  if (thread() == 0) alike = false;
  sync_block();
  for (u32 k = start + lane; k < end; k += WARP)
    atomic_add(&next[warp][digit_of(from[k], row, shift)], 1u);
  sync_block();
  for (int d = thread() * each; d < (thread() + 1) * each; d++) {
    u32 before = own;
    for (int w = 0; w < WARPS; w++) own += next[w][d];
    if (own - before == count) alike = true;
  }
  u32 place = before_thread(own);
  for (int d = thread() * each; d < (thread() + 1) * each; d++)
    for (int w = 0; w < WARPS; w++) {
      u32 more = next[w][d];
      next[w][d] = place;
      place += more;
    }
  sync_block();
  if (!alike)
    for (u32 k = start + lane; k - lane < end; k += WARP) {
      u64 number = k < end ? from[k] : 0;
      u32 place = take_in_order(&next[warp][k < end ? digit_of(number, row, shift) : DIGITS]);
      if (k < end) to[place] = number;
    }
  bool sorted = !alike;
  sync_block();
  return sorted;
}

// A block sorts the whole rows that fit a piece, or one row, which gives all ranks. It is a radix
// sort: n elements are read 8 times, whatever their values, and 4 times more at most to keep short
// rows apart. ``room`` has 16 bytes for each element.
KERNEL choose_by_rank(PARAM Vectors vectors, i64 steps_at, i64 row, i64 marks, i64 size,
                      i64 room) {
  const Vector &v = vectors.each[0];
  const int *steps = at<const int>(steps_at);
  i64 whole = row < PIECE ? PIECE / row * row : row;
  for (i64 first = block_index() * whole; first < size; first += block_count() * whole) {
    u32 count = (u32)(size - first < whole ? size - first : whole), rows = count / (u32)row;
    u64 *sorted = at<u64>(room) + first, *other = sorted + size;
    for (u32 k = thread(); k < count; k += THREADS)
      sorted[k] = (u64)(0x7FFFFFFFu - magnitude_of(v, first + k)) << 32 | k;
    sync_block();
    for (int shift = 0; shift < 32 || (rows - 1) >> (shift - 32); shift += DIGIT_BITS)
      if (sort_by_digit(sorted, other, count, (u32)row, shift)) {
        u64 *before = sorted;
        sorted = other;
        other = before;
      }
    for (u32 k = thread(); k < count; k += THREADS) {
      i64 i = first + (u32)sorted[k];
      at<u8>(marks)[i] = drawn(v, i) < steps[k % (u32)row];
    }
  }
}
