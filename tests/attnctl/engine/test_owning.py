"""Threads that share a session, a model, or networks: every picture is right, and every processor is back."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from attnctl.engine import owning as module
from attnctl.engine.owning import owning
from attnctl.errors import AttnctlError, ModelError
from attnctl.model import Model
from attnctl.request import Edit, EditRequest
from attnctl.result import EditResult
from attnctl.session import EditSession
from attnctl.testing import tiny_model, tiny_sd

# diffusers hands torch tensors to numpy in a way that newer numpy warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

WORDS = ["red", "blue", "green", "white"]


def request(number: int) -> EditRequest:
    """One of twelve requests that differ in prompt, method, seed and length."""
    word = WORDS[number % len(WORDS)]
    method = ("fpe", "none", "p2p", "masactrl")[number % 4]
    return EditRequest(
        (Edit(f"a {word} dog on the grass", method),),
        source_prompt="a red cat on the grass",
        steps=2 + number % 2,
        seed=number,
        allow_no_op=True,
    )


def processors(model: Model) -> list[Any]:
    return list(model.denoiser.attn_processors.values())


def same(a: EditResult, b: EditResult) -> bool:
    return [x.name for x in a.lanes] == [x.name for x in b.lanes] and all(
        torch.equal(x.pixels, y.pixels) for x, y in zip(a.lanes, b.lanes, strict=True)
    )


@pytest.mark.parametrize("sharing", ["session", "model", "networks"])
def test_every_picture_of_many_threads_is_right(sharing: str) -> None:
    model = tiny_model()
    before = processors(model)
    expected = [EditSession(model).run(request(n)) for n in range(12)]
    session = EditSession(model)
    gate = threading.Barrier(6)

    def session_of() -> EditSession:
        if sharing == "session":
            return session
        return EditSession(model if sharing == "model" else Model(model.pipe, "the same again"))

    def work(start: int) -> list[EditResult]:
        mine = session_of()
        gate.wait()
        return [mine.run(request(start)), mine.run(request(start + 6), plan=mine.plan(request(start + 6)))]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(work, range(6)))
    wrong = [n for n in range(12) if not same(found[n % 6][n // 6], expected[n])]
    assert wrong == []
    assert all(a is b for a, b in zip(processors(model), before, strict=True))


def test_without_it_they_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: two threads that step in turn on one model spoil each other's runs."""
    model = tiny_model()
    session = EditSession(model)
    expected = [session.run(request(n)) for n in (0, 2)]
    monkeypatch.setattr(module, "_parts", lambda model: [])
    gate = threading.Barrier(2)

    def work(number: int) -> bool:
        def in_turn(event: object) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                gate.wait(5)

        try:
            return same(session.run(request(number), in_turn), expected[number // 2])
        except (AttnctlError, RuntimeError):
            return False
        finally:
            gate.abort()

    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(work, (0, 2)))
    assert not all(right)


def test_one_thread_waits_for_the_other() -> None:
    model = tiny_model()
    order: list[str] = []
    inside = threading.Event()

    def first() -> None:
        with owning(model):
            inside.set()
            threading.Event().wait(0.2)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with owning(model):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_a_callback_cannot_start_a_run_on_its_own_model() -> None:
    model = tiny_model()
    session = EditSession(model)
    found: list[str] = []

    def nested(event: object) -> None:
        session.plan(request(1))  # leaves the networks alone
        if not found:
            with pytest.raises(ModelError, match="in the middle of a run") as caught:
                session.run(request(1))
            found.append(caught.value.hint)

    expected = session.run(request(0))
    assert same(session.run(request(0), nested), expected)
    assert found


def test_a_failed_run_lets_the_next_one_in() -> None:
    model = tiny_model()
    session = EditSession(model)

    def fail(event: object) -> None:
        raise RuntimeError("the page was closed")

    with pytest.raises(RuntimeError):
        session.run(request(0), fail)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(session.run, request(0)).result(timeout=60).lanes


def test_models_without_common_networks_do_not_wait() -> None:
    one, other = tiny_model(), Model(tiny_sd(seed=1), "other")
    with owning(one), ThreadPoolExecutor(1) as pool:
        assert pool.submit(EditSession(other).run, request(0)).result(timeout=60).lanes
