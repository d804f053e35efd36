"""Where a contract lies: a local folder, or a URL of any file system that fsspec knows, such as ``s3://bucket/folder``."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from fsspec.core import url_to_fs
from upath import UPath

from slams.contracts.envelope import ContractError


def place(path: str | Path) -> Path:
    """A path or a URL as something that is used as a path.

    Raises:
        ContractError: a URL of a kind that no installed package reads.
    """
    try:
        return cast(Path, UPath(path))  # a local one is a Path, a remote one has its methods
    except (ValueError, ImportError) as error:
        raise ContractError(f"{path}: {_first_line(error)}") from None


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what a remote store answers into one sentence; a file that is not there stays a FileNotFoundError.

    Raises:
        ContractError: no credentials, no such host, no permission.
    """
    try:
        yield
    except (ContractError, FileNotFoundError):
        raise
    except Exception as error:
        if "://" not in str(path):
            raise
        raise ContractError(f"{path}: cannot be read ({_first_line(error)})") from error


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn a Zarr write that failed, on a full disk for one, into one sentence.

    Raises:
        OSError: names what could not be written.
    """
    try:
        yield
    except OSError as error:
        # Zarr leaves the writes of the other chunks pending, and asyncio would complain of each at exit.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise OSError(f"{path}: cannot be written ({_first_line(error)})") from error


def read_range(path: Path, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop`` of a file: one request. Fewer, where it ends before.

    The file system is looked up at every call: a connection does not outlive the fork of a reading process.
    """
    with reading(path):
        if isinstance(path, Path):
            file = os.open(path, os.O_RDONLY)  # without Python's buffers, which cost as much as the read itself
            try:
                return os.pread(file, stop - start, start)
            finally:
                os.close(file)
        system, inside = url_to_fs(str(path))
        return bytes(system.cat_file(inside, start=start, end=stop))


def sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of every file of a folder, by one listing."""
    with reading(folder):
        system, inside = url_to_fs(str(folder))
        return {Path(f["name"]).name: f["size"] for f in system.ls(inside, detail=True) if f["type"] == "file"}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
