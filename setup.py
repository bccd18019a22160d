"""The native part of the build: the CPU extension ``sparsecodec._C``. Everything else stands in pyproject.toml."""

from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

SOURCES = sorted(str(path) for path in Path("csrc").rglob("*.cpp") if "cuda" not in path.parts)

# -ffp-contract=off: a*b+c rounds twice unless the code asks for fma, so that the bits do not depend on the optimiser.
core = Pybind11Extension(
    "sparsecodec._C",
    SOURCES,
    include_dirs=["csrc"],
    cxx_std=17,
    depends=sorted(str(path) for pattern in ("*.h", "*.inl") for path in Path("csrc").rglob(pattern)),
    extra_compile_args=["-O3", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden"],
    extra_link_args=["-fopenmp"],
)

with ParallelCompile("SPARSECODEC_BUILD_JOBS", default=2):
    setup(ext_modules=[core], cmdclass={"build_ext": build_ext})
