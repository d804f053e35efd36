"""Where a contract lies: a local folder, or a URL of any file system that fsspec knows, such as ``s3://bucket/folder``."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from fsspec.core import url_to_fs
from isal import isal_zlib
from upath import UPath

from slams.contracts.envelope import ContractError


def place(path: str | Path) -> Path:
    """A path or a URL as something that is used as a path.

    Raises:
        ContractError: a URL of a kind that no installed package reads.
    """
    # What others have written since a listing was kept in memory would not be seen.
    options: dict[str, Any] = {"use_listings_cache": False} if "://" in str(path) else {}
    try:
        return cast(Path, UPath(path, **options))  # a local one is a Path, a remote one has its methods
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
    """Turn a write that failed, on a full disk or a store that does not answer, into one sentence.

    Raises:
        OSError: names what could not be written.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ContractError) or not (isinstance(error, OSError) or "://" in str(path)):
            raise
        # Zarr leaves the writes of the other chunks pending, begun or not; each would be complained of at exit.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        raise OSError(f"{path}: cannot be written ({_first_line(error)})") from error


def read_range(path: Path, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop`` of a file: one request. Fewer, where it ends before.

    The file system is looked up at every call: a connection does not outlive the fork of a reading process.
    """
    with reading(path):
        if isinstance(path, Path):
            file = os.open(path, os.O_RDONLY)  # without Python's buffers, which cost as much as the read itself
            try:
                return _read(file, start, stop)
            finally:
                os.close(file)
        system, inside = url_to_fs(str(path))
        return bytes(system.cat_file(inside, start=start, end=stop))


def _read(file: int, start: int, stop: int) -> bytes:
    """One call of the system gives 2 GiB at most."""
    parts = [os.pread(file, stop - start, start)]
    while parts[-1] and (start := start + len(parts[-1])) < stop:
        parts.append(os.pread(file, stop - start, start))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of every file of a folder, by one listing."""
    with reading(folder):
        system, inside = url_to_fs(str(folder))
        return {Path(f["name"]).name: f["size"] for f in system.ls(inside, detail=True) if f["type"] == "file"}


def folder_in(product: Path, name: str) -> Path:
    """A folder of a product, made where it is missing; never the product itself, which may have been removed."""
    folder = product / name
    if isinstance(folder, Path):
        folder.mkdir(exist_ok=True)
    return folder


def crc32(path: Path) -> int:
    """CRC32 of a file, read in blocks."""
    found = 0
    with reading(path), path.open("rb") as file:
        while block := file.read(2**20):
            found = isal_zlib.crc32(block, found)
    return found


def is_file(path: Path) -> bool:
    """Whether a file lies there.

    Raises:
        ContractError: a store that does not answer, of which `Path.is_file` would say that it holds none.
    """
    if isinstance(path, Path):
        return path.is_file()
    with reading(path):
        system, inside = url_to_fs(str(path), **path.storage_options)
        try:
            return bool(system.info(inside)["type"] == "file")
        except FileNotFoundError:
            return False


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A name of this process alone, for a folder that `appear` takes: beside a local one, or in a temporary one."""
    local = isinstance(path, Path)
    if local:
        path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{path.name}.", suffix=".partial", dir=path.parent if local else None) as folder:
        yield Path(folder) / path.name


def appear(folder: Path, path: Path, last: str) -> None:
    """Give what was built aside its name, where no other process was first.

    A store cannot rename. There one of several processes claims the name, by an object that only one can create and
    that tells what is going to stand there; others that bring the same bytes help, so that none waits for one that
    died, and those that bring others are refused.

    Arguments:
        last: the file that says that all is there.

    Raises:
        ContractError: a folder without that file lies there, or another process begins something else there.
    """
    if isinstance(path, Path):
        try:
            folder.rename(path)
        except OSError:
            if not path.exists():
                raise
            if not (path / last).is_file():
                raise ContractError(f"{path}: holds something else; remove it or choose another name") from None
        return
    if is_file(path / last):
        return
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p == folder / last, p))
    if not _claimed(path, files):
        raise ContractError(f"{path}: another process begins something else there; remove it or choose another name")
    for file in files:
        (path / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


def _claimed(path: Path, files: list[Path]) -> bool:
    """Whether the name is claimed for those files, by this process or by another."""
    content = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest().encode()
    claim = path / "claim"
    system, inside = url_to_fs(str(claim), use_listings_cache=False)
    try:
        system.pipe_file(inside, content, mode="create")
        return True
    except FileExistsError:
        return claim.read_bytes() == content


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
