"""The native part of the build: the CPU extension ``sparsecodec._C`` and, where nvcc is found, the CUDA kernels in a
shared library. Everything else stands in pyproject.toml.

SPARSECODEC_CUDA=auto|0|1: build the CUDA kernels where nvcc is found (default), never, or fail without them.
SPARSECODEC_CUDA_ARCHS: architectures with machine code; for later GPUs the last one also as PTX. Default "80;90".
"""

import os
import shutil
import subprocess
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import Extension, setup

SOURCES = sorted(str(path) for path in Path("csrc").rglob("*.cpp") if "cuda" not in path.parts)
HEADERS = sorted(str(path) for pattern in ("*.h", "*.inl") for path in Path("csrc").rglob(pattern))
CUDA_LIBRARY = "libsparsecodec_cuda"  # beside _C; loaded by sparsecodec/_cuda.py, not imported
CUDA_ARCHS = "80;90"
# -fmad=false: as -ffp-contract=off below, the shared arithmetic gives the CPU's bits.
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Icsrc"]


def find_nvcc(environment):
    """The CUDA compiler: $CUDACXX, that of $CUDA_HOME or $CUDA_PATH, on the PATH, at the usual place; or None."""
    toolkits = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    places = [environment.get("CUDACXX"), *(str(Path(toolkit, "bin", "nvcc")) for toolkit in toolkits)]
    places += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    found = (shutil.which(place, path=environment.get("PATH")) for place in places if place)
    return next(filter(None, found), None)


def plan_cuda(environment):
    """Whether to build the CUDA kernels: (path of nvcc or None, must it succeed, a line to print or None).

    Raises:
        SystemExit: SPARSECODEC_CUDA is not understood, or demands what cannot be had.
    """
    mode = environment.get("SPARSECODEC_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        raise SystemExit(f"SPARSECODEC_CUDA={mode} (one of auto, 0, 1)")
    if mode == "0":
        return None, False, "CUDA kernels are not built: SPARSECODEC_CUDA=0"
    nvcc = find_nvcc(environment)
    if nvcc is None:
        line = "no nvcc found ($CUDACXX, $CUDA_HOME, $CUDA_PATH, PATH, /usr/local/cuda)"
        if mode == "1":
            raise SystemExit(f"SPARSECODEC_CUDA=1, but {line}")
        return None, False, f"CUDA kernels are not built: {line}"
    return nvcc, mode == "1", None


def nvcc_command(nvcc, archs, sources, output):
    """The one call that compiles and links the library."""
    name = f'-DSPARSECODEC_CUDA_ARCHS="{archs}"'
    archs = archs.split(";")
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    library = ["-shared", "-cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0"]
    return [nvcc, *NVCC_FLAGS, *library, name, *codes, *sources, "-o", output]


class CudaLibrary(Extension):
    """The shared library of ``csrc/cuda``; `optional` unless it was demanded."""

    def __init__(self, nvcc, required):
        csrc = Path("csrc")
        kernels = sorted(map(str, csrc.glob("cuda/*.cu")))
        headers = sorted(map(str, [*csrc.glob("cuda/*.cuh"), *csrc.glob("common/*.h")]))
        super().__init__(f"sparsecodec.{CUDA_LIBRARY}", kernels, depends=["setup.py", *headers], optional=not required)
        self.nvcc = nvcc


class BuildExt(build_ext):
    """Also builds the CUDA library, by nvcc instead of the C++ compiler."""

    def get_ext_filename(self, fullname):
        # Without the tag of a Python version that extensions carry.
        ours = fullname.rpartition(".")[2] == CUDA_LIBRARY
        return os.path.join(*fullname.split(".")) + ".so" if ours else super().get_ext_filename(fullname)

    def build_extension(self, ext):
        if not isinstance(ext, CudaLibrary):
            return super().build_extension(ext)
        output = Path(self.get_ext_fullpath(ext.name))
        inputs = [*ext.sources, *ext.depends]
        if not self.force and output.exists() and output.stat().st_mtime > max(os.path.getmtime(f) for f in inputs):
            return None
        output.parent.mkdir(parents=True, exist_ok=True)
        archs = os.environ.get("SPARSECODEC_CUDA_ARCHS", CUDA_ARCHS)
        command = nvcc_command(ext.nvcc, archs, ext.sources, str(output))
        print(" ".join(command), flush=True)
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            output.unlink(missing_ok=True)
            why = f"exit status {error.returncode}" if isinstance(error, subprocess.CalledProcessError) else error
            if not ext.optional:
                raise SystemExit(f"SPARSECODEC_CUDA=1, but nvcc failed: {why}") from error
            print(f"CUDA kernels are not built: nvcc failed: {why}", flush=True)

    def copy_extensions_to_source(self):
        # A library of an earlier build must not outlive one that made none.
        Path("sparsecodec", f"{CUDA_LIBRARY}.so").unlink(missing_ok=True)
        super().copy_extensions_to_source()


# -ffp-contract=off: a*b+c rounds twice unless the code asks for fma, so that the bits do not depend on the optimiser.
core = Pybind11Extension(
    "sparsecodec._C",
    SOURCES,
    include_dirs=["csrc"],
    cxx_std=17,
    depends=HEADERS,
    extra_compile_args=["-O3", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden"],
    extra_link_args=["-fopenmp"],
)

if __name__ == "__main__":
    nvcc, required, line = plan_cuda(os.environ)
    if line is not None:
        print(line, flush=True)
    libraries = [] if nvcc is None else [CudaLibrary(nvcc, required)]
    with ParallelCompile("SPARSECODEC_BUILD_JOBS", default=2):
        setup(ext_modules=[core, *libraries], cmdclass={"build_ext": BuildExt})
