// Python's view of the context models of autoregressive codecs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/bind_names.h"
#include "cpu/context_model.h"
#include "cpu/context_rows.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;

// A convolution's constants: [n, k, kh, kw] contiguous float32, borrowed from the tensor that it holds, and a bias.
struct Kernel {
    py::object weight;
    std::vector<float> bias;
    ConvKernel sizes;

    Kernel(py::object weight_tensor, py::handle bias_tensor, const std::string& name)
        : weight(std::move(weight_tensor)), bias(copy_values<float>(bias_tensor, "bias")) {
        const TensorView<const float> t = view<const float>(weight, name.c_str());
        SC_CHECK(t.ndim == 4 && t.shape[0] >= 1 && weight.attr("is_contiguous")().cast<bool>(), name, ": shape ",
                 shape_text(t.shape, t.ndim), ", strides ", shape_text(t.stride, t.ndim),
                 " (needs [n, k, kh, kw] contiguous, n >= 1)");
        const auto size = [&](int i) { return static_cast<int>(t.shape[i]); };
        sizes = {t.data, size(0), size(1), size(2), size(3)};
        SC_CHECK(bias_tensor.is_none() || static_cast<int>(bias.size()) == sizes.n, name, ": ", bias.size(),
                 " biases (needs ", sizes.n, ")");
    }
    const float* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
};

// Layers as Python describes them: (weight, bias, activation, slope) each.
struct Layers {
    std::vector<Kernel> kernels;
    std::vector<ContextLayer> layers;

    explicit Layers(const py::list& list) {
        std::vector<float> slopes;
        for (const py::handle item : list) {
            const auto [layer_weight, layer_bias, activation, slope] =
                item.cast<std::tuple<py::object, py::object, std::string, float>>();
            const std::string name = "1x1 number " + std::to_string(kernels.size());
            kernels.emplace_back(layer_weight, layer_bias, name);
            const ConvKernel& sizes = kernels.back().sizes;
            SC_CHECK(sizes.kh == 1 && sizes.kw == 1, name, ": a kernel of ", sizes.kh, " x ", sizes.kw);
            const igemm::Activation named = activation_named(activation, slope);
            SC_CHECK(!named.sigmoid_gate, "activation='", activation, "' (one of none, relu, leaky_relu)");
            slopes.push_back(named.slope);
        }
        for (std::size_t i = 0; i < kernels.size(); ++i) {  // now that the kernels stay where they are
            const ConvKernel& sizes = kernels[i].sizes;
            layers.push_back({sizes.data, kernels[i].bias_or_null(), sizes.n, sizes.k, slopes[i]});
        }
    }
    Layers(const Layers&) = delete;
};

// All of a context model. offsets: layers, and the least deviation that they are given.
struct Networks {
    Kernel context;
    Layers parameters, offsets;

    Networks(py::object weight, py::handle bias, const py::list& layers, const py::list& offset_layers)
        : context(std::move(weight), bias, "context"), parameters(layers), offsets(offset_layers) {}
};

template <class T>
Image<T> view_sized(py::handle tensor, const char* name, std::ptrdiff_t c, std::ptrdiff_t h, std::ptrdiff_t w) {
    const Image<T> image = view_nhwc<T>(tensor, name);
    const std::ptrdiff_t got[] = {image.n, image.c, image.h, image.w}, need[] = {1, c, h, w};
    SC_CHECK(std::equal(got, got + 4, need), name, ": shape ", shape_text(got, 4), " (needs ", shape_text(need, 4), ")");
    return image;
}

template <class Model>
Image<const float> view_prior(const Model& model, py::handle prior) {
    const auto any = view_nhwc<const float>(prior, "prior");
    return view_sized<const float>(prior, "prior", model.prior_channels(), any.h, any.w);
}

template <class Model>
Image<float> view_decoded(const Model& model, py::handle y_hat, const Image<const float>& prior) {
    const int reach = model.reach();
    return view_sized<float>(y_hat, "y_hat", model.latent(), prior.h + reach, prior.w + 2 * reach);
}

// rate: None, or (gain, whether the latent is scaled, shift of the context or None).
template <class Model>
ContextRate view_rate(const Model& model, py::handle rate) {
    ContextRate result;
    if (rate.is_none()) return result;
    const auto [gain, scaled, shift] = rate.cast<std::tuple<float, bool, py::object>>();
    SC_CHECK(gain > 0 && gain <= std::numeric_limits<float>::max(), "gain=", gain, " (needs a finite one above 0)");
    result = {gain, scaled, copy_values<float>(shift, "shift")};
    SC_CHECK(result.shift.empty() || static_cast<int>(result.shift.size()) == model.context_channels(), "shift: ",
             result.shift.size(), " values (needs ", model.context_channels(), ")");
    return result;
}

template <class Model>
py::bytes encode(const Model& model, py::handle y, py::handle prior, py::handle y_hat, py::handle at_rate) {
    const auto given = view_prior(model, prior);
    const auto latent = view_sized<const float>(y, "y", model.latent(), given.h, given.w);
    const auto to = view_decoded(model, y_hat, given);
    const ContextRate rate = view_rate(model, at_rate);
    std::string bytes;
    {
        const Unlocked unlocked;
        const rans::Writer writer = model.encode(latent, given, to, rate);
        bytes.resize(writer.size());
        writer.flush_to(reinterpret_cast<unsigned char*>(bytes.data()));
    }
    return bytes;
}

template <class Model>
void decode(const Model& model, const py::buffer& data, py::handle prior, py::handle y_hat, py::handle at_rate) {
    const py::buffer_info bytes = data.request();
    SC_CHECK(bytes.ndim == 1 && bytes.itemsize == 1 && bytes.strides[0] == 1, "data: no contiguous bytes");
    const auto given = view_prior(model, prior);
    const auto to = view_decoded(model, y_hat, given);
    const ContextRate rate = view_rate(model, at_rate);
    const Unlocked unlocked;
    model.decode({static_cast<const unsigned char*>(bytes.ptr), static_cast<std::size_t>(bytes.size)}, given, to, rate);
}

// ContextRows with the tensors whose memory it uses.
class RowsPlan {
  public:
    RowsPlan(py::object weight, py::handle bias, const py::list& layers, bool means_first, py::handle thresholds,
             std::shared_ptr<rans::Tables> tables, const py::list& offsets, float bound, std::uintptr_t gemv,
             std::uintptr_t gemm, int block, bool four_sums)
        : networks_(std::move(weight), bias, layers, offsets),
          model_(networks_.context.sizes, networks_.context.bias_or_null(), networks_.parameters.layers,
                 means_first, ScaleTable(copy_values<float>(thresholds, "thresholds")), std::move(tables), block,
                 reinterpret_cast<ContextRows::Gemv>(gemv), four_sums,
                 blas_offsets(networks_.offsets.layers, bound, reinterpret_cast<BlasGemm>(gemm))) {
        SC_CHECK(gemv != 0, "gemv: no address");
    }

    py::object parameters(py::handle y_hat, py::handle prior) const {
        const int size = 2 * model_.reach() + 1;
        const auto given = view_sized<const float>(prior, "prior", model_.prior_channels(), 1, 1);
        const auto seen = view_sized<const float>(y_hat, "y_hat", model_.latent(), size, size);
        const py::object out = empty_nhwc<float>(1, model_.entropy_parameters(), 1, 1);
        model_.parameters(seen, given, view_nhwc<float>(out, "out").data);
        return out;
    }

    // pairs: [1, 2, latent, 1] -> [1, 1, latent, 1]
    py::object offsets(py::handle pairs) const {
        SC_CHECK(static_cast<bool>(model_.offsets().network), "no offsets");
        const auto given = view_sized<const float>(pairs, "pairs", 2, model_.latent(), 1);
        const py::object out = empty_nhwc<float>(1, 1, model_.latent(), 1);
        model_.offsets().network(given.data, model_.latent(), view_nhwc<float>(out, "out").data);
        return out;
    }
    const ContextRows& model() const { return model_; }

  private:
    Networks networks_;
    ContextRows model_;
};

}  // namespace

void bind_context_model(py::module_& m) {
    py::class_<ContextModel>(m, "ContextModelPlan", "The context model of an autoregressive codec, wave by wave.")
        .def(py::init([](py::object weight, py::handle bias, const py::list& layers, bool means_first,
                         py::handle thresholds, std::shared_ptr<rans::Tables> tables, const py::list& offsets,
                         float bound) {
                 const Networks networks(std::move(weight), bias, layers, offsets);
                 return std::make_unique<ContextModel>(
                     networks.context.sizes, networks.context.bias_or_null(), networks.parameters.layers, means_first,
                     ScaleTable(copy_values<float>(thresholds, "thresholds")), std::move(tables),
                     networks.offsets.layers, bound);
             }),
             "weight"_a, "bias"_a, "layers"_a, "means_first"_a, "thresholds"_a, "tables"_a, "offsets"_a, "bound"_a)
        .def("encode", &encode<ContextModel>, "y"_a, "prior"_a, "y_hat"_a, "rate"_a = py::none())
        .def("decode", &decode<ContextModel>, "data"_a, "prior"_a, "y_hat"_a, "rate"_a = py::none());
    py::class_<RowsPlan>(m, "ContextRowsPlan", "The same row by row, in torch's arithmetic.")
        .def(py::init<py::object, py::handle, const py::list&, bool, py::handle, std::shared_ptr<rans::Tables>,
                      const py::list&, float, std::uintptr_t, std::uintptr_t, int, bool>(),
             "weight"_a, "bias"_a, "layers"_a, "means_first"_a, "thresholds"_a, "tables"_a, "offsets"_a, "bound"_a,
             "gemv"_a, "gemm"_a, "block"_a, "four_sums"_a)
        .def("parameters", &RowsPlan::parameters, "y_hat"_a, "prior"_a)
        .def("offsets", &RowsPlan::offsets, "pairs"_a)
        .def(
            "encode",
            [](const RowsPlan& plan, py::handle y, py::handle prior, py::handle y_hat, py::handle rate) {
                return encode(plan.model(), y, prior, y_hat, rate);
            },
            "y"_a, "prior"_a, "y_hat"_a, "rate"_a = py::none())
        .def(
            "decode",
            [](const RowsPlan& plan, const py::buffer& data, py::handle prior, py::handle y_hat, py::handle rate) {
                decode(plan.model(), data, prior, y_hat, rate);
            },
            "data"_a, "prior"_a, "y_hat"_a, "rate"_a = py::none());
}

}  // namespace sparsecodec
