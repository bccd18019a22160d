// Borrowed views of torch tensors without torch's headers: pointer, sizes and strides are read through Python. Only for
// the files that bind C++ to Python.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/gil_safe_call_once.h>

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/igemm.h"
#include "cpu/image.h"

namespace sparsecodec {

namespace py = pybind11;

// The parts of torch that are looked up once per process.
struct Torch {
    py::object empty, channels_last, float32, bfloat16, int32, int16, uint8, boolean;

    static const Torch& get() {
        PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Torch> storage;
        return storage
            .call_once_and_store_result([] {
                const py::module_ torch = py::module_::import("torch");
                return Torch{torch.attr("empty"),    torch.attr("channels_last"), torch.attr("float32"),
                             torch.attr("bfloat16"), torch.attr("int32"),         torch.attr("int16"),
                             torch.attr("uint8"),    torch.attr("bool")};
            })
            .get_stored();
    }
};

template <class T>
const py::object& torch_dtype();
template <>
inline const py::object& torch_dtype<float>() {
    return Torch::get().float32;
}
template <>
inline const py::object& torch_dtype<igemm::bf16>() {
    return Torch::get().bfloat16;
}
template <>
inline const py::object& torch_dtype<std::int32_t>() {
    return Torch::get().int32;
}
template <>
inline const py::object& torch_dtype<std::int16_t>() {
    return Torch::get().int16;
}
template <>
inline const py::object& torch_dtype<std::uint8_t>() {
    return Torch::get().uint8;
}

template <class T>
struct TensorView {
    T* data = nullptr;  // host, borrowed: the caller keeps the tensor
    int ndim = 0;
    std::ptrdiff_t shape[6] = {}, stride[6] = {};  // elements

    std::ptrdiff_t numel() const {
        std::ptrdiff_t n = 1;
        for (int i = 0; i < ndim; ++i) n *= shape[i];
        return n;
    }
};

inline std::string shape_text(const std::ptrdiff_t* shape, int ndim) {
    std::ostringstream text;
    text << '[';
    for (int i = 0; i < ndim; ++i) text << (i ? ", " : "") << shape[i];
    return text.str() + ']';
}

// T: float, bf16, int32_t, int16_t, uint8_t (const or not). Throws unless `tensor` has this dtype and lies in host memory.
template <class T>
TensorView<T> view(py::handle tensor, const char* name) {
    const py::object& dtype = torch_dtype<std::remove_const_t<T>>();
    const py::object actual = tensor.attr("dtype");
    if (!actual.is(dtype)) {
        refuse(name, ": dtype ", py::str(actual).cast<std::string>(), " (needs ",
               py::str(dtype).cast<std::string>(), ")");
    }
    if (!tensor.attr("is_cpu").cast<bool>()) {
        refuse(name, ": device ", py::str(tensor.attr("device")).cast<std::string>(), " (needs cpu)");
    }
    TensorView<T> result;
    const py::tuple shape = tensor.attr("shape"), stride = tensor.attr("stride")();
    result.ndim = static_cast<int>(shape.size());
    if (result.ndim > 6) refuse(name, ": ", result.ndim, " dimensions (needs at most 6)");
    for (int i = 0; i < result.ndim; ++i) {
        result.shape[i] = shape[i].cast<std::ptrdiff_t>();
        result.stride[i] = stride[i].cast<std::ptrdiff_t>();
    }
    result.data = reinterpret_cast<T*>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
    return result;
}

// As view(), for NCHW tensors whose channels are innermost in memory (torch.channels_last, or a slice of such a tensor).
template <class T>
Image<T> view_nhwc(py::handle tensor, const char* name) {
    const TensorView<T> t = view<T>(tensor, name);
    if (t.ndim != 4) refuse(name, ": shape ", shape_text(t.shape, t.ndim), " (needs [N, C, H, W])");
    if (t.shape[1] > 1 && t.stride[1] != 1 && t.numel() > 0) {
        refuse(name, ": strides ", shape_text(t.stride, t.ndim), " (needs channels innermost, torch.channels_last)");
    }
    return {t.data, t.shape[0], t.shape[1], t.shape[2], t.shape[3], t.stride[0], t.stride[2], t.stride[3]};
}

// An uninitialised channels_last tensor of the dtype of T.
template <class T>
py::object empty_nhwc(std::ptrdiff_t n, std::ptrdiff_t c, std::ptrdiff_t h, std::ptrdiff_t w) {
    using namespace pybind11::literals;
    const Torch& torch = Torch::get();
    return torch.empty(py::make_tuple(n, c, h, w), "dtype"_a = torch_dtype<T>(),
                       "memory_format"_a = torch.channels_last);
}

template <class T, class U>
void check_size(const Image<T>& image, const Image<U>& wanted, const char* name) {
    if (image.n == wanted.n && image.c == wanted.c && image.h == wanted.h && image.w == wanted.w) return;
    const std::ptrdiff_t got[] = {image.n, image.c, image.h, image.w};
    const std::ptrdiff_t need[] = {wanted.n, wanted.c, wanted.h, wanted.w};
    refuse(name, ": shape ", shape_text(got, 4), " (needs ", shape_text(need, 4), ")");
}

// `out` as it was given, or a new tensor of the size `wanted`, which is negative where the input of a convolution is
// smaller than its kernel; its view goes to `view`.
template <class T>
py::object output(py::object out, const Image<T>& wanted, Image<T>& view) {
    if (wanted.h < 0 || wanted.w < 0) refuse("x is smaller than the kernel");
    if (out.is_none()) out = empty_nhwc<T>(wanted.n, wanted.c, wanted.h, wanted.w);
    view = view_nhwc<T>(out, "out");
    check_size(view, wanted, "out");
    return out;
}

// The elements of a tensor in row-major order, converted to T (float or int32_t). None gives an empty vector.
template <class T>
std::vector<T> copy_values(py::handle tensor, const char* name) {
    if (tensor.is_none()) return {};
    const py::object dense = tensor.attr("detach")().attr("to")(torch_dtype<T>()).attr("contiguous")();
    const TensorView<const T> values = view<const T>(dense, name);
    return std::vector<T>(values.data, values.data + values.numel());
}

// The factors of the channels of a result, empty for None.
inline std::vector<float> scale_values(py::handle scale, std::ptrdiff_t channels) {
    std::vector<float> values = copy_values<float>(scale, "scale");
    if (!scale.is_none() && static_cast<std::ptrdiff_t>(values.size()) != channels) {
        refuse("scale: ", values.size(), " values (needs ", channels, ", one per channel of the result)");
    }
    return values;
}

}  // namespace sparsecodec
