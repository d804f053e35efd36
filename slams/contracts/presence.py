"""Who writes in a product: what tells processes that still do, on whatever node, from those that were killed.

A process that writes holds a shared lock on the product's first file, which the system takes back however the process
ends. So one that gets the lock for itself knows that nobody else writes, and that what stands aside, ``*.partial``, is
what killed ones have left. On a file system without locks nobody ever knows, and nothing is removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from slams.contracts.envelope import ContractError
from slams.contracts.storage import is_file

MARK = "zarr.json"  # written once, with the product


@dataclass(frozen=True)
class Presence:
    """This process in a product.

    Arguments:
        mark: the product's first file.
        file: the same, opened; None at a URL, where an object is never half there.
    """

    mark: Path
    file: IO[bytes] | None

    def check(self) -> None:
        """Refuse to go on in a product that is not the one that was opened.

        Raises:
            ContractError: it was removed, whether or not another was begun in its place.
        """
        if not self._stands:
            raise ContractError(f"{self.mark.parent}: was removed while it was drawn; the same command begins it again")

    @property
    def _stands(self) -> bool:
        if self.file is None:
            return is_file(self.mark)
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), self.mark.stat())
        except FileNotFoundError:
            return False

    def sweep(self) -> None:
        """Remove what killed processes have left, if none is there but this one; none comes before it has left."""
        if self.file is None or not self.file.writable() or not _locked(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return
        for left in list(self.mark.parent.rglob("*.partial")):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)  # it may have been in a folder that is gone


@contextmanager
def present(product: Path) -> Iterator[Presence]:
    """Around all that a process writes in a product.

    Arguments:
        product: folder or URL.

    Raises:
        ContractError: it was removed before the block ended, and not: whatever went wrong because of that.
    """
    mark = product / MARK
    try:
        opened = _opened(mark) if isinstance(mark, Path) else nullcontext()
    except FileNotFoundError:
        Presence(mark, None).check()
        raise
    with opened as file:
        if file is not None:
            _locked(file, fcntl.LOCK_SH)
        here = Presence(mark, file)
        try:
            yield here
        except Exception:
            here.check()
            raise
        here.check()


def _opened(mark: Path) -> IO[bytes]:
    """To be written, without which NFS lends no lock to one alone; on a disk that cannot be, to be read."""
    try:
        return mark.open("r+b")
    except FileNotFoundError:
        raise
    except OSError:
        return mark.open("rb")


def _locked(file: IO[bytes], how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except OSError:  # another process has it, or the file system knows no locks
        return False
    return True
