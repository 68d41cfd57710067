"""The noise schedule and its moves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from attnctl.errors import InputError, ModelError
from attnctl.families.betas import beta_schedule
from attnctl.sampling import SCHEDULERS, DDIMGrid, FlowGrid, Schedule, SchedulerAdapter, split

# diffusers hands torch tensors to numpy in a way that newer numpy warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}


def make_schedule(name: str, config: dict[str, Any], steps: int, seed: int) -> Schedule:
    import diffusers

    return beta_schedule(name, diffusers.DDIMScheduler.from_config(config), steps, seed)


def grid(steps: int, **config: Any) -> DDIMGrid:
    made = make_schedule("ddim", {**CONFIG, **config}, steps, 0)
    assert isinstance(made, DDIMGrid)
    return made


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 4, 3, 5, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))  # type: ignore[return-value]


def test_the_grid_of_the_papers() -> None:
    assert grid(50).timesteps == tuple(range(981, 0, -20))
    assert grid(10).timesteps == (901, 801, 701, 601, 501, 401, 301, 201, 101, 1)
    assert grid(1).timesteps == (1,)
    assert grid(999).timesteps == tuple(range(999, 0, -1))
    assert len(grid(300).timesteps) == 300


@pytest.mark.parametrize(
    "trap", [{"steps_offset": 0}, {"set_alpha_to_one": True}, {"clip_sample": True}, {"timestep_spacing": "trailing"}]
)
def test_the_grid_is_the_papers_whatever_the_checkpoint_says(trap: dict[str, Any]) -> None:
    """Reference codes end up there, because their pipelines rewrite what the scheduler's file says."""
    x, out = tensors(0)
    ours, theirs = grid(50), grid(50, **trap)
    assert theirs.timesteps == ours.timesteps
    for i in (0, 20, 49):
        assert torch.equal(theirs.denoise(i, out, x), ours.denoise(i, out, x))
        assert torch.equal(theirs.invert(i, out, x), ours.invert(i, out, x))


def test_levels_are_the_papers() -> None:
    abar = grid(50).abar
    assert abar[0].item() == pytest.approx(0.99915, abs=1e-6)
    assert abar[981].item() == pytest.approx(0.0057755, abs=1e-7)
    assert torch.equal(grid(50).level(-19), abar[0])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("steps", [1, 4, 50, 300])
def test_a_step_is_diffusers_to_the_bit(prediction: str, dtype: torch.dtype, steps: int) -> None:
    import diffusers

    scheduler = diffusers.DDIMScheduler(**{**CONFIG, "prediction_type": prediction})
    scheduler.set_timesteps(steps)
    ours = grid(steps, prediction_type=prediction)
    assert tuple(scheduler.timesteps.tolist()) == ours.timesteps
    for i in {0, steps // 2, steps - 1}:
        x, out = tensors(i, dtype)
        assert torch.equal(ours.denoise(i, out, x), scheduler.step(out, scheduler.timesteps[i], x).prev_sample)


@hypothesis_settings(max_examples=40)
@given(
    steps=st.integers(1, 400),
    place=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 1000),
    guide=st.sampled_from(["epsilon", "v_prediction"]),
)
def test_inverting_undoes_a_step_that_had_the_same_noise(steps: int, place: float, seed: int, guide: str) -> None:
    """S after I is the identity for a shared eps, up to rounding in float64."""
    ours = grid(steps, prediction_type=guide)
    ours.abar = ours.abar.double()
    i = int(steps * place)
    x, eps = tensors(seed, torch.float64)
    t = ours.timesteps[i]
    level = ours.level(t)

    def output(x: torch.Tensor) -> torch.Tensor:
        """What the denoiser must say at the step's timestep for its noise to be `eps`."""
        if guide == "epsilon":
            return eps
        return (eps - (1 - level) ** 0.5 * x) / level**0.5

    up = ours.invert(i, output(x), x)
    torch.testing.assert_close(ours.denoise(i, output(up), up), x, atol=1e-9, rtol=1e-9)


@hypothesis_settings(max_examples=25)
@given(steps=st.integers(2, 200), place=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 1000))
def test_one_denoiser_is_inverted_alike_whichever_way_it_speaks(steps: int, place: float, seed: int) -> None:
    """A network that predicts v at a timestep also predicts noise there: eps = sqrt(abar_t) v + sqrt(1 - abar_t) x."""
    noise, v = grid(steps), grid(steps, prediction_type="v_prediction")
    for made in (noise, v):
        made.abar = made.abar.double()
    i = int(steps * place)
    x, out = tensors(seed, torch.float64)
    a = v.level(v.timesteps[i])
    as_noise = a**0.5 * out + (1 - a) ** 0.5 * x
    torch.testing.assert_close(v.invert(i, out, x), noise.invert(i, as_noise, x), atol=1e-9, rtol=1e-9)


def test_both_prediction_types_say_the_same_thing() -> None:
    x, eps = tensors(1, torch.float64)
    one, other = grid(50), grid(50, prediction_type="v_prediction")
    for made in (one, other):
        made.abar = made.abar.double()
    for i in (0, 25, 49):
        a = one.level(one.timesteps[i])
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        v = a**0.5 * eps - (1 - a) ** 0.5 * x0
        torch.testing.assert_close(other.denoise(i, v, x), one.denoise(i, eps, x))


def test_noise_is_added_at_a_steps_own_level() -> None:
    x0, noise = tensors(2, torch.float64)
    ours = grid(50)
    x = ours.noise(10, x0, noise)
    a = ours.level(ours.timesteps[10]).double()
    torch.testing.assert_close(x, a.sqrt() * x0 + (1 - a).sqrt() * noise, atol=1e-6, rtol=1e-6)


def test_the_reference_schedule(golden: Any) -> None:
    inputs, case = golden.case("unit_scheduler")
    ours = beta_schedule("ddim", golden.session.model.pipe.scheduler, 10, 0)
    assert torch.equal(ours.abar, case["out.alphas_cumprod"])
    assert ours.timesteps == tuple(inputs["timesteps_10"])
    assert grid(50).timesteps == tuple(inputs["timesteps_50"])
    assert ours.level(-99).item() == pytest.approx(inputs["final_alpha_cumprod"], abs=0)


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"ddim"}))
def test_other_schedulers_step_as_diffusers_does(name: str) -> None:
    """Scaled inputs, start noise and history; a run of all steps, given fixed outputs."""
    import diffusers

    ours = make_schedule(name, CONFIG, 6, 3)
    assert isinstance(ours, SchedulerAdapter)
    theirs = getattr(diffusers, SCHEDULERS[name]).from_config(CONFIG)
    theirs.set_timesteps(6)
    assert ours.timesteps == tuple(theirs.timesteps.tolist())
    x = tensors(0)[0] * ours.initial_scale
    y = tensors(0)[0] * theirs.init_noise_sigma
    extra = {"generator": [torch.Generator().manual_seed(3) for _ in range(2)]} if name == "euler-a" else {}
    for i, t in enumerate(theirs.timesteps):
        assert torch.equal(ours.scale(i, x), theirs.scale_model_input(y, t))
        out = tensors(10 + i)[1]
        x, y = ours.denoise(i, out, x), theirs.step(out, t, y, return_dict=False, **extra)[0]
        assert torch.equal(x, y)


def test_a_samplers_scheduler_is_its_own() -> None:
    """Two runs one after the other, or side by side, do not share history."""
    import diffusers

    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(CONFIG)
    x, out = tensors(0)
    runs = []
    for _ in range(2):
        ours = SchedulerAdapter(scheduler, 4, 0)
        y = x
        for i in range(4):
            y = ours.denoise(i, out, ours.scale(i, y))
        runs.append(y)
    assert torch.equal(runs[0], runs[1])
    assert scheduler.step_index is None


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize("steps", [0, -3, 1000])
def test_numbers_of_steps_out_of_range_are_refused(name: str, steps: int) -> None:
    with pytest.raises(InputError, match="steps must lie between 1 and 999"):
        make_schedule(name, CONFIG, steps, 0)


def test_unknown_names_and_prediction_types_are_refused() -> None:
    with pytest.raises(InputError, match="unknown scheduler 'dpm': known are dpm\\+\\+"):
        make_schedule("dpm", CONFIG, 10, 0)
    for name in ("ddim", "euler"):
        with pytest.raises(ModelError, match="unknown prediction type 'sample'"):
            make_schedule(name, {**CONFIG, "prediction_type": "sample"}, 10, 0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow_prediction"])
def test_one_split_knows_every_kind_of_prediction(prediction: Any) -> None:
    """What each kind of output stands for, from a picture and a noise that are known."""
    x0, eps = tensors(3, torch.float64)
    noise = torch.tensor(0.6, dtype=torch.float64)
    signal = 1 - noise if prediction == "flow_prediction" else (1 - noise**2) ** 0.5
    x = signal * x0 + noise * eps
    out = {"epsilon": eps, "v_prediction": signal * eps - noise * x0, "flow_prediction": eps - x0}[prediction]
    for found, expected in zip(split(prediction, out, x, signal, noise), (x0, eps), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def flow(steps: int, **options: Any) -> tuple[FlowGrid, Any]:
    import diffusers

    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return FlowGrid.of(theirs, steps, **options), theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_flow_step_is_diffusers_to_the_bit(dtype: torch.dtype) -> None:
    ours, theirs = flow(6)
    theirs.set_timesteps(6)
    assert ours.timesteps == tuple(theirs.timesteps.tolist())
    assert ours.timesteps[-1] != int(ours.timesteps[-1]), "a timestep that is not whole"
    x = y = tensors(0, dtype)[0]
    for i, t in enumerate(theirs.timesteps):
        out = tensors(10 + i, dtype)[1]
        x, y = ours.denoise(i, out, x), theirs.step(out, t, y, return_dict=False)[0]
        assert torch.equal(x, y)


def test_a_flow_can_be_climbed() -> None:
    """The way up undoes the way down where the prediction is the same, and noise lies on the straight line."""
    ours, _ = flow(5)
    x0, eps = tensors(1)
    for i in range(5):
        x = ours.noise(i, x0, eps)
        torch.testing.assert_close(ours.noise(i, x0, eps), (1 - ours.sigmas[i]) * x0 + ours.sigmas[i] * eps)
        torch.testing.assert_close(ours.invert(i, eps - x0, ours.denoise(i, eps - x0, x)), x, atol=1e-5, rtol=1e-5)
        found = ours.split(i, eps - x0, x)
        torch.testing.assert_close(found[0], x0, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[1], eps, atol=1e-5, rtol=1e-5)
    assert ours.rates(5) == (1.0, 0.0)


def test_a_finer_flow_passes_the_same_levels() -> None:
    ours, _ = flow(4)
    fine = ours.finer(12)
    assert set(ours.timesteps) <= set(fine.timesteps)
    assert len(fine.timesteps) == 12
    with pytest.raises(InputError, match="10 steps do not pass the levels of a sampling in 4"):
        ours.finer(10)


def test_sigmas_that_do_not_fall_to_zero_are_refused() -> None:
    for sigmas in ([1.0, 0.5, 0.2], [1.0, 1.0, 0.0], [3.0, 1.0, 0.0]):
        with pytest.raises(ModelError, match="does not fall from at most 1 to 0"):
            FlowGrid(torch.tensor(sigmas))


def test_paths_are_told_apart_by_what_their_numbers_depend_on() -> None:
    ours, _ = flow(4)
    prints = [grid(4), grid(5), grid(4, prediction_type="v_prediction"), grid(4, beta_end=0.013), ours]
    assert len({str(path.fingerprint()) for path in prints}) == len(prints)
    assert grid(4).fingerprint() == grid(4).fingerprint()


class Midpoint(FlowGrid):
    """Two evaluations a step: the second one half a step on, with which the whole step is taken."""

    stages = 2

    def stage(self, i: int, s: int, x: torch.Tensor, outs: Any) -> tuple[torch.Tensor, float]:
        a, b = self.sigmas[i], self.sigmas[i + 1]
        if s == 0:
            return x, self.timesteps[i]
        return x + (b - a) / 2 * outs[0], float(500 * (a + b))

    def advance(self, i: int, outs: Any, x: torch.Tensor) -> torch.Tensor:
        return self.denoise(i, outs[1], x)


@pytest.mark.parametrize(("kind", "order"), [(FlowGrid, 1), (Midpoint, 2)])
def test_stages_raise_the_order_of_accuracy(kind: type[FlowGrid], order: int) -> None:
    """dx/ds = -x, by the loop's own protocol: halving the step divides the error by two to the order."""

    def error(steps: int) -> float:
        path = kind(torch.linspace(1, 0, steps + 1))
        x = torch.ones(1, 1, 1, 1)
        for i in range(steps):
            outs: list[torch.Tensor] = []
            for s in range(path.stages):
                seen, told = path.stage(i, s, x, outs)
                assert 0 < told <= 1000
                outs.append(-seen)
            x = path.advance(i, outs, x)
        return abs(float(x) - math.e)

    assert error(20) / error(40) == pytest.approx(2**order, rel=0.15)


FOREIGN = {
    "EDMDPMSolverMultistepScheduler": {"sigma_data": 0.5},
    "EDMEulerScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {},
    "LCMScheduler": {},
    "TCDScheduler": {},
    "EulerDiscreteScheduler": {"timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_max": 120.0},
    "UniPCMultistepScheduler": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("wanted", ["ddim", "euler"])
def test_a_schedule_without_betas_is_refused_by_name(name: str, wanted: str) -> None:
    """Read as betas it would silently be the default ones."""
    import diffusers

    with pytest.raises(ModelError, match=f"the checkpoint's scheduler is a {name}"):
        beta_schedule(wanted, getattr(diffusers, name)(**FOREIGN[name]), 10, 0)
