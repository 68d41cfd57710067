"""What step actions may ask of the denoiser, masks that are added to logits, and texts that are sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl.controller import Controller, Observation, StepCall
from attnctl.engine.kernels import explicit_map
from attnctl.errors import PluginError
from attnctl.method import EditMethod, EditPlan, Source
from attnctl.registry import Registry
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.sites import Where
from attnctl.testing import tiny_model
from attnctl.testing.conformance import distance, fingerprint


def session(plan: Any) -> EditSession:
    """A session with a method called ``probe`` that plans what `plan` returns."""

    class Probe(EditMethod):
        name = "probe"
        no_op = True

        def plan(self, request: Any, model: Any) -> EditPlan:
            return plan(request)

    registry = Registry.load()
    registry.classes["method"]["probe"] = Probe
    return EditSession(tiny_model(), registry)


def request(**changes: Any) -> EditRequest:
    fields = {"source_prompt": "a red cat", "steps": 2, "allow_no_op": True, **changes}
    return EditRequest((Edit("a red dog", "probe"),), **fields)


def test_observers_read_whole_maps_with_gradients_and_leave_no_trace() -> None:
    seen: list[tuple[str, torch.Tensor]] = []
    outputs: list[torch.Tensor] = []

    def act(call: StepCall) -> None:
        x = call.latents["self"].requires_grad_()
        reader = Controller(
            "maps",
            Where("cross", block="up"),
            observe=Observation(lambda at: torch.eye(at.keys), lambda at, maps: seen.append((at.site.path, maps))),
        )
        for half in ("uncond", "cond"):
            seen.clear()
            observed = call.predict(x, "self", half, observers=(reader,))
            assert len(seen) == 9
            for _, maps in seen:
                assert maps.dtype == torch.float32
                assert torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-5)
            (gradient,) = torch.autograd.grad(sum((m**2).sum() for _, m in seen), x)
            assert gradient.abs().max() > 0
            outputs.append((observed - call.predict(x, "self", half)).detach())

    one = session(lambda r: EditPlan(Source(r.source_prompt), (Controller("act", on_step_start=act),)))
    before = fingerprint(one.model.unet)
    result = one.run(request())
    assert fingerprint(one.model.unet) == before
    assert all(difference.abs().max() < 1e-5 for difference in outputs)
    assert result.rows["edit"] == 2 * (4 + 4)
    assert [path for path, _ in seen] == sorted((path for path, _ in seen))


def test_predict_takes_observers_alone() -> None:
    def act(call: StepCall) -> None:
        call.predict(call.latents["self"], "self", "cond", observers=(Controller("act", on_step_end=act),))

    wrong = session(lambda r: EditPlan(Source(r.source_prompt), (Controller("act", on_step_start=act),)))
    with pytest.raises(PluginError, match="observes nothing"):
        wrong.run(request())


def test_step_actions_know_their_guidance() -> None:
    found: list[float] = []

    def act(call: StepCall) -> None:
        found.append(call.guidance)

    one = session(lambda r: EditPlan(Source(r.source_prompt), (Controller("act", on_step_end=act),), guidance=2.5))
    one.run(request())
    assert found == [2.5, 2.5]


def test_a_text_may_be_a_weighted_sum() -> None:
    """E(source) + E(edit) - E(source) is E(edit); half of each is neither."""

    def with_text(*text: tuple[str, float]) -> torch.Tensor:
        return session(lambda r: EditPlan(Source(r.source_prompt), text=text)).run(request())["edit[0]"].latents

    plain = with_text()
    assert distance(with_text(("a red cat", 1.0), ("a red dog", 1.0), ("a red cat", -1.0)), plain) < 1e-4
    assert distance(with_text(("a red cat", 0.5), ("a red dog", 0.5)), plain) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_masks_may_be_added_to_logits(dtype: torch.dtype) -> None:
    """A row of the most negative numbers is a mean; never NaN. Those of float16 are too small to swallow a logit."""
    from attnctl.engine.fused import Projections, _row_out
    from attnctl.engine.operation import Piece, RowTerm

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 6, 4, generator=generator).to(dtype) for _ in range(3))
    added = torch.zeros(6, 6)
    added[0] = torch.finfo(torch.float32).min
    added[1, :3] = torch.finfo(torch.float32).min
    added[2] = torch.linspace(-1, 1, 6)
    term = RowTerm((Piece(0),), (Piece(0),), (Piece(0),), mask=lambda: added)
    out = _row_out((term,), Projections(q, k, v, (0,), (0,), (0,)))
    lowest = added.double().clamp(torch.finfo(dtype).min)
    expected = explicit_map(q.double(), k.double(), lowest) @ v.double()
    if dtype == torch.float16:
        expected[:, :, 0] = (explicit_map(q.double(), k.double()) @ v.double())[:, :, 0]
    else:
        expected[:, :, 0] = v.double().mean(2)
    assert distance(out, expected) < {torch.float64: 1e-7, torch.float32: 1e-6}.get(dtype, 2e-2)
