// Python's view of compact_symbols and expand_symbols.
#include <pybind11/pybind11.h>

#include <limits>
#include <string>

#include "cpu/compact_symbols.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;

// As view(), for contiguous tensors; `elements`: how many it must have, -1 = any number.
template <class T>
TensorView<T> view_flat(py::handle tensor, const char* name, std::ptrdiff_t elements = -1) {
    const TensorView<T> t = view<T>(tensor, name);
    if (!tensor.attr("is_contiguous")().cast<bool>()) {
        refuse(name, ": strides ", shape_text(t.stride, t.ndim), " (needs contiguous)");
    }
    if (elements >= 0 && t.numel() != elements) {
        refuse(name, ": ", t.numel(), " elements (needs ", elements, ")");
    }
    return t;
}

template <class T>
py::object empty_flat(std::ptrdiff_t n) {
    return Torch::get().empty(py::make_tuple(n), "dtype"_a = torch_dtype<T>());
}

py::tuple compact_symbols_py(py::handle indexes, py::handle symbols, py::object out) {
    const auto from = view_flat<const std::int16_t>(indexes, "indexes");
    const std::ptrdiff_t n = from.numel(), carried = symbols.is_none() ? 0 : n;
    SC_CHECK(n <= std::numeric_limits<std::int32_t>::max(), "indexes: ", n, " elements (needs fewer than 2^31)");
    const std::int32_t* values = nullptr;
    if (!symbols.is_none()) values = view_flat<const std::int32_t>(symbols, "symbols", n).data;
    const py::tuple results = out.is_none() ? py::make_tuple(empty_flat<std::int16_t>(n),
                                                             empty_flat<std::int32_t>(carried),
                                                             empty_flat<std::int32_t>(1))
                                            : py::tuple(out);
    SC_CHECK(results.size() == 3, "out: ", results.size(), " tensors (needs 3)");
    const auto packed = view_flat<std::int16_t>(results[0], "out[0]", n);
    const auto packed_symbols = view_flat<std::int32_t>(results[1], "out[1]", carried);
    const auto count = view_flat<std::int32_t>(results[2], "out[2]", 1);
    {
        const Unlocked unlocked;
        *count.data = static_cast<std::int32_t>(
            compact_symbols(from.data, values, n, packed.data, values == nullptr ? nullptr : packed_symbols.data));
    }
    return results;
}

py::object expand_symbols_py(py::handle symbols, py::handle indexes, py::object out) {
    const auto from = view_flat<const std::int32_t>(symbols, "symbols");
    const auto where = view_flat<const std::int16_t>(indexes, "indexes");
    if (out.is_none()) {
        out = Torch::get().empty(indexes.attr("shape"), "dtype"_a = torch_dtype<std::int32_t>());
    }
    const auto to = view_flat<std::int32_t>(out, "out", where.numel());
    {
        const Unlocked unlocked;
        expand_symbols(from.data, from.numel(), where.data, where.numel(), to.data);
    }
    return out;
}

}  // namespace

void bind_compact_symbols(py::module_& m) {
    m.def("compact_symbols", &compact_symbols_py, "indexes"_a, "symbols"_a = py::none(), "out"_a = py::none());
    m.def("expand_symbols", &expand_symbols_py, "symbols"_a, "indexes"_a, "out"_a = py::none());
    // Nothing to pack: the bound op is the function itself, which writes to `out`.
    for (const char* name : {"compact_symbols", "expand_symbols"}) {
        const py::object function = m.attr(name);
        m.def((std::string(name) + "_plan").c_str(), [function](py::handle) { return function; }, "dtype"_a);
    }
}

}  // namespace sparsecodec
