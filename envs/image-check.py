"""Last step of building an image: is what training needs in it? Prints the versions, or one line and exit code 1."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

TRANSFORMER_ENGINE = ((2, 9), (2, 12))  # from, below: what megatron-core 0.16.1 asks for (pyproject.toml, extra `gpu`)


def problem() -> str:
    """What is wrong, empty if nothing is."""
    import torch

    if torch.version.cuda is None:
        return "torch is a build without CUDA"
    if not torch.distributed.is_nccl_available():
        return "torch is a build without NCCL"
    try:
        found = importlib.metadata.version("transformer_engine")
    except importlib.metadata.PackageNotFoundError:
        return "Transformer Engine is missing: take an NGC image of PyTorch"
    version = tuple(int(part) for part in found.split("+")[0].split(".")[:2])
    least, below = TRANSFORMER_ENGINE
    if not least <= version < below:
        return f"Transformer Engine is {found}, megatron-core 0.16.1 needs 2.9 to 2.11: take another NGC release"
    for name in ("h5py", "omegaconf", "pyarrow", "submitit", "tokenizers"):
        importlib.import_module(name)
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, Transformer Engine {found}")
    return ""


if __name__ == "__main__":
    line = problem()
    if line:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(bool(line))
