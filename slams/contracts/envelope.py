"""What every contract has in common: a name and version, provenance, checksums, and writing aside.

A result appears under its name only when it is whole: it is written beside as ``NAME.partial`` and renamed.
A reader refuses what it cannot trust with a `ContractError`, one sentence; it never warns and goes on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, cast
from uuid import uuid4

from upath import UPath

import slams

SEAL, ABSENT = "document_sha256", object()
log = logging.getLogger("slams.contracts")


class ContractError(ValueError):
    """A file that is missing, damaged, of another version or of another make, said in one sentence."""


@contextmanager
def alone(path: str | Path, lock: Path | None = None) -> Iterator[None]:
    """Around the making of what gets that name: no other program makes it meanwhile.

    The lock goes with the process, however that ends; a file of it that stays behind locks nobody out. Where nothing
    can be written, or on a file system without locks, nobody is refused.

    Arguments:
        lock: its file; beside the name where none is given, for a folder that appears when it is whole.

    Raises:
        ContractError: another program, which is named, is at work on it.
    """
    path = Path(path)
    lock = lock or path.with_name(f".{path.name}.lock")
    with suppress(OSError):  # said by what is going to write there
        lock.parent.mkdir(parents=True, exist_ok=True)
    held = _held(lock, path)
    try:
        yield
    finally:
        if held is not None:
            lock.unlink(missing_ok=True)  # while it is held
            held.close()


def _held(lock: Path, path: Path) -> IO[str] | None:
    """The file of the lock, this process's from now on."""
    while True:
        try:
            file = lock.open("a+")
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                who = file.read().strip() or "another program"
            raise ContractError(
                f"{path}: {who} is at work on it; wait until that has ended, or choose another name"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s); see to it that no other program works on it", path, error)
            return file
        with suppress(FileNotFoundError):  # whoever had the lock before may have removed this file
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                _sign(file)
                return file
        file.close()


def _sign(lock: IO[str]) -> None:
    os.register_at_fork(after_in_child=lock.close)  # else a child would hold it longer than this process
    with suppress(OSError):  # by no buffer, which a full disk would refuse again on closing
        os.truncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"process {os.getpid()} of {socket.gethostname()}".encode())


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Write a folder beside its name and rename it when the block ends well.

    Raises:
        ContractError: the name is taken, as existing results are never overwritten, or another program is taking it.
    """
    path = Path(path)
    with alone(path):
        if path.exists():
            raise ContractError(f"{path}: exists already; remove it or choose another name")
        aside = path.with_name(path.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        aside.rename(path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file aside and rename it, so that a reader sees the old one or the new one.

    An object of a store needs no name aside: it appears whole. Two processes may write the same file at once.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not know and many a reader refuses.
        OSError: it cannot be written, as on a full disk.
    """
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be written as JSON ({error})") from None
    if not isinstance(path, Path):
        path.write_text(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a file of text aside and rename it; its folder is there."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file aside and rename it, so that a reader sees the old one or the new one; its folder is there."""
    aside = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be written ({error})") from error


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON file.

    Raises:
        ContractError: it is missing or is not JSON.
    """
    try:
        return cast(dict[str, Any], json.loads(path.read_text()))
    except FileNotFoundError:
        raise ContractError(f"{path}: no such file; {what} is expected there") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"{path}: not a JSON file ({error})") from None


def sha256(path: Path) -> str:
    """Checksum of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def provenance() -> dict[str, str]:
    """The code that is running: package version and, in a checkout on a machine with git, its commit."""
    command = ["git", "-C", str(Path(slams.__file__).parents[1]), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        commit = ""
    return {"slams": slams.__version__, "commit": commit or "unknown"}


def header(name: str, version: int, config: dict[str, Any]) -> dict[str, Any]:
    """The first fields of every contract."""
    return {"format": name, "version": version, "provenance": provenance(), "config": config}


def check_header(found: dict[str, Any], name: str, version: int, path: Path) -> None:
    """Refuse another format, or a version newer than this code.

    Raises:
        ContractError: naming the file, what it is, and what was expected.
    """
    if found.get("format") != name:
        raise ContractError(f"{path}: is {found.get('format', 'of no known format')!r}, not {name!r}")
    if not isinstance(found.get("version"), int) or found["version"] > version:
        raise ContractError(
            f"{path}: {name} version {found.get('version')!r}; this program reads up to {version}, so update it"
        )


def seal(document: dict[str, Any]) -> str:
    """Checksum of all that a JSON document says, however it is written, but for the seal itself."""
    content = {key: value for key, value in document.items() if key != SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_seal(found: object, document: dict[str, Any], is_old: bool, path: Path) -> None:
    """Refuse a document that does not say what was written: a flipped digit leaves it valid JSON.

    Arguments:
        found: its seal.
        document: what was sealed.
        is_old: whether it is of a version that had no seals.

    Raises:
        ContractError: the seal is missing, or of another content.
    """
    if found is None and is_old:
        return
    if found != seal(document):
        raise ContractError(f"{path}: the checksum of its own content does not match; the file was changed or damaged")


def check_source(path: str | Path, made_from: str | None, source: str | Path, content: str) -> None:
    """Refuse what stands if it was made from what lay at its source before.

    Arguments:
        made_from: the content that it names; None where an earlier version made it.
        content: of the source now.

    Raises:
        ContractError: they differ.
    """
    if made_from is not None and made_from != content:
        raise ContractError(f"{path}: was made from another {source} than is there now; remove it to make it anew")


def is_finished(path: str | Path, found_config: dict[str, Any] | None, config: dict[str, Any]) -> bool:
    """Whether a stage's result stands already, made by the same configuration; where it lies (``path``) is no matter.

    Raises:
        ContractError: it stands, but another configuration made it.
    """
    if not UPath(path).exists():
        return False
    found = found_config or {}
    if keys := sorted(k for k in {*config, *found} - {"path"} if found.get(k, ABSENT) != config.get(k, ABSENT)):
        raise ContractError(
            f"{path}: was made with another configuration (different: {', '.join(keys)}); "
            "remove it or choose another name"
        )
    return True
