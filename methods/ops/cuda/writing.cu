// Results, and conversions between types of elements (methods.ops.loops.sizes.Kind).

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
  FOR_EACH(i, size) {
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

// Rounds a result to a type; returns whether it is not finite there.
DEVICE bool put(float x, i64 out, i64 kind, i64 i) {
  u32 bits = bits_of(x);
  if (kind == BF16) {
    bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    u32 code = nan ? bits >> 16 | 0x40u : (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
    at<u16>(out)[i] = (u16)code;
    return (code & 0x7F80u) == 0x7F80u;
  }
  if (kind == F32 || kind == F64) {
    if (kind == F64) at<double>(out)[i] = x;
    else at<float>(out)[i] = x;
    return (bits & 0x7F800000u) == 0x7F800000u;
  }
  if (kind == F16) {
    u32 code = narrowed(x, 10, 15, 0x7C00u, 0x7E00u);
    at<u16>(out)[i] = (u16)(code | (bits >> 16 & 0x8000u));
    return code >= 0x7C00u;
  }
  bool wide = kind == F8_E5M2;
  u32 code = wide ? narrowed(x, 2, 15, 0x7Cu, 0x7Fu) : narrowed(x, 3, 7, 0x7Fu, 0x7Fu);
  at<u8>(out)[i] = (u8)(code | (bits >> 24 & 0x80u));
  return code >= (wide ? 0x7Cu : 0x7Fu);
}

// Writes 1 to ``found`` where any result is not finite.
KERNEL store(i64 source, i64 size, i64 out, i64 kind, i64 found) {
  bool bad = false;
  FOR_EACH(i, size) bad |= put(at<const float>(source)[i], out, kind, i);
  if (bad) *at<double>(found) = 1.0;
}

// methods.ops.interface.Ops.combine; elects: 0 no, 1 by sum, 2 by count. With ``rounded``, results
// are also stored there, like store does.
KERNEL combine(PARAM Vectors vectors, i64 count, i64 hash, i64 elects, i64 divides,
               double cancelled, i64 base, i64 base_bytes, double scale, i64 out, i64 size,
               i64 rounded, i64 kind, i64 found) {
  bool bad = false;
  FOR_EACH(i, size) {
    float values[MAX_VECTORS];
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
    float result = base ? fmaf((float)scale, total, load(base, base_bytes, i)) : total;
    at<float>(out)[i] = result;
    if (rounded) bad |= put(result, rounded, kind, i);
  }
  if (bad) *at<double>(found) = 1.0;
}

KERNEL choose(PARAM Vectors vectors, double least, i64 out, i64 size) {
  const Vector &v = vectors.each[0];
  FOR_EACH(i, size) {
    bool chosen = fabsf(element(v, i)) >= (float)least;
    at<float>(out)[i] = chosen ? load(v.address, v.bytes, i) : load(v.minus, v.minus_bytes, i);
  }
}

KERNEL step(PARAM Vectors vectors, double limit, i64 base, i64 base_bytes, i64 out, i64 size) {
  float most = (float)limit;
  FOR_EACH(i, size) {
    float x = element(vectors.each[0], i);
    x = x > most ? most : x < -most ? -most : x;
    at<float>(out)[i] = x + load(base, base_bytes, i);
  }
}

KERNEL disjoint(PARAM Vectors vectors, i64 count, double epsilon, i64 base, i64 base_bytes, i64 out,
                i64 size) {
  float least = (float)epsilon;
  FOR_EACH(i, size) {
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

KERNEL variance(PARAM Vectors vectors, i64 count, i64 out, i64 size) {
  FOR_EACH(i, size) {
    // Relative to the first, so that the variance of equal values is exactly 0.
    float first = element(vectors.each[0], i), mean = 0.0f, total = 0.0f;
    for (int n = 0; n < count; n++) mean += element(vectors.each[n], i) - first;
    mean /= (float)count;
    for (int n = 0; n < count; n++) {
      float away = (element(vectors.each[n], i) - first) - mean;
      total += away * away;
    }
    at<float>(out)[i] = total;
  }
}
