"""Triton kernels, installed as ``sparsecodec._triton``.

The folder's own name is the import name of a package of the Triton project; the guard keeps it from being shadowed.
"""

if __name__ != "sparsecodec._triton":
    raise ImportError(
        f"{__name__!r} is the source folder of sparsecodec._triton and cannot be imported by this name; "
        "run pytest as `pytest`, not `python -m pytest`, so that the repository root stays off sys.path"
    )
