// Python's view of prior_head. A plan packs the weights of the coded groups once; calling it runs one pass.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "cpu/bind_names.h"
#include "cpu/prior_head.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;

PriorHead::Rows rows_named(const std::string& order, std::ptrdiff_t rows, int groups) {
    if (rows % (2 * groups)) refuse("weight: ", rows, " rows (needs a multiple of ", 2 * groups, ")");
    const std::ptrdiff_t half = rows / 2, c = half / groups;
    if (order == "by_group") return {c, 0, c, 2 * c};
    if (order == "scales_means") return {c, 0, half, c};
    if (order == "means_scales") return {c, half, 0, c};
    refuse("order='", order, "' (one of by_group, scales_means, means_scales)");
}

PriorHead make_prior_head(py::handle weight, py::handle thresholds, py::handle bias, const std::string& part_name,
                          const std::string& order, const std::string& activation, float slope,
                          std::optional<float> skip) {
    const Part part = part_named(part_name);
    const py::tuple shape = weight.attr("shape");
    const std::vector<float> matrix = copy_values<float>(weight, "weight"), offset = copy_values<float>(bias, "bias");
    if (!(shape.size() == 2 || (shape.size() == 4 && shape[2].cast<int>() == 1 && shape[3].cast<int>() == 1))) {
        refuse("weight: shape ", py::str(shape).cast<std::string>(), " (needs [2C, K])");
    }
    const std::ptrdiff_t rows = shape[0].cast<std::ptrdiff_t>();
    if (!bias.is_none() && static_cast<std::ptrdiff_t>(offset.size()) != rows) {
        refuse("bias: ", offset.size(), " values (needs ", rows, ")");
    }
    return PriorHead(matrix.data(), bias.is_none() ? nullptr : offset.data(), shape[1].cast<int>(), part,
                     rows_named(order, rows, part.groups), activation_named(activation, slope),
                     ScaleTable(copy_values<float>(thresholds, "thresholds")), skip);
}

template <class T>
void check_size(const Image<T>& image, const Image<const float>& like, std::ptrdiff_t c, const char* name) {
    if (image.n == like.n && image.c == c && image.h == like.h && image.w == like.w) return;
    const std::ptrdiff_t got[] = {image.n, image.c, image.h, image.w}, need[] = {like.n, c, like.h, like.w};
    refuse(name, ": shape ", shape_text(got, 4), " (needs ", shape_text(need, 4), ")");
}

py::tuple run(const PriorHead& head, py::handle x, py::handle residual, py::object out) {
    const auto from = view_nhwc<const float>(x, "x");
    const std::ptrdiff_t c = head.rows().c;
    check_size(from, from, head.k(), "x");
    Image<const float> base;
    if (!residual.is_none()) {
        base = view_nhwc<const float>(residual, "residual");
        check_size(base, from, 2 * head.part().groups * c, "residual");
    }
    if (out.is_none()) {
        const py::tuple shape = py::make_tuple(from.n, c, from.h, from.w);
        out = py::make_tuple(Torch::get().empty(shape, "dtype"_a = Torch::get().int16),
                             empty_nhwc<float>(from.n, c, from.h, from.w));
    }
    const py::tuple pair = out;
    const py::object first = pair[0], second = pair[1];
    const auto means = view_nhwc<float>(second, "out[1]");
    check_size(means, from, c, "out[1]");
    const TensorView<std::int16_t> indexes = view<std::int16_t>(first, "out[0]");
    const std::ptrdiff_t need[] = {from.n, c, from.h, from.w};
    if (indexes.ndim != 4 || !std::equal(need, need + 4, indexes.shape) ||
        !first.attr("is_contiguous")().cast<bool>()) {
        refuse("out[0]: shape ", shape_text(indexes.shape, indexes.ndim), " (needs ", shape_text(need, 4),
               " contiguous)");
    }
    {
        const Unlocked unlocked;
        head.run(from, residual.is_none() ? nullptr : &base, indexes.data, means);
    }
    return pair;
}

}  // namespace

void bind_prior_head(py::module_& m) {
    py::class_<PriorHead>(m, "PriorHeadPlan", "A prior_head with packed weights.")
        .def("__call__", &run, "x"_a, "residual"_a = py::none(), "out"_a = py::none());
    m.def(
        "prior_head_plan",
        [](py::handle weight, py::handle thresholds, py::handle bias, const std::string& part,
           const std::string& order, const std::string& activation, float slope, std::optional<float> skip,
           py::handle) {
            return std::make_unique<PriorHead>(
                make_prior_head(weight, thresholds, bias, part, order, activation, slope, skip));
        },
        "weight"_a, "thresholds"_a, "bias"_a, "part"_a, "order"_a, "activation"_a, "slope"_a, "skip"_a, "dtype"_a);
    m.def(
        "prior_head",
        [](py::handle x, py::handle weight, py::handle thresholds, py::handle bias, py::handle residual,
           const std::string& part, const std::string& order, const std::string& activation, float slope,
           std::optional<float> skip) {
            return run(make_prior_head(weight, thresholds, bias, part, order, activation, slope, skip), x, residual,
                       py::none());
        },
        "x"_a, "weight"_a, "thresholds"_a, "bias"_a, "residual"_a, "part"_a, "order"_a, "activation"_a, "slope"_a,
        "skip"_a);
}

}  // namespace sparsecodec
