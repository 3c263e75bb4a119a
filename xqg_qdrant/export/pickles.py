"""Read weights that are published as pickles, with torch's weights-only loader, which refuses code."""

from __future__ import annotations

from pathlib import Path

import torch

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.graph import Array

# Earlier releases' loader could be made to run code (CVE-2025-32434).
LEAST_TORCH = (2, 6)


def check_torch() -> None:
    """Check that torch's weights-only loader is safe.

    Raises:
        InputError: torch is too old.
    """
    version = torch.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_TORCH:
        raise InputError(
            f"torch {version} cannot read a pickle safely.", "upgrade it: pip install --upgrade 'torch>=2.6'"
        )


def read_pickle(path: Path) -> dict[str, Array]:
    """Return the tensors of a pickle by name.

    Raises:
        InputError: it holds anything but tensors, or is damaged.
    """
    check_torch()
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise errors of many kinds
        raise InputError(
            f"{path} cannot be read: it is damaged, or holds more than weights ({str(error).splitlines()[0]}).",
            "download it again, or use another checkpoint",
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"{path} holds more than tensors.", "use another checkpoint")
    return {str(name): value.float().numpy() for name, value in found.items()}
