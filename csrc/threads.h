// A native call beside Python. Only for files that bind C++ to Python.
#pragma once

#include <omp.h>
#include <pybind11/pybind11.h>

namespace sparsecodec {

// While it lives, the GIL is released and this thread's OpenMP regions have as many threads as torch is set to. OpenMP
// keeps that number per thread and a new thread begins with the environment's; torch sets it only where it works itself.
class Unlocked {
  public:
    Unlocked() : threads_(adopt_threads()) {}

  private:
    // The number, 0 without torch: the entropy coder runs in processes that have not loaded it.
    static int adopt_threads() {
        namespace py = pybind11;
        const py::str name("torch");
        const auto torch = py::reinterpret_steal<py::object>(PyImport_GetModule(name.ptr()));
        if (!torch) {
            PyErr_Clear();
            return 0;
        }
        const py::object get = py::getattr(torch, "get_num_threads", py::none());
        if (get.is_none()) return 0;  // another thread is importing torch
        const int threads = get().cast<int>();
        omp_set_num_threads(threads);
        return threads;
    }

    const int threads_;                            // set before the GIL goes
    const pybind11::gil_scoped_release release_;
};

}  // namespace sparsecodec
