"""Work that is done a step ahead by a thread, so that reading and computing take turns on two cores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items in order, each made by a thread while the one before is used; two are held at most."""
    waiting = iter(items)
    with ThreadPoolExecutor(1) as thread:
        ready = thread.submit(next, waiting, None)
        while (item := ready.result()) is not None:
            ready = thread.submit(next, waiting, None)
            yield item
