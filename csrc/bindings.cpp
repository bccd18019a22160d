// The module sparsecodec._C. Each part binds its own functions beside its code.
#include <pybind11/pybind11.h>

void bind_entropy(pybind11::module_& m);  // entropy/bind.cpp
void bind_lanes(pybind11::module_& m);    // entropy/bind_lanes.cpp
void bind_cpu(pybind11::module_& m);      // cpu/bind.cpp

PYBIND11_MODULE(_C, m) {
    m.doc() = "Native part of sparsecodec: entropy coding and CPU kernels.";
    bind_entropy(m);
    bind_lanes(m);
    bind_cpu(m);
}
