// Python's view of integer_gate.
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "cpu/integer_gate.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;
using std::int16_t;

class IntegerGatePlan {
  public:
    IntegerGatePlan(py::handle table, int chunks, py::handle dtype) : chunks_(chunks) {
        SC_CHECK(chunks >= 1 && chunks < (1 << 15), "chunks=", chunks, " (needs 1 to 32767)");
        SC_CHECK(dtype.is(torch_dtype<int16_t>()), "x: dtype ", py::str(dtype).cast<std::string>(),
                 " (needs torch.int16)");
        const TensorView<const int16_t> values = view<const int16_t>(table, "table");
        SC_CHECK(values.ndim == 1 && values.numel() == 1 << 16 && values.stride[0] == 1, "table: shape ",
                 shape_text(values.shape, values.ndim), " (needs [65536], contiguous)");
        table_.assign(values.data, values.data + values.numel());
    }

    py::object operator()(py::handle x, py::object out) const {
        const Image<const int16_t> from = view_nhwc<const int16_t>(x, "x");
        SC_CHECK(from.c % chunks_ == 0, "x: ", from.c, " channels (needs a multiple of ", chunks_, ")");
        Image<int16_t> wanted, to;
        wanted.n = from.n;
        wanted.c = from.c / chunks_;
        wanted.h = from.h;
        wanted.w = from.w;
        out = output(std::move(out), wanted, to);
        const Unlocked unlocked;
        integer_gate(from, table_.data(), chunks_, to);
        return out;
    }

  private:
    int chunks_;
    std::vector<int16_t> table_;
};

}  // namespace

void bind_integer_gate(py::module_& m) {
    py::class_<IntegerGatePlan>(m, "IntegerGatePlan", "An integer_gate with its table.")
        .def("__call__", &IntegerGatePlan::operator(), "x"_a, "out"_a = py::none());
    m.def(
        "integer_gate_plan",
        [](py::handle table, int chunks, py::handle dtype) { return IntegerGatePlan(table, chunks, dtype); },
        "table"_a, "chunks"_a, "dtype"_a);
    m.def(
        "integer_gate",
        [](py::handle x, py::handle table, int chunks) {
            return IntegerGatePlan(table, chunks, x.attr("dtype"))(x, py::none());
        },
        "x"_a, "table"_a, "chunks"_a);
}

}  // namespace sparsecodec
