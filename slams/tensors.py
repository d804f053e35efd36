"""Named arrays in one file, as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file


def save_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write them, for whom the user's umask says; the library's own files are for their owner alone.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: np.asarray(value, order="C") for name, value in arrays.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error
    path.chmod(mode)
