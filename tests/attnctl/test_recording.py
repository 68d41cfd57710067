"""Reading without editing: what is read is right, nothing moves, and what it takes is known before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attnctl.errors import AttnctlError, InputError, SelectionError
from attnctl.model import Model, check_supported
from attnctl.recording import Recorded, Recording, named_tensors
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.sites import Where
from attnctl.steps import When
from attnctl.testing import tiny_sd, tiny_sdxl

SOURCE, TARGET = "a red cat on the grass", "a blue dog on the grass"
CROSS, SELF = Where("cross", layers=(3,)), Where("self", layers=(2, 3))
ALL = (
    Recording("q", SELF, of="q"),
    Recording("k", SELF, of="k"),
    Recording("v", SELF, of="v"),
    Recording("out", SELF, of="out"),
    Recording("map", SELF),
    Recording("words", CROSS),
    Recording("mass", SELF, of="mass"),
    Recording("column", CROSS, of="columns", columns=torch.eye(77)[:, 2:4]),
    Recording("feature", Where("feature", layers=(4,)), of="feature"),
)


def request(*edits: Edit, **more: Any) -> EditRequest:
    fields = {"source_prompt": SOURCE, "steps": 4, "seed": 2, "size": (64, 96), "allow_no_op": True, **more}
    return EditRequest(edits or (Edit(TARGET, "fpe"),), **fields)


def on(lane: str, *recordings: Recording) -> tuple[Recording, ...]:
    return tuple(replace(r, lane=lane, name=f"{lane} {r.name}") for r in recordings or ALL)


@pytest.fixture
def session(shared_tiny_model: Model) -> EditSession:
    return EditSession(shared_tiny_model)


METHODS = ("fpe", "p2p", "masactrl", "pnp", "none")


@pytest.mark.parametrize("kind", ["sd", "sd-v", "sdxl"])
@pytest.mark.parametrize("real", [False, True])
def test_reading_changes_no_bit_of_any_lane(kind: str, real: bool) -> None:
    make = tiny_sdxl if kind == "sdxl" else tiny_sd
    pipe = make(prediction_type="v_prediction" if kind == "sd-v" else "epsilon")
    session = EditSession(Model(pipe, kind, family=check_supported(pipe, kind)))
    picture = {"pixels": torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1, "size": None}
    for name in METHODS:
        asked = request(Edit(TARGET, name, name="edit"), **(picture if real else {}))
        recordings = (*on("source"), *on("edit"))
        plain, read = session.run(asked), session.run(replace(asked, recordings=recordings))
        for a, b in zip(plain.lanes, read.lanes, strict=True):
            assert torch.equal(a.latents, b.latents), (name, a.name)
        assert set(read.recordings) == {recording.name for recording in recordings}
        rows = {row.controller: row for row in read.coverage}
        for recording in recordings:
            assert rows[recording.name].acted == rows[recording.name].expected > 0
            assert rows[recording.name].changed is None


def test_what_is_read_of_a_source_is_what_attention_does(session: EditSession) -> None:
    """Maps, masses and columns against those made of the recorded queries and keys."""
    found = session.run(request(recordings=ALL)).recordings
    for layer in (2, 3):
        for step in range(4):
            q, k, v, out, made, mass = (found[n].at(layer, step) for n in ("q", "k", "v", "out", "map", "mass"))
            expected = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
            torch.testing.assert_close(made, expected, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(out, expected @ v, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mass, torch.ones_like(mass))
    words = found["words"].at(3, 1)
    torch.testing.assert_close(words.sum(-1), torch.ones(words.shape[:2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["column"].at(3, 1), words[..., 2:4], atol=1e-6, rtol=1e-5)
    assert found["feature"].at(4, 0).ndim == 3


def test_an_edit_is_read_as_edited(session: EditSession) -> None:
    """FPE gives the edit the source's map, and leaves its own queries and values."""
    where = Where("self", layers=(6,))
    recordings = tuple(
        Recording(f"{lane} {of}", where, lane=lane, of=of)
        for lane in ("source", "edit")
        for of in ("map", "q", "v", "out")
    )
    found = session.run(request(Edit(TARGET, "fpe", name="edit"), recordings=recordings)).recordings
    for step in (1, 2):
        source, edit = (found[f"{lane} map"].at(step=step) for lane in ("source", "edit"))
        torch.testing.assert_close(edit, source, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(found["edit q"].at(step=step), found["source q"].at(step=step), atol=1e-3)
        torch.testing.assert_close(
            found["edit out"].at(step=step), edit @ found["edit v"].at(step=step), atol=1e-5, rtol=1e-5
        )
    own, other = found["edit map"].at(step=3), found["source map"].at(step=3)
    assert not torch.allclose(own, other, atol=1e-3), "the window of FPE is over"


def test_averages_are_means_and_take_less(session: EditSession) -> None:
    where = Where("cross", min_downscale=4, max_downscale=4)
    full = Recording("full", where)
    mean = replace(full, name="mean", reduce=frozenset({"heads", "steps", "sites"}))
    halved = replace(mean, name="half", dtype="float16")
    found = session.run(request(recordings=(full, mean, halved))).recordings
    expected = found["full"].stack().mean((0, 1, 2))
    torch.testing.assert_close(found["mean"].at(), expected, atol=1e-6, rtol=1e-5)
    assert found["half"].at().dtype == torch.float16
    torch.testing.assert_close(found["half"].at().float(), expected, atol=1e-3, rtol=1e-2)


def test_what_recordings_take_is_known_before_and_refused_over_the_budget(
    session: EditSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = (*ALL, replace(ALL[4], name="mean", reduce=frozenset({"heads", "steps"}), dtype="bfloat16"))
    plan = session.plan(request(recordings=recordings))
    found = session.run(request(recordings=recordings)).recordings
    for reading in plan.readings:
        recorded = found[reading.recording.name]
        assert sum(t.nbytes for _, t in recorded) == reading.size, reading.recording.name
    total = sum(reading.size for reading in plan.readings)
    monkeypatch.setattr(Model, "predict", None)
    with pytest.raises(InputError, match=f"would take {total:,} bytes, allowed are {total - 1:,}") as caught:
        session.run(request(recordings=recordings, max_recorded=total - 1))
    assert "'words'" in caught.value.hint


def test_rows_are_counted_before_and_a_source_that_nobody_moves_is_run_for_readers(session: EditSession) -> None:
    asked = request(
        Edit(TARGET, "fpe", {"self_replace": 0.5}), x0=torch.randn(1, 4, 8, 12), size=None, check_reconstruction=False
    )
    late = Recording("late", SELF, When(0.5, 1))
    plain, read = session.run(asked), session.run(replace(asked, recordings=(late,)))
    assert read.rows["edit"] == plain.rows["edit"] + 2
    planned = replace(asked, recordings=(late,))
    assert session.edit_rows(planned, session.plan(planned)) == read.rows["edit"]
    assert sorted(step for _, step in read.recordings["late"].tensors) == [2, 2, 3, 3]


def test_two_edits_do_not_read_the_source_twice(session: EditSession) -> None:
    edits = (Edit(TARGET, "fpe"), Edit("a red cat on the snow", "fpe"))
    one, two = (session.run(request(*edits, recordings=given)) for given in ((), ALL))
    assert one.rows == two.rows


def test_calls_may_be_cut_in_pieces(session: EditSession) -> None:
    recordings = (*on("source", *ALL[:6]), *on("edit", *ALL[:6]))
    asked = request(Edit(TARGET, "fpe", name="edit"), recordings=recordings)
    whole, pieces = session.run(asked).recordings, session.run(replace(asked, max_rows=1)).recordings
    for name, recorded in whole.items():
        for key, tensor in recorded:
            torch.testing.assert_close(pieces[name].tensors[key], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_too(dtype: torch.dtype) -> None:
    from attnctl.testing import tiny_model

    found = EditSession(tiny_model(dtype=dtype)).run(request(recordings=ALL)).recordings
    sums = found["words"].at(3, 0).sum(-1)
    assert found["words"].at(3, 0).dtype == torch.float32
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=2e-2, rtol=0)


WRONG: dict[str, tuple[Callable[[], Any], type[AttnctlError], str]] = {
    "lane": (lambda: on("nobody", ALL[0]), SelectionError, "unknown lane to record 'nobody': known are source"),
    "twice": (lambda: (ALL[0], ALL[0]), InputError, "two recordings are called 'q'"),
    "half": (lambda: (replace(ALL[0], half="uncond"),), SelectionError, "which is not evaluated"),
    "layer": (lambda: (Recording("x", Where("self", layers=(99,))),), SelectionError, "layers 99 do not exist"),
    "steps": (lambda: (replace(ALL[0], when=When(steps=frozenset({9}))),), SelectionError, "holds none of 4 steps"),
    "sites": (lambda: (Recording("x", Where("self"), reduce=frozenset({"sites"})),), SelectionError, "different sizes"),
    "segment": (lambda: (replace(ALL[0], queries="text"),), SelectionError, "unknown segment of queries"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_recorded_is_refused_before_the_run(
    name: str, session: EditSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, kind, message = WRONG[name]
    monkeypatch.setattr(Model, "predict", None)
    with pytest.raises(kind, match=message):
        session.run(request(recordings=make(), guidance=1.0 if name == "half" else 7.5))


@pytest.mark.parametrize(
    "fields",
    [
        {"of": "colour"},
        {"of": "columns"},
        {"columns": torch.eye(77)},
        {"of": "feature"},
        {"where": Where("feature"), "of": "map"},
        {"where": Where("feature"), "of": "feature", "reduce": frozenset({"heads"})},
        {"dtype": "int8"},
        {"half": "both"},
        {"reduce": frozenset({"rows"})},
        {"name": " "},
    ],
)
def test_recordings_whose_parts_do_not_go_together_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Recording(**{"name": "x", "where": SELF, **fields})


def test_results_are_found_by_layer_and_step(session: EditSession) -> None:
    found = session.run(request(recordings=ALL)).recordings["map"]
    assert isinstance(found, Recorded)
    with pytest.raises(SelectionError, match="has 8 tensors for layer None and step None") as caught:
        found.at()
    assert "layers [2, 3]" in caught.value.hint
    names = named_tensors({"map": found})
    assert len(names) == len(found) == 8
    assert "map/down_blocks.1.attentions.0.transformer_blocks.0.attn1/0" in names
    assert found.stack().shape[:2] == (2, 4)


def test_joint_attention_is_read_by_segments() -> None:
    """Image queries over image and text keys of a tiny transformer's own call, and the mass on the image."""
    from attnctl.attend import AttentionCall
    from attnctl.branches import Branches, Row
    from attnctl.engine.fused import Projections, execute
    from attnctl.engine.operation import Operation, RowAction, RowTerm
    from attnctl.engine.recorder import PlannedReading, Recorder
    from attnctl.sites import Site
    from attnctl.steps import Step

    site = Site("a", "joint", "double", 0, 2, 2, queries=("text", "image"))
    branches, step = Branches((Row("source", "cond"),)), Step(0, 1, 500.0)
    q, k, v = torch.randn(3, 1, 2, 5 + 12, 8, generator=torch.Generator().manual_seed(0)).unbind()
    call = AttentionCall(site, step, branches, (3, 4), 17, "source", "cond")
    kept: dict[str, Tensor] = {}
    for of in ("map", "mass", "out", "k"):
        recorder = Recorder.of(PlannedReading(Recording(of, Where("joint"), of=of), (site,), (0,), 0))
        bound = recorder.bound
        action = RowAction(bound, call, 0)
        op = Operation([(RowTerm.own(0),)], branches, observers=[action], acting=[(bound, [call])])
        execute(op, Projections(q, k, v, (0,), (0,), (0,)))
        kept[of] = recorder.finish().at()
    expected = (q @ k.mT / 8**0.5).softmax(-1)[0]
    torch.testing.assert_close(kept["map"], expected[:, 5:], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(kept["mass"], expected[:, 5:, 5:].sum(-1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(kept["out"], F.scaled_dot_product_attention(q, k, v)[0, :, 5:], atol=1e-5, rtol=1e-5)
    assert torch.equal(kept["k"], k[0])
