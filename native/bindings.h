// What the files that know Python share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "rasterizer.h"
#include "types.h"

namespace splatopt {

namespace nb = nanobind;

template <class T, class Shape>
using Array = nb::ndarray<T, Shape, nb::c_contig, nb::device::cpu>;
using Floats1 = Array<const float, nb::ndim<1>>;
using Floats2 = Array<const float, nb::ndim<2>>;
using Floats3 = Array<const float, nb::ndim<3>>;
using Bytes3 = Array<const uint8_t, nb::shape<-1, -1, 3>>;
using OutFloats1 = Array<float, nb::ndim<1>>;
using OutFloats2 = Array<float, nb::ndim<2>>;
using Floats4 = Array<const float, nb::ndim<4>>;
using OutFloats4 = Array<float, nb::ndim<4>>;
using OutFloats3 = Array<float, nb::ndim<3>>;
using OutBools = Array<bool, nb::ndim<1>>;

using Bools1 = Array<const bool, nb::ndim<1>>;
using Integers2 = Array<const int64_t, nb::ndim<2>>;
using OutIntegers2 = Array<int64_t, nb::ndim<2>>;

// Six tensors in the shapes of a cloud's, which the caller keeps alive: the one place where they are bound.
struct HeldTensors {
    CloudTensors tensors;
    int64_t count;
    int rest;  // coefficients per channel in sh_rest
};

inline void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
}

// The six tensors of a cloud, and the renderer.
nb::class_<Rasterizer> bind_raster(nb::module_& m);

// The fused optimizer steps, as methods of Workers, and the classes that they take.
void bind_steps(nb::module_& m, nb::class_<Workers>& workers);

// Passes over rows of others' tensors: methods of Workers and Rasterizer.
void bind_rows(nb::module_& m, nb::class_<Workers>& workers, nb::class_<Rasterizer>& rasterizer);

// The learned step, likewise.
void bind_learned(nb::module_& m, nb::class_<Workers>& workers);

}  // namespace splatopt
