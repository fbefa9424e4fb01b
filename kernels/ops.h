// What each device has its own of, behind the ops of entries.h. Their arguments are checked and their outputs made.
#pragma once

#include "arguments.h"

namespace pq {

struct OnlineGrid {
  Tensor scale, zero_point;
};

// y = fake_quantize(relu(x + other)); other may be null, y may be x.
void fake_quantize_into(const Tensor& x, const Tensor* other, bool relu, const GridArguments& arguments,
                        const Tensor& y);
void straight_through_into(const Tensor& grad, const Tensor& x, const GridArguments& arguments, const Tensor& dx);
// ds and dz: each like its parameter, written also where x is empty.
void learned_gradients_into(const Tensor& grad, const Tensor& x, const GridArguments& arguments, double grad_scale,
                            const Tensor& dx, const Tensor& ds, const Tensor& dz);

void quantize_into(const Tensor& x, const GridArguments& arguments, const Tensor& codes);
void dequantize_into(const Tensor& codes, const GridArguments& arguments, const Tensor& y);

// float64 [9], or [9, C] along `axis`; without spread those about the mean are left out, and x is read once.
Tensor statistics_of(const Tensor& x, int64_t axis, bool spread = true);
OnlineGrid online_grid_of(const Tensor& x, const RangeRule& rule, int64_t qmin, int64_t qmax, int64_t axis);
// Adds x to rows of counts. largest: null, or each channel's largest |x|. exponent, largest: dense.
void count_into(const Tensor& x, int64_t axis, const Tensor& exponent, const Tensor* largest, int64_t bins,
                const Tensor& rows);
// Counts so far, `before`, added to rows on bins as wide as `largest` needs. All are dense.
void widen_into(const Tensor& before, const Tensor& narrow, const Tensor& largest, int64_t bins, const Tensor& wide,
                const Tensor& rows);

// levels, highest: codebook.h's, dense.
void nearest_level_into(const Tensor& x, const Tensor& levels, const Tensor& highest, int64_t axis, const Tensor& y);
void level_index_into(const Tensor& x, const Tensor& highest, int64_t axis, const Tensor& codes);
void level_into(const Tensor& codes, const Tensor& levels, int64_t axis, const Tensor& y);

// packed, codes: dense, aligned as their types are.
void pack_into(const Tensor& codes, int64_t bits, const Tensor& packed);
void unpack_into(const Tensor& packed, int64_t bits, bool is_signed, const Tensor& codes);

}  // namespace pq
