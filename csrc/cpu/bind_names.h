// What the strings among the ops' arguments stand for. Only for the files that bind C++ to Python.
#pragma once

#include <string>

#include "check.h"
#include "common/spatial_prior.h"
#include "cpu/igemm.h"

namespace sparsecodec {

inline igemm::Activation activation_named(const std::string& name, float slope) {
    if (name == "none") return {1.0f, false};
    if (name == "relu") return {0.0f, false};
    if (name == "leaky_relu") return {slope, false};
    if (name == "sigmoid_gate") return {1.0f, true};
    refuse("activation='", name, "' (one of none, relu, leaky_relu, sigmoid_gate)");
}

inline Part part_named(const std::string& name) {
    std::string known;
    for (const NamedPart& named : kParts) {
        if (name == named.name) return named.part;
        known += (known.empty() ? "" : ", ") + std::string(named.name);
    }
    refuse("part='", name, "' (one of ", known, ")");
}

}  // namespace sparsecodec
