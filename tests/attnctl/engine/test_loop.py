"""The loop: which rows it runs, how it packs them, and what controllers may do between denoiser calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl.attend import Attend
from attnctl.controller import Controller, Observation, StepCall
from attnctl.engine.lanes import Lane
from attnctl.engine.loop import Engine
from attnctl.engine.memory import MemoryShortageError
from attnctl.engine.operation import Bound
from attnctl.errors import NumericsError, PluginError, SelectionError
from attnctl.guidance import Guidance
from attnctl.model import Model
from attnctl.request import EditRequest
from attnctl.result import NoOpError
from attnctl.sampling import DDIMGrid
from attnctl.sites import Where
from attnctl.steps import When
from attnctl.testing.conformance import distance

BOTH = ("uncond", "cond")
Runner = Callable[..., Any]


def attend(expression: Any = None, **fields: Any) -> Controller:
    where = Where(kind="self", min_downscale=2)
    return Controller("maps", **{"where": where, "attend": expression or Attend(q="source", k="source"), **fields})


@pytest.fixture(scope="module")
def x0() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


# -- which rows run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("controllers", "fields", "rows"),
    [
        ([], {}, 4 * 4),  # two lanes, two halves
        ([attend()], {}, 4 * 4),
        ([attend()], {"guidance": 1.0}, 4 * 2),
        ([attend(passes=BOTH)], {"guidance": 1.0}, 4 * 2),
        ([attend(passes=BOTH)], {}, 4 * 4),
    ],
)
def test_generated_lanes_run_both_halves_unless_guidance_is_1(
    controllers: list[Controller], fields: dict[str, Any], rows: int, run_with: Runner
) -> None:
    assert run_with(controllers, **fields).rows == {"edit": rows}


@pytest.mark.parametrize(
    ("controllers", "fields", "rows"),
    [
        ([], {}, 4 * 2),
        ([attend(when=When(0, 0.5))], {}, 2 * 3 + 2 * 2),
        ([attend(passes=BOTH)], {}, 4 * 3),  # the source's halves have one text: one row serves both
        ([attend(passes=BOTH)], {"source_prompt": "a red cat"}, 4 * 4),
        ([attend()], {"source_prompt": "a red cat"}, 4 * 3),
        ([attend()], {"guidance": 1.0}, 4 * 2),
        ([attend(lambda step: Attend(q="source", k="source") if step.index == 3 else None)], {}, 3 * 2 + 3),
        ([attend(Attend(value_map=lambda call: torch.full((call.keys,), 0.5)))], {}, 4 * 2),
        ([attend()], {"keep_source": True}, 4 * 3),
        ([attend()], {"keep_source": True, "source_prompt": "a red cat"}, 4 * 4),
    ],
)
def test_a_pinned_source_runs_only_where_it_is_read(
    controllers: list[Controller], fields: dict[str, Any], rows: int, run_with: Runner, x0: Tensor
) -> None:
    result = run_with(controllers, x0=x0, check_reconstruction=False, **fields)
    assert result.rows == {"inversion": 4, "edit": rows}


def test_the_forecast_of_rows_is_what_a_run_takes(session_with: Callable[..., Any], x0: Tensor) -> None:
    from attnctl.request import Edit

    session = session_with([attend(when=When(0, 0.5))], [attend(passes=BOTH)])
    request = EditRequest((Edit("a dog", "m0"), Edit("a cat", "m1")), x0=x0, steps=4, check_reconstruction=False)
    forecast = session.edit_rows(request, session.plan(request))
    assert session.run(request).rows["edit"] == forecast


def test_rows_that_are_served_by_another_change_no_number(run_with: Runner, x0: Tensor) -> None:
    """A source that runs once for both halves, against a free one that runs twice with the same texts."""
    once = run_with([attend(passes=BOTH)], x0=x0, check_reconstruction=False)
    assert once.rows["edit"] == 4 * 3
    # A negative prompt that is the empty text by another name: one more space, the same tokens, another lane text.
    twice = run_with([attend(passes=BOTH)], x0=x0, check_reconstruction=False, negative_prompt=" ")
    assert distance(once["edit[0]"].latents, twice["edit[0]"].latents) < 1e-5


# -- packing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("real", [False, True])
def test_packing_into_calls_of_any_size_changes_no_number(real: bool, run_with: Runner, x0: Tensor) -> None:
    """Two edits of one source, a third that reads the first: each row goes with what it reads."""
    methods = [
        [attend(passes=BOTH)],
        [attend(Attend(k=("source", "self"), v=("source", "self")))],
        [attend(Attend(q="edit[0]", k="edit[0]"))],
    ]
    fields: dict[str, Any] = {"steps": 2}
    if real:
        fields |= {"x0": x0, "check_reconstruction": False, "source_prompt": "a red cat"}
    whole = run_with(*methods, **fields)
    for rows in (1, 3, 5):
        split = run_with(*methods, max_rows=rows, **fields)
        for lane in whole.lanes:
            assert distance(split[lane.name].latents, lane.latents) < 1e-5, (rows, lane.name)
        assert split.coverage == whole.coverage
        assert split.rows["edit"] >= whole.rows["edit"]


def test_a_call_never_holds_more_rows_than_asked_unless_they_read_each_other(
    run_with: Runner, own_tiny_model: Model
) -> None:
    sizes: list[int] = []
    own_tiny_model.unet.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[0]))
    run_with([], [], model=own_tiny_model, max_rows=2, steps=1)
    assert sizes == [2, 2, 2]
    sizes.clear()
    run_with([attend()], model=own_tiny_model, max_rows=1, steps=1, allow_no_op=True)
    assert sorted(sizes) == [1, 1, 2] or sorted(sizes) == [1, 1, 1, 2]


def test_running_out_of_memory_splits_the_call(run_with: Runner, own_tiny_model: Model) -> None:
    """A denoiser that has room for two rows: the run shrinks its calls and gives the same pictures."""
    whole = run_with([attend()], model=own_tiny_model, steps=2)

    def little_room(module: Any, args: Any) -> None:
        if args[0].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    hook = own_tiny_model.unet.register_forward_pre_hook(little_room)
    try:
        split = run_with([attend()], model=own_tiny_model, steps=2)
    finally:
        hook.remove()
    for lane in whole.lanes:
        assert distance(split[lane.name].latents, lane.latents) < 1e-5
    assert split.coverage == whole.coverage


def test_no_room_at_all_is_said_with_what_to_reduce(run_with: Runner, own_tiny_model: Model) -> None:
    def no_room(module: Any, args: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes.")

    own_tiny_model.unet.register_forward_pre_hook(no_room)
    with pytest.raises(MemoryShortageError, match=r"out of memory with \d rows at once in step 0") as caught:
        run_with([attend()], model=own_tiny_model)
    assert "--size" in caught.value.hint


def test_other_errors_of_the_denoiser_are_not_taken_for_a_shortage(run_with: Runner, own_tiny_model: Model) -> None:
    def broken(module: Any, args: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    own_tiny_model.unet.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run_with([], model=own_tiny_model)


# -- escape hatches in a whole run -------------------------------------------------------------------------------------


def test_callbacks_that_change_nothing(run_with: Runner) -> None:
    """on_qkv: the same bits; on_probs: within 1e-4; on_feature: the same bits; all are told apart from edits."""
    plain = run_with([])["edit[0]"].latents

    def keep(fields: dict[str, Any]) -> Tensor:
        with pytest.raises(NoOpError, match="changed no number") as caught:
            run_with([Controller("nothing", passes=BOTH, **fields)])
        (row,) = caught.value.result.coverage
        assert row.acted == row.expected > 0
        return caught.value.result["edit[0]"].latents

    same_qkv = keep({"where": Where(kind="self"), "on_qkv": lambda call, q, k, v: (q["self"], k["self"], v["self"])})
    assert torch.equal(same_qkv, plain)
    same_feature = keep({"where": Where(kind="feature"), "on_feature": lambda call, feature: feature["self"]})
    assert torch.equal(same_feature, plain)
    same_map = keep({"where": Where(kind="cross"), "on_probs": lambda call, probs: probs["self"]})
    assert distance(same_map, plain) < 1e-4


def test_the_algebra_and_the_hatches_agree(run_with: Runner) -> None:
    """One edit written in three ways."""
    where = Where(kind="self", min_downscale=2)
    ways = [
        attend(),
        Controller("q and k", where=where, on_qkv=lambda call, q, k, v: (q["source"], k["source"], v["self"])),
        Controller("map", where=where, on_probs=lambda call, probs: probs["source"]),
    ]
    results = [run_with([way])["edit[0]"].latents for way in ways]
    assert distance(results[1], results[0]) < 1e-5
    assert distance(results[2], results[0]) < 1e-4


def test_several_controllers_act_on_one_lane(run_with: Runner) -> None:
    """A map, a feature, an observer and a step action beside each other, each where it said."""
    maps: list[Tensor] = []
    result = run_with(
        [
            attend(when=When(0, 0.5)),
            Controller("late", where=Where(kind="self", min_downscale=2), when=When(0.5, 1), attend=0.9 * Attend()),
            Controller("feature", where=Where(kind="feature", layers=(12,)), passes=BOTH,
                       on_feature=lambda call, feature: 0.5 * (feature["self"] + feature["source"])),
            Controller("words", where=Where(kind="cross", layers=(6,)),
                       observe=Observation(torch.eye(77)[:, :2], lambda call, m: maps.append(m), "source")),
            Controller("nudge", when=When(steps=frozenset({1})), on_step_end=lambda call: call.latents["self"] * 1.01),
        ]
    )  # fmt: skip
    assert [(r.controller, r.acted, r.expected, r.changed) for r in result.coverage] == [
        ("maps", 22, 22, True),
        ("late", 22, 22, True),
        ("feature", 8, 8, True),
        ("words", 4, 4, None),
        ("nudge", 1, 1, True),
    ]
    assert [tuple(m.shape) for m in maps] == [(4, 1, 2)] * 4


def test_two_controllers_that_set_one_map_are_refused(run_with: Runner) -> None:
    with pytest.raises(PluginError, match="both set the attention"):
        run_with([attend(), attend(0.5 * Attend())])


def test_an_observer_changes_no_bit(run_with: Runner) -> None:
    reader = Controller("words", where=Where(kind="cross"), observe=Observation(torch.eye(77), lambda call, m: None))
    assert torch.equal(run_with([reader])["edit[0]"].latents, run_with([])["edit[0]"].latents)


# -- step actions ------------------------------------------------------------------------------------------------------


def test_step_actions_see_all_lanes_and_set_their_own(run_with: Runner) -> None:
    seen: list[tuple[int, bool]] = []

    def start(call: StepCall) -> Tensor:
        seen.append((call.step.index, torch.equal(call.latents["self"], call.latents["source"])))
        return call.latents["source"]

    result = run_with([Controller("copy", on_step_start=start)])
    assert seen == [(0, True), (1, False), (2, False), (3, False)]
    plain = run_with([])
    assert torch.equal(result.source.history, plain.source.history)
    assert not torch.equal(result["edit[0]"].latents, plain["edit[0]"].latents)
    end = run_with([Controller("copy", on_step_end=lambda call: call.latents["source"])])
    assert torch.equal(end["edit[0]"].latents, end.source.latents)


def test_changing_latents_in_place_reaches_no_lane(run_with: Runner) -> None:
    def spoil(call: StepCall) -> None:
        call.latents["source"].zero_()
        call.latents["self"].zero_()

    plain = run_with([])
    with pytest.raises(NoOpError) as caught:
        run_with([Controller("spoil", on_step_start=spoil)])
    for lane in plain.lanes:
        assert torch.equal(caught.value.result[lane.name].history, lane.history)


def test_gradients_flow_through_the_denoiser(run_with: Runner) -> None:
    """A step that pulls the edit's prediction towards the source's, as optimising methods do."""
    losses: list[tuple[float, float]] = []

    def pull(call: StepCall) -> Tensor:
        x = call.latents["self"].requires_grad_()
        goal = call.predict(call.latents["source"], "source", "cond").detach()
        loss = (call.predict(x, "self", "cond") - goal).square().mean()
        (slope,) = torch.autograd.grad(loss, x)
        moved = x - 0.5 * slope / slope.norm()
        after = (call.predict(moved.detach(), call.lane, "cond") - goal).square().mean()
        losses.append((loss.item(), after.item()))
        return moved

    result = run_with([Controller("pull", when=When(steps=frozenset({2})), on_step_start=pull)])
    ((before, after),) = losses
    assert after < before
    assert result.rows["edit"] == 4 * 4 + 3
    assert all(not lane.latents.requires_grad for lane in result.lanes)


def test_predict_is_the_denoisers_own_answer(run_with: Runner, shared_tiny_model: Model) -> None:
    answers: list[tuple[Tensor, Tensor, int]] = []

    def ask(call: StepCall) -> None:
        x = call.latents["self"]
        answers.append((x, call.predict(x, "self", "uncond"), call.step.timestep))

    run_with([Controller("ask", on_step_start=ask), attend()], negative_prompt="snow")
    for x, answer, timestep in answers:
        expected = shared_tiny_model.predict(x[None], timestep, [shared_tiny_model.encode_text("snow")])[0]
        assert torch.equal(answer, expected)


def test_guidance_can_be_replaced(run_with: Runner) -> None:
    plain = run_with([], guidance=3.0)["edit[0]"].latents

    def own(call: Any) -> Tensor:
        assert call.guidance == 7.5
        return call.uncond["self"] + 3.0 * (call.cond["self"] - call.uncond["self"])

    assert torch.equal(run_with([Controller("own", on_guidance=own)])["edit[0]"].latents, plain)


@pytest.mark.parametrize("action", ["on_prediction", "on_guidance"])
def test_a_prediction_is_decided_also_where_there_is_one_half(action: str, run_with: Runner) -> None:
    """Guidance 1 has no unconditional half; what acts on predictions must not be skipped there."""
    calls = []

    def own(call: Any) -> Tensor:
        calls.append((call.step.index, call.guidance))
        assert torch.equal(call.plain, call.cond["self"])
        return 0.9 * call.plain + 0.1 * call.cond["source"]

    result = run_with([Controller("own", **{action: own})], guidance=1.0)
    assert calls == [(i, 1.0) for i in range(4)]
    (row,) = result.coverage
    assert (row.acted, row.expected, row.changed) == (4, 4, True)
    plain = run_with([], guidance=1.0)["edit[0]"].latents
    assert not torch.allclose(result["edit[0]"].latents, plain, atol=1e-3)


def test_a_half_that_is_not_evaluated_is_named(run_with: Runner) -> None:
    with pytest.raises(PluginError, match=r"asks for the uncond half of edit\[0\], which is not evaluated"):
        run_with([Controller("own", on_prediction=lambda call: call.uncond["self"])], guidance=1.0)


def test_a_schedule_may_evaluate_the_denoiser_several_times_a_step(shared_tiny_model: Model) -> None:
    """Two evaluations, the second where the first leads: the loop against the same by hand, and what actions see."""
    model, stages = shared_tiny_model, []

    class Corrected(DDIMGrid):
        stages = 2

        def stage(self, i: int, s: int, x: Tensor, outs: Any) -> tuple[Tensor, float]:
            return (x, self.timesteps[i]) if s == 0 else (self.denoise(i, outs[0], x), max(self._timestep(i + 1), 0))

        def advance(self, i: int, outs: Any, x: Tensor) -> Tensor:
            return self.denoise(i, (outs[0] + outs[1]) / 2, x)

    path = Corrected(model.schedule("ddim", 3).abar, 3)
    texts = [model.encode_text("", unconditional=True), model.encode_text("a cat")]
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def seen(call: Any) -> Tensor:
        stages.append((call.step.index, call.step.stage))
        return call.plain

    lane = Lane("edit", "a cat", texts[1], texts[0], Guidance(4.0), edit=0, latents=x)
    watch = Bound(Controller("watch", on_prediction=seen, lanes=()), "edit", "edit", (), (0, 1, 2), 3)
    with torch.no_grad():
        engine = Engine(model, path, {"edit": lane}, [watch])
        engine.run(lambda step: None)
        for i in range(3):
            outs: list[Tensor] = []
            for s in range(2):
                at, told = path.stage(i, s, x, outs)
                halves = model.predict(at.expand(2, -1, -1, -1), told, texts).chunk(2)
                outs.append(halves[0] + 4.0 * (halves[1] - halves[0]))
            x = path.advance(i, outs, x)
    assert torch.equal(lane.latents, x)
    assert stages == [(i, s) for i in range(3) for s in range(2)]
    assert engine.rows == 12


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["on_step_start", "on_step_end"])
def test_latents_of_a_wrong_shape_are_named(action: str, run_with: Runner) -> None:
    with pytest.raises(PluginError) as caught:
        run_with([Controller("crop", **{action: lambda call: call.latents["self"][:, :4]})])
    for part in ("edit[0]: crop", "step 0", "(4, 4, 8)", "(4, 8, 8)"):
        assert part in str(caught.value)


def test_a_wrong_shape_inside_the_denoiser_is_named(run_with: Runner) -> None:
    with pytest.raises(PluginError) as caught:
        run_with([attend(Attend(value_map=torch.ones(7)), where=Where(kind="cross", layers=(6,)))])
    for part in ("edit[0]: maps", "mid_block.attentions.0.transformer_blocks.0.attn2", "step 0", "(7,)", "(77,)"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers_end_the_run_at_once(value: float, run_with: Runner) -> None:
    broken = Controller("broken", when=When(steps=frozenset({1})), on_step_end=lambda c: c.latents["self"] * value)
    with pytest.raises(NumericsError, match=r"edit\[0\] became NaN or infinite in step 1"):
        run_with([broken])


def test_lanes_that_do_not_exist_are_named_before_anything_runs(run_with: Runner) -> None:
    with pytest.raises(SelectionError, match=r"'edit\[7\]'.*known are.*source"):
        run_with([attend(Attend(q="edit[7]"))])
    reader = Controller("words", where=Where(kind="cross"), observe=Observation(torch.eye(77), print, "nobody"))
    with pytest.raises(SelectionError, match="nobody"):
        run_with([reader])
    with pytest.raises(SelectionError, match="nobody"):
        run_with([Controller("ask", on_step_start=lambda call: call.latents["nobody"])])


def test_steps_that_do_not_exist_are_named_before_anything_runs(run_with: Runner) -> None:
    with pytest.raises(SelectionError, match="steps 9, but the schedule has steps 0-3"):
        run_with([attend(when=When(steps=frozenset({9})))])
