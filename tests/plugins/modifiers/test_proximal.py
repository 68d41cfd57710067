"""Proximal guidance: what is shrunk, by how much, and where latents are drawn back."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from attnctl.errors import InputError
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.testing import tiny_model
from attnctl.testing.conformance import distance
from attnctl_plugins.modifiers.proximal import SHRINKS

SOURCE, TARGET = "a photo of a red cat", "a photo of a blue dog"
X0 = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3)).double()


@cache
def session() -> EditSession:
    return EditSession(tiny_model(prediction_type="v_prediction", dtype=torch.float64))


def run(*modifiers: dict[str, Any] | None, method: str = "none", **fields: Any) -> Any:
    """One edit per set of settings; None is an edit without the modifier."""
    edits = tuple(Edit(TARGET, method, modifiers={} if m is None else {"proximal": m}) for m in modifiers)
    given = {"source_prompt": SOURCE, "x0": X0, "steps": 4, "inversion": "negative-prompt"}
    given |= {"check_reconstruction": False, **fields}
    return session().run(EditRequest(edits, **given), record=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Arguments: -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5 at a threshold of 1.
        ("l0", [-1.5, -1, -0.5, 0, 0, 0, 0, 0, 0.5, 1, 1.5]),
        ("l1", [-0.5, 0, 0.5, 0, 0, 0, 0, 0, 0.5, 0, 0.5]),
        ("hard", [-2.5, -2, -1.5, 0, 0, 0, 0, 0, 1.5, 2, 2.5]),
    ],
)
def test_shrinking_is_what_its_name_stands_for(name: str, expected: list[float]) -> None:
    """METHODS 9c: the table of the authors' code for l0 and l1, sign flip included, and the operator that l0 means."""
    values = torch.arange(-5, 6) / 2
    assert SHRINKS[name](values, torch.tensor(1.0)).tolist() == pytest.approx(expected)


def test_the_ends_of_the_quantile_are_all_and_nothing() -> None:
    """METHODS 9f: 0 leaves guidance as it is; 1 leaves the unconditional half, here the source prompt."""
    ends = {"late_steps": 0}
    result = run(None, {"quantile": 0, **ends}, {"quantile": 1, **ends}, {"quantile": 0.7, **ends}, allow_no_op=True)
    plain, nothing, everything, some = (result[f"edit[{i}]"].latents for i in range(4))
    assert torch.equal(nothing, plain)
    source = run(None, method="p2p", allow_no_op=True).source.latents
    assert distance(everything, source) < 1e-10
    assert distance(some, plain) > 1e-3
    assert distance(some, source) > 1e-3


def test_a_constant_threshold_takes_the_place_of_the_quantile() -> None:
    result = run({"threshold": 1e9, "late_steps": 0}, {"quantile": 1, "late_steps": 0})
    assert torch.equal(result["edit[0]"].latents, result["edit[1]"].latents)


def test_with_the_source_in_its_scope_the_quantile_is_lower() -> None:
    """METHODS 9c: under negative-prompt inversion half of what is ranked is 0, so 0.75 is the edit's own median."""
    both, median = {"scope": "both", "quantile": 0.75}, {"scope": "edit", "quantile": 0.5}
    result = run({**both, "late_steps": 0}, {**median, "late_steps": 0}, {"quantile": 0.75, "late_steps": 0})
    latents = [result[f"edit[{i}]"].latents for i in range(3)]
    assert distance(latents[0], latents[1]) < 0.2 * distance(latents[2], latents[1])
    assert result.rows["edit"] == 4 * (3 * 2 + 1)  # the source lane runs because it is read


def test_late_steps_draw_what_was_dropped_onto_the_path() -> None:
    path = run(None, method="p2p", inversion="direct", allow_no_op=True).source.history
    result = run({"quantile": 1, "late_steps": 0.6}, {"quantile": 1, "late_steps": 0.6, "rate": 0.5})
    steps = [751, 501, 251, 1]
    full, half = (result[f"edit[{i}]"].history for i in range(2))
    for i, timestep in enumerate(steps):
        on_path = distance(full[i + 1], path[i + 1]) < 1e-12
        assert on_path == (timestep < 600)
    assert (
        0
        < distance(half[-1], path[-1])
        < distance(run({"quantile": 1, "late_steps": 0})["edit[0]"].history[-1], path[-1])
    )


def test_places_that_change_grow_and_stay_free() -> None:
    grown, not_grown = {"quantile": 0.9, "grow": 3, "late_steps": 1}, {"quantile": 0.9, "grow": 0, "late_steps": 1}
    result = run(grown, not_grown)
    path = run(None, method="p2p", inversion="direct", allow_no_op=True).source.history
    share = [float((result[f"edit[{i}]"].history[-1] == path[-1]).double().mean()) for i in range(2)]
    assert share[0] < share[1] < 0.95
    assert share[1] > 0.5


def test_it_goes_with_methods_and_null_text() -> None:
    settings = {"inner_steps": 1}
    result = run({}, None, method="fpe", inversion="null-text", inversion_settings=settings)
    acted = {row.controller: row for row in result.coverage if row.lane == "edit[0]"}
    assert {"proximal guidance", "pull to the inverted path"} < set(acted)
    assert all(row.acted == row.expected > 0 for row in acted.values())
    assert distance(result["edit[0]"].latents, result["edit[1]"].latents) > 1e-3
    assert result["edit[0]"].modifiers["proximal"]["quantile"] == 0.7
    assert result["edit[1]"].modifiers == {}
    assert not any("published" in text for text in result.warnings)
    assert any("not with ddim" in text for text in run({}, inversion="ddim").warnings)


@pytest.mark.parametrize(
    ("modifiers", "fields", "words"),
    [
        ({"proximal": {}}, {"guidance": 1.0, "inversion": "ddim"}, "with guidance 1 there is none"),
        ({"proximal": {"quantile": 1.5}}, {}, "quantile=1.5 is not allowed"),
        ({"proximal": {"preset": "none"}}, {}, "unknown preset of proximal"),
        ({"proximate": {}}, {}, "unknown modifier 'proximate': known are proximal"),
    ],
)
def test_bad_input_is_refused(modifiers: Any, fields: dict[str, Any], words: str) -> None:
    given = {"source_prompt": SOURCE, "x0": X0, "steps": 4, "inversion": "negative-prompt", **fields}
    with pytest.raises(InputError, match=words):
        session().plan(EditRequest((Edit(TARGET, "none", modifiers=modifiers),), **given))


def test_presets_are_the_published_settings() -> None:
    made = session().registry.make_modifier("proximal", {"preset": "reference", "quantile": "0.7"})
    assert (made.config.shrink, made.config.scope, made.config.quantile) == ("l0", "both", 0.7)
    assert made.config.late_steps == 0
