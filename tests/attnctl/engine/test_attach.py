"""Installing for a run and putting everything back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnctl.attend import Attend
from attnctl.controller import Controller
from attnctl.engine.attach import attached, reject_compiled
from attnctl.engine.operation import Bound
from attnctl.engine.processor import ControlledProcessor
from attnctl.errors import ModelError
from attnctl.model import Model
from attnctl.session import Progress
from attnctl.sites import Where
from attnctl.testing.conformance import fingerprint


def bounds(model: Model, *wheres: Where) -> list[Bound]:
    made = []
    for where in wheres:
        if where.kind == "feature":
            controller = Controller("features", where=where, on_feature=lambda call, feature: feature["source"])
        else:
            controller = Controller("maps", where=where, attend=Attend(q="source", k="source"))
        made.append(Bound(controller, "edit", "source", where.select(model.sites, (8, 8)), (0,), 1))
    return made


SOME = (Where(kind="self", layers=(2, 6)), Where(kind="cross", layers=(6,)), Where(kind="feature", layers=(3,)))


def test_only_controlled_layers_are_touched_and_all_are_put_back(own_tiny_model: Model) -> None:
    unet = own_tiny_model.unet
    before = fingerprint(unet)
    objects = dict(unet.attn_processors)
    with attached(unet, bounds(own_tiny_model, *SOME)) as attachment:
        inside = fingerprint(unet)
        changed = {name for name in before if inside[name] != before[name]}
        sites = [s.path for s in attachment.bounds]
        assert changed == {p if "attn" in p else f"{p}.conv2" for p in sites}
        assert len(sites) == 4
        assert all(isinstance(p, ControlledProcessor) for p in attachment.processors.values())
    assert fingerprint(unet) == before
    assert all(unet.attn_processors[name] is processor for name, processor in objects.items())


def test_all_are_put_back_after_an_exception(own_tiny_model: Model) -> None:
    before = fingerprint(own_tiny_model.unet)
    with pytest.raises(KeyboardInterrupt), attached(own_tiny_model.unet, bounds(own_tiny_model, *SOME)):
        raise KeyboardInterrupt
    assert fingerprint(own_tiny_model.unet) == before


def test_processors_that_are_modules_stay_part_of_the_model(own_tiny_model: Model) -> None:
    """Adapters keep their weights in the processor: they must be back in the state dict."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    site = next(s for s in own_tiny_model.sites if s.kind == "cross" and s.layer == 6)
    attn = own_tiny_model.unet.get_submodule(site.path)
    adapter = IPAdapterAttnProcessor2_0(attn.inner_dim, attn.cross_attention_dim, num_tokens=(4,), scale=1.0)
    attn.set_processor(adapter)
    before = set(own_tiny_model.unet.state_dict())
    with attached(own_tiny_model.unet, bounds(own_tiny_model, *SOME)):
        assert isinstance(attn.processor, ControlledProcessor)
    assert attn.processor is adapter
    assert set(own_tiny_model.unet.state_dict()) == before


def test_without_controllers_nothing_is_touched(own_tiny_model: Model) -> None:
    before = fingerprint(own_tiny_model.unet)
    with attached(own_tiny_model.unet, []) as attachment:
        assert fingerprint(own_tiny_model.unet) == before
        assert attachment.processors == {}


def test_a_failing_callback_leaves_nothing_behind(own_tiny_model: Model, run_with: Callable[..., Any]) -> None:
    before = fingerprint(own_tiny_model.unet)

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    actions: list[dict[str, Any]] = [
        {"where": Where(kind="self"), "on_qkv": fail},
        {"where": Where(kind="cross"), "on_probs": fail},
        {"where": Where(kind="feature"), "on_feature": fail},
        {"on_step_start": fail},
        {"on_step_end": fail},
        {"on_guidance": fail},
    ]
    for fields in actions:
        with pytest.raises(ZeroDivisionError):
            run_with([Controller("fails", **fields)], model=own_tiny_model)
        assert fingerprint(own_tiny_model.unet) == before, fields


def test_the_model_runs_uncontrolled_between_denoiser_calls(
    own_tiny_model: Model, run_with: Callable[..., Any]
) -> None:
    """While a run waits in a progress callback, the model computes what it always did."""
    x, text = torch.randn(2, 4, 8, 8), own_tiny_model.encode_text("a cat")
    expected = own_tiny_model.predict(x, 501, [text, text])
    found = []

    def look(event: Any) -> None:
        if isinstance(event, Progress) and event.stage == "edit":
            found.append(own_tiny_model.predict(x, 501, [text, text]))

    run_with([Controller("maps", where=Where(kind="self"), attend=Attend(q="source", k="source"))],
             model=own_tiny_model, on_event=look)  # fmt: skip
    assert len(found) == 4
    assert all(torch.equal(out, expected) for out in found)


def test_compiled_denoisers_are_refused(own_tiny_model: Model, run_with: Callable[..., Any]) -> None:
    reject_compiled(own_tiny_model.unet)
    with pytest.raises(ModelError, match="compiled"):
        reject_compiled(torch.compile(own_tiny_model.unet))
    own_tiny_model.unet.mid_block.compile()
    with pytest.raises(ModelError, match="compiled"):
        run_with([], model=own_tiny_model)
