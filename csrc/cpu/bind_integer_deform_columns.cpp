// Python's view of integer_deform_columns.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>

#include "cpu/integer_deform_columns.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;
using std::int16_t;
using std::int32_t;

template <class T>
Strided<T> planes(py::handle tensor, const char* name, const Image<const int16_t>& x, std::ptrdiff_t channels) {
    const TensorView<const T> t = view<const T>(tensor, name);
    const std::ptrdiff_t need[] = {x.n, channels, x.h, x.w};
    if (t.ndim != 4 || !std::equal(need, need + 4, t.shape)) {
        refuse(name, ": shape ", shape_text(t.shape, t.ndim), " (needs ", shape_text(need, 4), ")");
    }
    return {t.data, t.stride[0], t.stride[1], t.stride[2], t.stride[3]};
}

// The op has no constants; this is what the registry binds.
struct IntegerDeformColumnsPlan {
    py::object operator()(py::handle x, py::handle offset, py::handle mask, py::object out) const {
        const Image<const int16_t> from = view_nhwc<const int16_t>(x, "x");
        const TensorView<const int32_t> moves = view<const int32_t>(offset, "offset");
        const std::ptrdiff_t groups = moves.ndim == 4 ? moves.shape[1] / (2 * kColumnTaps) : 0;
        if (groups < 1 || from.c % groups) {
            refuse("offset: shape ", shape_text(moves.shape, moves.ndim), " (needs 18 G channels, G a divisor of ",
                   from.c, ")");
        }
        constexpr std::ptrdiff_t kMost = std::ptrdiff_t{1} << 31;
        SC_CHECK((from.h + 4) * (from.w + 4) < kMost, "x: ", from.h, " x ", from.w, " (needs less than 2^31 pixels)");
        const Strided<int32_t> by = planes<int32_t>(offset, "offset", from, 2 * groups * kColumnTaps);
        Strided<int16_t> factors;
        const bool masked = !mask.is_none();
        if (masked) factors = planes<int16_t>(mask, "mask", from, groups * kColumnTaps);
        Image<int16_t> wanted, to;
        wanted.n = from.n;
        wanted.c = kColumnTaps * from.c;
        wanted.h = from.h;
        wanted.w = from.w;
        out = output(std::move(out), wanted, to);
        const Unlocked unlocked;
        integer_deform_columns(from, by, masked ? &factors : nullptr, static_cast<int>(groups), to);
        return out;
    }
};

}  // namespace

void bind_integer_deform_columns(py::module_& m) {
    py::class_<IntegerDeformColumnsPlan>(m, "IntegerDeformColumnsPlan",
                                         "integer_deform_columns, which has nothing to pack.")
        .def("__call__", &IntegerDeformColumnsPlan::operator(), "x"_a, "offset"_a, "mask"_a = py::none(),
             "out"_a = py::none());
    m.def(
        "integer_deform_columns_plan",
        [](py::handle dtype) {
            SC_CHECK(dtype.is(torch_dtype<int16_t>()), "x: dtype ", py::str(dtype).cast<std::string>(),
                     " (needs torch.int16)");
            return IntegerDeformColumnsPlan{};
        },
        "dtype"_a);
    m.def(
        "integer_deform_columns",
        [](py::handle x, py::handle offset, py::handle mask) {
            return IntegerDeformColumnsPlan{}(x, offset, mask, py::none());
        },
        "x"_a, "offset"_a, "mask"_a);
}

}  // namespace sparsecodec
