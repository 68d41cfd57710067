"""One run at a time on one model: its networks carry a run's processors, and a second would read them for its own."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from attnctl.errors import ModelError

P = ParamSpec("P")
R = TypeVar("R")


class _Owned:
    """What belongs to one network: who runs on it now, and who waits."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: int | None = None


_guard = threading.Lock()
_owned: weakref.WeakKeyDictionary[Any, _Owned] = weakref.WeakKeyDictionary()


def alone(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Have a method of something that has a `model` run with that model for itself; see `owning`."""

    @wraps(method)
    def called(self: Any, /, *arguments: P.args, **named: P.kwargs) -> R:
        with owning(self.model):
            return method(self, *arguments, **named)

    return called


@contextmanager
def owning(model: Any, *, again: bool = False) -> Iterator[None]:
    """Have a model's networks for this thread alone, waiting for other threads that run on them.

    Networks are known by themselves, not by the `Model` around them: two models, or two sessions, that share one of
    them wait for each other, as a base model and its variants in one program do.

    Args:
        model: The `attnctl.model.Model`.
        again: Whether a thread that runs on it already may come in a second time, for what leaves the networks alone.

    Raises:
        ModelError: This very thread runs on it already, from a callback for example: it would wait for itself.
    """
    parts = sorted(_parts(model), key=id)  # the same order everywhere, so that nobody waits in a circle
    me = threading.get_ident()
    with _guard:
        owned = [_owned.setdefault(part, _Owned()) for part in parts]
    inside = any(one.thread == me for one in owned)
    if inside and again:
        yield
        return
    if inside:
        raise ModelError(
            f"the model {model.name} is in the middle of a run of this very thread",
            hint="start the next run when this one has returned, not from its callbacks or plugins",
        )
    taken: list[_Owned] = []
    try:
        for one in owned:
            one.lock.acquire()
            one.thread = me
            taken.append(one)
        yield
    finally:
        for one in reversed(taken):
            one.thread = None
            one.lock.release()


def _parts(model: Any) -> list[Any]:
    """Return the networks of a model, and the pipeline itself, each once."""
    from torch import nn

    found = {id(part): part for part in model.pipe.components.values() if isinstance(part, nn.Module)}
    found.setdefault(id(model.denoiser), model.denoiser)
    return list(found.values())
