// Which elements are kept.

KERNEL mark(PARAM Vectors vectors, i64 size, i64 marks) {
  const Vector &v = vectors.each[0];
  FOR_EACH(i, size) at<u8>(marks)[i] = kept(v, i, element(v, i)) != 0.0f;
}

static const int BUCKETS = 4096, BUCKET_SHIFT = 31 - 12;

// A block for each row. Magnitudes are counted by their upper bits, which bounds the rank of each;
// only of those whose number lies between the steps of both bounds the rank itself is counted.
// Zeros stay what they are, marked or not. ``room`` has 8 bytes for each element.
KERNEL choose_by_rank(PARAM Vectors vectors, i64 steps_at, i64 row, i64 marks, i64 size,
                      i64 room) {
  const Vector &v = vectors.each[0];
  const int *steps = at<const int>(steps_at);
  SHARED u32 above[BUCKETS + 1], parts[THREADS], asked;
  const int each = BUCKETS / THREADS;
  for (i64 first = (i64)block_index() * row; first < size; first += (i64)block_count() * row) {
    u32 *magnitudes = at<u32>(room) + first, *places = at<u32>(room) + size + first;
    sync_block();
    for (int b = thread(); b <= BUCKETS; b += THREADS) above[b] = 0;
    if (thread() == 0) asked = 0;
    sync_block();
    for (i64 i = thread(); i < row; i += THREADS) {
      u32 magnitude = bits_of(element(v, first + i)) & 0x7FFFFFFFu;
      magnitudes[i] = magnitude;
      if (magnitude) atomic_add(above + (magnitude >> BUCKET_SHIFT), 1u);
    }
    sync_block();
    u32 own = 0;
    for (int k = 0; k < each; k++) own += above[thread() * each + k];
    parts[thread()] = own;
    // The sum of this thread's and all later parts, over twice as many of them at every step.
    for (int far = 1; far < THREADS; far *= 2) {
      sync_block();
      u32 more = thread() + far < THREADS ? parts[thread() + far] : 0;
      sync_block();
      parts[thread()] += more;
    }
    u32 larger = parts[thread()] - own;
    for (int k = each - 1; k >= 0; k--) {
      u32 inside = above[thread() * each + k];
      above[thread() * each + k] = larger;
      larger += inside;
    }
    sync_block();
    for (i64 i = thread(); i < row; i += THREADS) {
      int b = magnitudes[i] >> BUCKET_SHIFT, number = drawn(v, first + i);
      u32 end = b ? above[b - 1] : (u32)row;
      bool sure = magnitudes[i] && number < steps[end > above[b] ? end - 1 : above[b]];
      at<u8>(marks)[first + i] = sure;
      if (magnitudes[i] && !sure && number < steps[above[b]]) places[take_ticket(&asked)] = (u32)i;
    }
    sync_block();
    for (u32 k = thread(); k < asked; k += THREADS) {
      u32 i = places[k], mine = magnitudes[i], rank = 0;
      for (u32 j = 0; j < i; j++) rank += magnitudes[j] >= mine;
      for (u32 j = i + 1; j < row; j++) rank += magnitudes[j] > mine;
      at<u8>(marks)[first + i] = drawn(v, first + i) < steps[rank];
    }
  }
}
