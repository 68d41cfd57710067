"""A network's fingerprint follows the network in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnctl.fingerprint import fingerprint
from attnctl.testing import tiny_sd


def flip(pipe: Any) -> None:
    weight = next(pipe.unet.parameters()).data.view(-1)
    weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))


def other_attention(pipe: Any) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    pipe.unet.set_attn_processor(AttnProcessor())


def patched_class(pipe: Any) -> None:
    kind = type(pipe.unet.mid_block)
    pipe.unet.mid_block.__class__ = type(kind.__name__, (kind,), {"forward": lambda self, x, *a, **k: x})


DESCRIBED: dict[str, Callable[[Any], object]] = {
    "one bit, in place": flip,
    "all weights, in place": lambda p: [w.data.mul_(1.05) for w in p.unet.parameters()],
    "FreeU": lambda p: p.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6),
    "another network": lambda p: setattr(p, "unet", tiny_sd(seed=7).unet),
    "another type": lambda p: p.unet.to(torch.bfloat16),
    "attention processors": other_attention,
    "training": lambda p: p.unet.train(),
    "a setting": lambda p: p.unet.register_to_config(center_input_sample=True),
    "two weights exchanged": lambda p: swap(p.unet.mid_block.attentions[0].transformer_blocks[0].attn1),
    "a method of a class": patched_class,
}


def swap(attention: Any) -> None:
    attention.to_q, attention.to_k = attention.to_k, attention.to_q


NOT: dict[str, Callable[[Any], object]] = {
    "a hook": lambda p: p.unet.mid_block.register_forward_hook(lambda m, a, out: out),
    "a replaced forward": lambda p: setattr(p.unet, "forward", lambda *a, **k: None),
    "fp8 storage": lambda p: p.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    ),
    "no numbers": lambda p: p.unet.to("meta"),
    "a processor made in a function": lambda p: (
        p.unet.set_attn_processor(type("Local", (), {"x": 1, "f": print})())
        or setattr(p.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor, "f", lambda: 0)
    ),
}


@pytest.fixture(scope="module")
def base() -> str | None:
    return fingerprint(tiny_sd().unet)


def test_equal_networks_have_equal_fingerprints(base: str) -> None:
    assert len(base) == 64
    assert fingerprint(tiny_sd().unet) == base


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_change_is_another_fingerprint(name: str, base: str) -> None:
    pipe = tiny_sd()
    DESCRIBED[name](pipe)
    found = fingerprint(pipe.unet)
    assert found is not None
    assert found != base


@pytest.mark.parametrize("name", NOT)
def test_what_cannot_be_described_has_none(name: str) -> None:
    pipe = tiny_sd()
    NOT[name](pipe)
    assert fingerprint(pipe.unet) is None


@pytest.mark.parametrize("size", [1, 3, 8, 32768 * 2 + 5, 32768 * 2 * 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
def test_every_bit_counts_whatever_the_size(size: int, dtype: torch.dtype) -> None:
    module = torch.nn.Module()
    module.register_buffer("x", torch.zeros(size, dtype=dtype))
    seen = {fingerprint(module)}
    for at in {0, size // 2, size - 1}:
        module.x.zero_()[at] = 1
        seen.add(fingerprint(module))
    assert len(seen) == 1 + len({0, size // 2, size - 1})


def test_a_wrapped_forward_is_another_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrapper names what it wraps, and must not be taken for it."""
    import functools

    unet = tiny_sd().unet
    before, original = fingerprint(unet), type(unet).forward

    @functools.wraps(original)
    def doubled(self, *args, **kwargs):
        return (original(self, *args, **kwargs)[0] * 2,)

    monkeypatch.setattr(type(unet), "forward", doubled)
    assert fingerprint(unet) != before
