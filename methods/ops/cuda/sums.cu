// Sums over all elements, and what is computed from rows.

// The sum over a block, which all its threads ask for and get.
DEVICE double block_sum(double x) {
  SHARED double partial[THREADS];
  sync_block();
  partial[thread()] = x;
  sync_block();
  for (int half = THREADS / 2; half; half /= 2) {
    if (thread() < half) partial[thread()] += partial[thread() + half];
    sync_block();
  }
  return partial[0];
}

// The sum over the earlier threads of a block, which all of them ask for.
DEVICE u32 before_thread(u32 x) {
  SHARED u32 upto[THREADS];
  sync_block();
  upto[thread()] = x;
  for (int far = 1; far < THREADS; far *= 2) {
    sync_block();
    u32 more = thread() >= far ? upto[thread() - far] : 0;
    sync_block();
    upto[thread()] += more;
  }
  return upto[thread()] - x;
}

// Adds up one sum over all blocks. Whoever calls for several of them calls in the same order.
DEVICE void grid_sum(Workspace *workspace, int number, double x, double *result) {
  SHARED bool last;
  double own = block_sum(x);
  if (thread() == 0) {
    workspace->partial[number][block_index()] = own;
    fence();
    last = take_ticket(&workspace->ticket[number]) == (u32)block_count() - 1;
  }
  sync_block();
  if (!last) return;
  fence();
  double rest = 0.0;
  for (int i = thread(); i < block_count(); i += THREADS)
    rest += ((volatile double *)workspace->partial[number])[i];
  double total = block_sum(rest);
  if (thread() == 0) {
    *result = total;
    workspace->ticket[number] = 0;
  }
}

KERNEL dots(PARAM Vectors vectors, i64 count, i64 size, i64 sums, i64 workspace) {
  int pair = block_y(), one = 0;
  while ((one + 1) * (one + 2) / 2 <= pair) one++;
  const Vector &a = vectors.each[one], &b = vectors.each[pair - one * (one + 1) / 2];
  double total = 0.0;
  FOR_EACH(i, size) total = total + (double)element(a, i) * (double)element(b, i);
  grid_sum(at<Workspace>(workspace), pair, total, at<double>(sums) + pair);
}

KERNEL magnitudes(PARAM Vectors vectors, i64 size, i64 squares, i64 sums, i64 workspace) {
  const Vector &v = vectors.each[0];
  double whole = 0.0, rest = 0.0;
  FOR_EACH(i, size) {
    float x = element(v, i);
    double y = x, z = trims(v) ? kept(v, i, x) : x;
    whole += squares ? y * y : fabs(y);
    rest += squares ? z * z : fabs(z);
  }
  grid_sum(at<Workspace>(workspace), 0, whole, at<double>(sums));
  grid_sum(at<Workspace>(workspace), 1, rest, at<double>(sums) + 1);
}

KERNEL count_changed(PARAM Vectors vectors, i64 count, i64 size, double epsilon, i64 sums,
                     i64 workspace) {
  float least = (float)epsilon;
  double larger[MAX_VECTORS], alone[MAX_VECTORS];
  for (int n = 0; n < count; n++) larger[n] = alone[n] = 0.0;
  FOR_EACH(i, size) {
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
    grid_sum(at<Workspace>(workspace), 2 * n, larger[n], at<double>(sums) + 2 * n);
    grid_sum(at<Workspace>(workspace), 2 * n + 1, alone[n], at<double>(sums) + 2 * n + 1);
  }
}

KERNEL count_equal(PARAM Vectors vectors, i64 size, double value, i64 sums, i64 workspace) {
  const Vector &v = vectors.each[0];
  double found = 0.0;
  FOR_EACH(i, size) found += fabsf(element(v, i)) == (float)value;
  grid_sum(at<Workspace>(workspace), 0, found, at<double>(sums));
}

DEVICE double block_max(double x) {
  SHARED double partial[THREADS];
  sync_block();
  partial[thread()] = x;
  sync_block();
  for (int half = THREADS / 2; half; half /= 2) {
    if (thread() < half) partial[thread()] = fmax(partial[thread()], partial[thread() + half]);
    sync_block();
  }
  return partial[0];
}

// A block for each row; see methods.ops.compiled_ops.divergences_of.
KERNEL divergences(i64 base, i64 base_bytes, i64 other, i64 other_bytes, i64 rows, i64 row,
                   i64 out) {
  for (i64 number = block_index(); number < rows; number += block_count()) {
    i64 first = number * row;
    double top = float_of(0xFF800000u), other_top = float_of(0xFF800000u);
    for (i64 i = thread(); i < row; i += THREADS) {
      top = fmax(top, (double)load(base, base_bytes, first + i));
      other_top = fmax(other_top, (double)load(other, other_bytes, first + i));
    }
    top = block_max(top);
    other_top = block_max(other_top);
    double low = 0.0, high = 0.0, weighted = 0.0;
    for (i64 i = thread(); i < row; i += THREADS) {
      double x = load(base, base_bytes, first + i), y = load(other, other_bytes, first + i);
      double power = exp(y - other_top);
      low += exp(x - top);
      high += power;
      weighted += power * (y - x);
    }
    low = block_sum(low);
    high = block_sum(high);
    weighted = block_sum(weighted);
    double found = weighted / high + (top - other_top) + log(low / high);
    if (thread() == 0) at<float>(out)[number] = (float)(found < 0.0 ? 0.0 : found);
  }
}
