// Python's view of the dense CPU ops. A plan packs the constants of one layer once; calling it runs the layer.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "check.h"
#include "cpu/bind_names.h"
#include "cpu/conv2d_act.h"
#include "cpu/conv_transpose2d_act.h"
#include "tensor.h"
#include "threads.h"

namespace {

namespace py = pybind11;
using namespace sparsecodec;
using igemm::bf16;
using namespace py::literals;

// Runs f with a value of the element type that `dtype`, a torch.dtype, names.
template <class F>
auto with_element(py::handle dtype, F f) {
    if (dtype.is(Torch::get().float32)) return f(float{});
    if (dtype.is(Torch::get().bfloat16)) return f(bf16{});
    refuse("dtype ", py::str(dtype).cast<std::string>(), " (the CPU kernels take torch.float32 and torch.bfloat16)");
}

// weight: 4-D; n and k are its dimensions n_dim and 1 - n_dim.
struct Constants {
    std::vector<float> weight, bias;
    ConvKernel kernel;

    Constants(py::handle weight_tensor, py::handle bias_tensor, int n_dim)
        : weight(copy_values<float>(weight_tensor, "weight")), bias(copy_values<float>(bias_tensor, "bias")) {
        const py::tuple shape = weight_tensor.attr("shape");
        std::ptrdiff_t sizes[4] = {1, 1, 1, 1};
        if (shape.size() != 4 && !(shape.size() == 2 && n_dim == 0)) {
            refuse("weight: shape ", py::str(shape).cast<std::string>(), " (needs [C_out, C_in, Kh, Kw])");
        }
        for (std::size_t i = 0; i < shape.size(); ++i) sizes[i] = shape[i].cast<std::ptrdiff_t>();
        kernel = {weight.data(), static_cast<int>(sizes[n_dim]), static_cast<int>(sizes[1 - n_dim]),
                  static_cast<int>(sizes[2]), static_cast<int>(sizes[3])};
        if (!bias_tensor.is_none() && static_cast<int>(bias.size()) != kernel.n) {
            refuse("bias: ", bias.size(), " values (needs C_out=", kernel.n, ")");
        }
    }
    const float* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
};

class ConvPlan {
  public:
    ConvPlan(const Constants& constants, ConvOptions options, py::handle dtype) : options_(std::move(options)) {
        if (options_.stride < 1 || options_.padding < 0) {
            refuse("stride=", options_.stride, ", padding=", options_.padding, " (needs stride >= 1, padding >= 0)");
        }
        if (options_.scatter && options_.shuffle != 1) refuse("out_index with shuffle=", options_.shuffle, " (needs 1)");
        channels_ = options_.in_index.empty() ? constants.kernel.k : 0;
        for (std::int32_t channel : options_.in_index) channels_ = std::max(channels_, channel + 1);
        for (std::int32_t channel : options_.out_index) width_ = std::max(width_, channel + 1);
        with_element(dtype, [&](auto element) {
            conv_ = std::make_unique<Conv2dAct<decltype(element)>>(constants.kernel, constants.bias_or_null(), options_);
        });
    }

    py::object operator()(py::handle x, py::handle residual, py::handle scale, py::object out) const {
        return std::visit([&](const auto& conv) { return run(*conv, x, residual, scale, std::move(out)); }, conv_);
    }

  private:
    template <class T>
    py::object run(const Conv2dAct<T>& conv, py::handle x, py::handle residual, py::handle scale,
                   py::object out) const {
        const Image<const T> from = view_nhwc<const T>(x, "x");
        const bool exact = options_.in_index.empty();
        if (from.c < channels_ || (exact && from.c != channels_)) {
            refuse("x: ", from.c, " channels (needs ", exact ? "" : "at least ", channels_, ")");
        }
        if (options_.scatter && residual.is_none()) refuse("out_index without residual");
        Image<const T> base;
        if (!residual.is_none()) base = view_nhwc<const T>(residual, "residual");
        const Image<T> wanted = conv.result(from, base.c);
        Image<T> to;
        out = output(std::move(out), wanted, to);
        if (!residual.is_none()) {
            check_size(base, wanted, "residual");
            if (base.c < width_) refuse("out_index holds ", width_ - 1, " (needs channels of residual, ", base.c, ")");
        }
        if (options_.shuffle > 1) check_rows(to, residual.is_none() ? Image<const T>(to) : base);
        const std::vector<float> factors = scale_values(scale, to.c);
        {
            const Unlocked unlocked;
            conv.run(from, to, residual.is_none() ? nullptr : &base, scale.is_none() ? nullptr : factors.data());
        }
        return out;
    }

    // A shuffled pixel is written in whole rows, so the columns must touch.
    template <class T>
    static void check_rows(const Image<T>& out, const Image<const T>& residual) {
        if ((out.w > 1 && out.stride_w != out.c) || (residual.w > 1 && residual.stride_w != out.c) ||
            (out.h > 1 && out.stride_h != residual.stride_h)) {
            refuse("out and residual are slices (with shuffle > 1 they must be dense torch.channels_last tensors)");
        }
    }

    ConvOptions options_;
    int channels_ = 0, width_ = 0;
    std::variant<std::unique_ptr<Conv2dAct<float>>, std::unique_ptr<Conv2dAct<bf16>>> conv_;
};

ConvOptions conv_options(int stride, int padding, py::handle in_index, py::handle out_index,
                         const std::string& activation, float slope, int shuffle, bool pinned, int chunks = 1,
                         bool interleaved = false) {
    ConvOptions options;
    options.stride = stride;
    options.padding = padding;
    options.in_index = copy_values<std::int32_t>(in_index, "in_index");
    options.out_index = copy_values<std::int32_t>(out_index, "out_index");
    options.scatter = !out_index.is_none();
    options.shuffle = shuffle;
    options.activation = activation_named(activation, slope);
    options.pinned = pinned;
    options.chunks = chunks;
    options.interleaved = interleaved;
    return options;
}

std::unique_ptr<ConvPlan> conv2d_act_plan(py::handle weight, py::handle bias, int stride, int padding,
                                          py::handle in_index, py::handle out_index, const std::string& activation,
                                          float slope, int shuffle, bool pinned, py::handle dtype) {
    return std::make_unique<ConvPlan>(
        Constants(weight, bias, 0),
        conv_options(stride, padding, in_index, out_index, activation, slope, shuffle, pinned), dtype);
}

std::unique_ptr<ConvPlan> pointwise_plan(py::handle weight, py::handle bias, py::handle in_index, py::handle out_index,
                                         const std::string& activation, float slope, int shuffle, int chunks,
                                         bool interleaved, py::handle dtype) {
    return std::make_unique<ConvPlan>(
        Constants(weight, bias, 0),
        conv_options(1, 0, in_index, out_index, activation, slope, shuffle, true, chunks, interleaved), dtype);
}

class ConvTransposePlan {
  public:
    ConvTransposePlan(py::handle weight, py::handle bias, int stride, int padding, int output_padding,
                      const std::string& activation, float slope, bool pinned, py::handle dtype) {
        if (stride < 1 || padding < 0 || output_padding < 0 || output_padding >= stride) {
            refuse("stride=", stride, ", padding=", padding, ", output_padding=", output_padding,
                   " (needs stride >= 1, padding >= 0, 0 <= output_padding < stride)");
        }
        const Constants constants(weight, bias, 1);
        channels_ = constants.kernel.k;
        with_element(dtype, [&](auto element) {
            conv_ = std::make_unique<ConvTranspose2dAct<decltype(element)>>(
                constants.kernel, constants.bias_or_null(), stride, padding, output_padding,
                activation_named(activation, slope), pinned);
        });
    }

    py::object operator()(py::handle x, py::object out) const {
        return std::visit([&](const auto& conv) { return run(*conv, x, std::move(out)); }, conv_);
    }

  private:
    template <class T>
    py::object run(const ConvTranspose2dAct<T>& conv, py::handle x, py::object out) const {
        const Image<const T> from = view_nhwc<const T>(x, "x");
        if (from.c != channels_) refuse("x: ", from.c, " channels (needs ", channels_, ")");
        Image<T> to;
        out = output(std::move(out), conv.result(from), to);
        {
            const Unlocked unlocked;
            conv.run(from, to);
        }
        return out;
    }

    int channels_ = 0;
    std::variant<std::unique_ptr<ConvTranspose2dAct<float>>, std::unique_ptr<ConvTranspose2dAct<bf16>>> conv_;
};

const char* name_of(igemm::Isa isa) {
    switch (isa) {
        case igemm::Isa::kScalar: return "scalar";
        case igemm::Isa::kAvx2: return "avx2";
        case igemm::Isa::kAvx512: return "avx512";
        case igemm::Isa::kAvx512Bf16: return "avx512bf16";
        case igemm::Isa::kAmxEmulated: return "amx-emulated";
        case igemm::Isa::kAmx: return "amx";
    }
    return "";
}

}  // namespace

namespace sparsecodec {
void bind_compact_symbols(py::module_& m);
void bind_context_model(py::module_& m);
void bind_deform_conv2d(py::module_& m);
void bind_depth_conv_block(py::module_& m);
void bind_entropy_parameters(py::module_& m);
void bind_gdn(py::module_& m);
void bind_integer_conv2d(py::module_& m);
void bind_integer_deform_columns(py::module_& m);
void bind_integer_gate(py::module_& m);
void bind_integer_gdn(py::module_& m);
void bind_integer_scale(py::module_& m);
void bind_integer_warp(py::module_& m);
void bind_prior_context(py::module_& m);
void bind_prior_head(py::module_& m);
void bind_warp(py::module_& m);
}  // namespace sparsecodec

void bind_cpu(py::module_& m) {
    bind_compact_symbols(m);
    bind_context_model(m);
    bind_deform_conv2d(m);
    bind_depth_conv_block(m);
    bind_entropy_parameters(m);
    bind_gdn(m);
    bind_integer_conv2d(m);
    bind_integer_deform_columns(m);
    bind_integer_gate(m);
    bind_integer_gdn(m);
    bind_integer_scale(m);
    bind_integer_warp(m);
    bind_prior_context(m);
    bind_prior_head(m);
    bind_warp(m);

    m.def(
        "cpu_isa", [] { return name_of(igemm::isa()); },
        "Instruction set of the dense kernels: amx, avx512bf16, avx512, avx2 or scalar (float32 never uses AMX).");
    m.def(
        "why_no_amx",
        [] { return igemm::why_no_amx().empty() ? std::optional<std::string>() : igemm::why_no_amx(); },
        "None if bfloat16 products can use AMX, else one sentence.");

    py::class_<ConvPlan>(m, "ConvPlan", "A pointwise or conv2d_act layer with packed weights.")
        .def("__call__", &ConvPlan::operator(), "x"_a, "residual"_a = py::none(), "scale"_a = py::none(),
             "out"_a = py::none());
    py::class_<ConvTransposePlan>(m, "ConvTransposePlan", "A conv_transpose2d_act layer with packed weights.")
        .def("__call__", &ConvTransposePlan::operator(), "x"_a, "out"_a = py::none());

    m.def("conv2d_act_plan", &conv2d_act_plan, "weight"_a, "bias"_a, "stride"_a, "padding"_a, "in_index"_a,
          "out_index"_a, "activation"_a, "slope"_a, "shuffle"_a, "pinned"_a, "dtype"_a);
    m.def("pointwise_plan", &pointwise_plan, "weight"_a, "bias"_a, "in_index"_a, "out_index"_a, "activation"_a,
          "slope"_a, "shuffle"_a, "chunks"_a, "interleaved"_a, "dtype"_a);
    m.def(
        "conv_transpose2d_act_plan",
        [](py::handle weight, py::handle bias, int stride, int padding, int output_padding,
           const std::string& activation, float slope, bool pinned, py::handle dtype) {
            return std::make_unique<ConvTransposePlan>(weight, bias, stride, padding, output_padding, activation, slope,
                                                       pinned, dtype);
        },
        "weight"_a, "bias"_a, "stride"_a, "padding"_a, "output_padding"_a, "activation"_a, "slope"_a, "pinned"_a,
        "dtype"_a);

    // The ops as the registry calls them: pack, run once, forget.
    m.def(
        "conv2d_act",
        [](py::handle x, py::handle weight, py::handle bias, int stride, int padding, py::handle in_index,
           py::handle out_index, py::handle residual, const std::string& activation, float slope, int shuffle,
           bool pinned) {
            return (*conv2d_act_plan(weight, bias, stride, padding, in_index, out_index, activation, slope, shuffle,
                                     pinned, x.attr("dtype")))(x, residual, py::none(), py::none());
        },
        "x"_a, "weight"_a, "bias"_a, "stride"_a, "padding"_a, "in_index"_a, "out_index"_a, "residual"_a,
        "activation"_a, "slope"_a, "shuffle"_a, "pinned"_a);
    m.def(
        "pointwise",
        [](py::handle x, py::handle weight, py::handle bias, py::handle in_index, py::handle out_index,
           py::handle residual, py::handle scale, const std::string& activation, float slope, int shuffle, int chunks,
           bool interleaved) {
            return (*pointwise_plan(weight, bias, in_index, out_index, activation, slope, shuffle, chunks, interleaved,
                                    x.attr("dtype")))(x, residual, scale, py::none());
        },
        "x"_a, "weight"_a, "bias"_a, "in_index"_a, "out_index"_a, "residual"_a, "scale"_a, "activation"_a, "slope"_a,
        "shuffle"_a, "chunks"_a, "interleaved"_a);
    m.def(
        "conv_transpose2d_act",
        [](py::handle x, py::handle weight, py::handle bias, int stride, int padding, int output_padding,
           const std::string& activation, float slope, bool pinned) {
            return ConvTransposePlan(weight, bias, stride, padding, output_padding, activation, slope, pinned,
                                     x.attr("dtype"))(x, py::none());
        },
        "x"_a, "weight"_a, "bias"_a, "stride"_a, "padding"_a, "output_padding"_a, "activation"_a, "slope"_a,
        "pinned"_a);
}
