// What one op lets another do, each device its own.
#pragma once

#include "arguments.h"

namespace pq {

// tensor_statistics: float64 [9], or [9, C] along `axis`.
Tensor statistics_of(const Tensor& x, int64_t axis);

// y = fake_quantize(relu(x + other)); other may be null, y may be x.
void fake_quantize_into(const Tensor& x, const Tensor* other, bool relu, const GridArguments& arguments,
                        const Tensor& y);

}  // namespace pq
