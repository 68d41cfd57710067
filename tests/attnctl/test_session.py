"""Whole runs on tiny real pipelines, against diffusers' own pipeline and against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl.attend import Attend
from attnctl.controller import Controller
from attnctl.engine.lanes import Lane
from attnctl.engine.loop import Engine
from attnctl.errors import AttnctlError, InputError, ModelError, PluginError, SelectionError
from attnctl.families.betas import beta_schedule
from attnctl.guidance import Guidance
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, Source
from attnctl.model import Model, check_supported
from attnctl.request import Edit, EditRequest
from attnctl.result import NoOpError
from attnctl.session import EditSession, Progress
from attnctl.sites import Where
from attnctl.steps import When
from attnctl.testing import tiny_model, tiny_sd, tiny_sdxl
from attnctl.testing.conformance import distance

# diffusers hands torch tensors to numpy in a way that newer numpy warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SOURCE, TARGET, OTHER = "a red cat on the grass", "a blue dog on the grass", "a red cat on the snow"


def maps(**fields: Any) -> Controller:
    """The published edit that keeps the source's self-attention maps."""
    where = Where(kind="self", min_downscale=2)
    return Controller(**{"name": "maps", "where": where, "attend": Attend(q="source", k="source"), **fields})


def noise(size: tuple[int, int] = (8, 8), seed: int = 0) -> Tensor:
    return torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(seed))


def diffusers_scheduler(name: str, pipe: Any) -> Any:
    """A scheduler made from the checkpoint's configuration as diffusers' documentation does it."""
    import diffusers

    kind = {
        "ddim": diffusers.DDIMScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
        "dpm++": diffusers.DPMSolverMultistepScheduler,
        "pndm": diffusers.PNDMScheduler,
        "heun": diffusers.HeunDiscreteScheduler,
    }[name]
    return kind.from_config(pipe.scheduler.config)


def by_diffusers(
    pipe: Any, prompts: Sequence[str], latents: Tensor, scheduler: Any, **fields: Any
) -> tuple[Tensor, Any]:
    """Latents and pictures of ``pipe(...)`` itself."""
    kept = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        given = {"num_inference_steps": 4, "guidance_scale": 7.5, **fields}
        batch = latents.repeat(len(prompts), 1, 1, 1)
        height, width = (side * 8 for side in latents.shape[-2:])
        found = [
            pipe(list(prompts), latents=batch.clone(), height=height, width=width, output_type=kind, **given).images
            for kind in ("latent", "pt")
        ]
    finally:
        pipe.scheduler = kept
    return found[0], found[1]


# -- bit for bit diffusers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "scheduler", "guidance", "size", "dtype"),
    [
        ("epsilon", "ddim", 7.5, (8, 8), torch.float32),
        ("v_prediction", "ddim", 7.5, (8, 8), torch.float32),
        ("epsilon", "ddim", 1.0, (8, 8), torch.float32),
        ("epsilon", "ddim", 3.3, (8, 12), torch.float32),
        ("epsilon", "ddim", 7.5, (8, 8), torch.bfloat16),
        ("epsilon", "euler", 7.5, (8, 8), torch.float32),
        ("v_prediction", "euler", 7.5, (8, 8), torch.float32),
        ("epsilon", "dpm++", 7.5, (8, 8), torch.float32),
        ("epsilon", "pndm", 7.5, (8, 8), torch.float32),
        ("epsilon", "heun", 7.5, (8, 8), torch.float32),
    ],
)
def test_a_session_without_controllers_is_diffusers_to_the_bit(
    prediction: str, scheduler: str, guidance: float, size: tuple[int, int], dtype: torch.dtype
) -> None:
    """Two lanes: latents and pictures."""
    model = tiny_model(prediction_type=prediction, dtype=dtype)
    x_T = noise(size)
    request = EditRequest(
        (Edit(TARGET, "none"),), source_prompt=SOURCE, x_T=x_T, steps=4, guidance=guidance, scheduler=scheduler
    )
    result = EditSession(model).run(request)
    latents, pictures = by_diffusers(
        model.pipe,
        (SOURCE, TARGET),
        x_T.to(dtype),
        diffusers_scheduler(scheduler, model.pipe),
        guidance_scale=guidance,
    )
    for i, lane in enumerate(result.lanes):
        assert torch.equal(lane.latents[0], latents[i])
        assert distance(lane.pixels, pictures[i].float()) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_one_lane_is_diffusers_to_the_bit(shared_tiny_model: Model) -> None:
    model = shared_tiny_model
    grid = beta_schedule("ddim", model.pipe.scheduler, 4, 0)
    empty = model.encode_text("", unconditional=True)
    lane = Lane("source", SOURCE, model.encode_text(SOURCE), empty, Guidance(7.5), latents=noise())
    with torch.no_grad():
        Engine(model, grid, {"source": lane}).run(lambda step: None)
    latents, pictures = by_diffusers(model.pipe, (SOURCE,), noise(), model.pipe.scheduler)
    assert torch.equal(lane.latents, latents)
    assert torch.equal(model.decode_latents(lane.latents), pictures[0])


def test_a_negative_prompt_is_diffusers_to_the_bit(tiny_session: EditSession) -> None:
    request = EditRequest(
        (Edit(TARGET, "none"),), source_prompt=SOURCE, x_T=noise(), steps=4, negative_prompt="a house"
    )
    result = tiny_session.run(request)
    pipe = tiny_session.model.pipe
    latents, _ = by_diffusers(pipe, (SOURCE, TARGET), noise(), pipe.scheduler, negative_prompt=["a house"] * 2)
    assert all(torch.equal(lane.latents[0], latents[i]) for i, lane in enumerate(result.lanes))


@pytest.mark.parametrize("negative", ["", "a house"])
def test_sdxl_is_diffusers_to_the_bit_and_can_be_edited(negative: str, session_with: Callable[..., Any]) -> None:
    """Two text encoders, pooled texts, sizes; an empty unconditional text means zeros, as its checkpoints say."""
    pipe = tiny_sdxl()
    model = Model(pipe, "tiny-sdxl", family=check_supported(pipe, "tiny-sdxl"))
    session = session_with([maps()], model=model)
    request = EditRequest(
        (Edit(TARGET, "none"), Edit(TARGET, "m0")),
        source_prompt=SOURCE,
        x_T=noise(),
        steps=3,
        negative_prompt=negative,
        max_rows=4,
    )
    result = session.run(request)
    latents, _ = by_diffusers(
        pipe,
        (SOURCE, TARGET),
        noise(),
        pipe.scheduler,
        num_inference_steps=3,
        **({"negative_prompt": [negative] * 2} if negative else {}),
    )
    for i, lane in enumerate(result.lanes[:2]):
        assert distance(lane.latents[0], latents[i]) < 1e-3  # other batch sizes round otherwise
    assert distance(result["edit[1]"].latents, result["edit[0]"].latents) > 1e-2
    assert [r.acted for r in result.coverage] == [r.expected for r in result.coverage]
    texts = [model.encode_text(p) for p in (SOURCE, TARGET)]
    other = model.encode_text(negative, unconditional=True)
    same_texts = pipe(  # diffusers encodes both prompts in one batch, which rounds otherwise
        prompt_embeds=torch.cat([t.embeds for t in texts]),
        pooled_prompt_embeds=torch.cat([t.parts["pooled"] for t in texts]),
        negative_prompt_embeds=other.embeds.repeat(2, 1, 1),
        negative_pooled_prompt_embeds=other.parts["pooled"].repeat(2, 1),
        latents=noise().repeat(2, 1, 1, 1),
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=7.5,
        output_type="latent",
    ).images
    plain = session.run(replace(request, edits=request.edits[:1]))
    assert all(torch.equal(lane.latents[0], same_texts[i]) for i, lane in enumerate(plain.lanes))


@pytest.mark.parametrize("scheduler", ["euler", "euler-a", "heun", "dpm++", "unipc", "pndm", "lms"])
def test_every_scheduler_edits_generated_pictures(scheduler: str, run_with: Callable[..., Any]) -> None:
    """In one pass with a lane that is left alone."""
    result = run_with([maps()], [], scheduler=scheduler, steps=4)
    (row,) = result.coverage
    assert row.acted == row.expected == 11 * row.steps
    assert row.steps == len(beta_schedule(scheduler, tiny_sd().scheduler, 4, 0).timesteps)
    assert distance(result["edit[0]"].latents, result["edit[1]"].latents) > 1e-3


def test_too_few_steps_for_a_scheduler_are_refused(run_with: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="pndm cannot run 1 steps"):
        run_with([], scheduler="pndm", steps=1)


def test_ancestral_noise_is_a_lanes_own_and_the_seeds(run_with: Callable[..., Any]) -> None:
    one, again = (run_with([], scheduler="euler-a", seed=3) for _ in range(2))
    three = run_with([], [], scheduler="euler-a", seed=3)
    other = run_with([], scheduler="euler-a", seed=4, x_T=noise(seed=3))
    assert torch.equal(one["edit[0]"].latents, again["edit[0]"].latents)
    assert distance(three["edit[0]"].latents, one["edit[0]"].latents) < 1e-5
    assert not torch.equal(one["edit[0]"].latents, other["edit[0]"].latents)


# -- lanes -------------------------------------------------------------------------------------------------------------


def test_the_source_does_not_feel_its_edits(run_with: Callable[..., Any]) -> None:
    plain = run_with([]).source.history
    halves = ("uncond", "cond")
    for controller in (
        maps(),
        maps(passes=halves),
        maps(attend=Attend(k="source", v="source"), passes=halves),
        Controller("features", where=Where(kind="feature"), passes=halves, on_feature=lambda c, f: f["source"]),
        Controller("latents", on_step_end=lambda call: 0.5 * (call.latents["self"] + call.latents["source"])),
    ):
        assert torch.equal(run_with([controller]).source.history, plain), controller.name


def test_edits_in_one_pass_are_what_each_is_alone(run_with: Callable[..., Any], session_with: Any) -> None:
    """Other batch sizes round otherwise, by less than the published parity asks."""
    methods = [[maps()], [maps(attend=Attend(k="source", v="source"), when=When(0.25, 1))], [maps(passes=("uncond",))]]
    session = session_with(*methods)
    edits = tuple(Edit((TARGET, OTHER, TARGET)[i], f"m{i}", name=f"lane {i}") for i in range(3))
    request = EditRequest(edits, source_prompt=SOURCE, steps=4)
    together = session.run(request)
    for edit in edits:
        alone = session.run(replace(request, edits=(edit,)))
        assert distance(together[edit.name].latents, alone[edit.name].latents) < 1e-5


def test_sources_are_shared_where_plans_want_the_same(session_with: Callable[..., Any]) -> None:
    session = session_with([maps()], [maps(passes=("uncond",))])

    class Cautious(EditMethod):
        name = "cautious"

        def plan(self, request: Any, model: Any) -> EditPlan:
            return EditPlan(Source(request.source_prompt, guidance=1.0), (maps(),))

    session.registry.classes["method"]["cautious"] = Cautious
    edits = (Edit(TARGET, "m0"), Edit(OTHER, "m1"), Edit(TARGET, "cautious"))
    result = session.run(EditRequest(edits, source_prompt=SOURCE, steps=3))
    assert [lane.name for lane in result.lanes] == ["source", "source[1]", "edit[0]", "edit[1]", "edit[2]"]
    assert result.rows["edit"] == 3 * (2 + 1 + 3 * 2)
    assert not torch.equal(result["source"].latents, result["source[1]"].latents)
    with pytest.raises(SelectionError, match=r"unknown lane 'edit\[3\]'"):
        result["edit[3]"]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(run_with: Callable[..., Any]) -> None:
    one, again, other = (run_with([maps()], seed=seed) for seed in (5, 5, 6))
    for a, b, c in zip(one.lanes, again.lanes, other.lanes, strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.history, b.history)
        assert not torch.equal(a.pixels, c.pixels)


def test_history_holds_every_step_of_every_lane(run_with: Callable[..., Any]) -> None:
    result = run_with([maps()], x_T=noise(seed=9), steps=3)
    for lane in result.lanes:
        assert lane.history.shape == (4, 4, 8, 8)
        assert torch.equal(lane.history[:1], noise(seed=9))
        assert torch.equal(lane.history[-1:], lane.latents)
        assert lane.pixels.shape == (3, 64, 64)
        assert 0 <= lane.pixels.min() < lane.pixels.max() <= 1


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pixels_and_their_latents_are_the_same_source(tiny_session: EditSession) -> None:
    pixels = torch.rand((3, 64, 96), generator=torch.Generator().manual_seed(2)) * 2 - 1
    request = EditRequest((Edit(TARGET, "none"),), pixels=pixels, steps=3)
    by_pixels = tiny_session.run(request)
    x0 = tiny_session.model.encode_picture(pixels)
    by_latents = tiny_session.run(replace(request, pixels=None, x0=x0))
    assert x0.shape == (1, 4, 8, 12)
    for a, b in zip(by_pixels.lanes, by_latents.lanes, strict=True):
        assert torch.equal(a.latents, b.latents)
    assert by_latents.inversions[0].vae_psnr is None
    assert torch.equal(by_latents.source.latents, x0)


def test_stages_are_told_in_order_and_timed(tiny_session: EditSession) -> None:
    ticks: list[tuple[str, int, int]] = []

    def note(event: Any) -> None:
        if isinstance(event, Progress):
            ticks.append((event.stage, event.done, event.total))

    result = tiny_session.run(EditRequest((Edit(TARGET, "none"),), x0=noise(), steps=2), note)
    assert ticks == [
        *(("inversion", i, 2) for i in (1, 2)),
        *(("reconstruction", i, 2) for i in (1, 2)),
        *(("edit", i, 2) for i in (1, 2)),
        *(("decode", i, 2) for i in (1, 2)),
    ]
    assert {"inversion", "reconstruction", "edit", "decode"} <= set(result.seconds)
    assert all(s >= 0 for s in result.seconds.values())
    assert result.rows == {"inversion": 2, "reconstruction": 2, "edit": 4}
    assert result.peak_memory > 0


# -- adapters ----------------------------------------------------------------------------------------------------------


def lora(pipe: Any) -> None:
    from peft import LoraConfig

    torch.manual_seed(7)
    for part, targets in ((pipe.unet, ["to_q", "to_k", "to_v", "to_out.0"]), (pipe.text_encoder, ["q_proj", "v_proj"])):
        part.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=targets))
        part.requires_grad_(False)


def test_lora_acts_and_survives(session_with: Callable[..., Any], own_tiny_model: Model) -> None:
    """Loaded into denoiser and text encoder after a first run on the same session."""
    session = session_with([maps()], model=own_tiny_model)
    request = EditRequest((Edit(TARGET, "none"), Edit(TARGET, "m0")), source_prompt=SOURCE, x_T=noise(), steps=4)
    before = session.run(request)
    lora(own_tiny_model.pipe)
    keys = set(own_tiny_model.unet.state_dict())
    after = session.run(request)
    for lane in before.lanes:
        assert distance(after[lane.name].latents, lane.latents) > 1e-2
    assert [(r.acted, r.expected) for r in after.coverage] == [(44, 44)]
    pipe = own_tiny_model.pipe
    plain = session.run(replace(request, edits=request.edits[:1]))
    latents, _ = by_diffusers(pipe, (SOURCE, TARGET), noise(), pipe.scheduler)
    assert all(torch.equal(lane.latents[0], latents[i]) for i, lane in enumerate(plain.lanes))
    assert set(own_tiny_model.unet.state_dict()) == keys
    pipe.unet.disable_adapters()
    pipe.text_encoder.disable_adapters()
    gone = session.run(request)
    for lane in before.lanes:
        assert distance(gone[lane.name].latents, lane.latents) < 1e-6


def ip_adapter(pipe: Any) -> Tensor:
    """An IP-Adapter of random weights, loaded by diffusers' own loader; returns an image embedding."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    torch.manual_seed(11)
    unet = pipe.unet
    parts: dict[str, Tensor] = {}
    key = 1
    for name, processor in unet.attn_processors.items():
        if "attn2" in name:
            attn = unet.get_submodule(name.removesuffix(".processor"))
            made = IPAdapterAttnProcessor2_0(attn.inner_dim, attn.cross_attention_dim, num_tokens=(4,), scale=1.0)
            parts[f"{key}.to_k_ip.weight"] = torch.randn_like(made.to_k_ip[0].weight) * 0.5
            parts[f"{key}.to_v_ip.weight"] = torch.randn_like(made.to_v_ip[0].weight) * 0.5
            key += 2
        assert processor is not None
    width = unet.config.cross_attention_dim
    projection = {
        "proj.weight": torch.randn(4 * width, 16) * 0.3,
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": parts}])
    unet.requires_grad_(False)
    return torch.cat([torch.zeros(1, 1, 16), torch.randn(1, 1, 16)])


def test_ip_adapter_acts_beside_an_edit(session_with: Callable[..., Any], own_tiny_model: Model) -> None:
    pipe = own_tiny_model.pipe
    session = session_with(
        [maps(), maps(name="words", where=Where(kind="cross"), when=When(0, 0.5))], model=own_tiny_model
    )
    request = EditRequest((Edit(TARGET, "none"), Edit(TARGET, "m0")), source_prompt=SOURCE, x_T=noise(), steps=4)
    before = session.run(request)
    image = ip_adapter(pipe)
    processors = dict(pipe.unet.attn_processors)
    with pytest.raises(ModelError, match="IP-Adapter, but there are no image prompts"):
        session.run(request)
    own_tiny_model.image_prompts = [image]
    after = session.run(request)
    for lane in before.lanes:
        assert distance(after[lane.name].latents, lane.latents) > 1e-2
    assert all(r.acted == r.expected > 0 for r in after.coverage)
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in processors.items())
    plain = session.run(replace(request, edits=request.edits[:1]))
    both = torch.cat([image[:1].repeat(2, 1, 1), image[1:].repeat(2, 1, 1)])
    latents, _ = by_diffusers(pipe, (SOURCE, TARGET), noise(), pipe.scheduler, ip_adapter_image_embeds=[both])
    for i, lane in enumerate(plain.lanes):
        assert distance(lane.latents[0], latents[i]) < 1e-3  # other batch sizes: 1.1e-4 was seen


# -- what must not pass in silence -------------------------------------------------------------------------------------


def test_an_edit_that_acts_nowhere_fails_and_hands_over_what_there_is(run_with: Callable[..., Any]) -> None:
    with pytest.raises(NoOpError, match=r"\(m0\) is identical to its uncontrolled lane: maps changed") as caught:
        run_with([maps(attend=0.5 * Attend() + 0.5 * Attend())])
    assert caught.value.exit_code == 2
    result = caught.value.result
    assert [lane.name for lane in result.lanes] == ["source", "edit[0]"]
    assert result.coverage[0].changed is False
    assert run_with([maps(attend=Attend())], allow_no_op=True).coverage[0].changed is False


def test_equal_prompts_are_named_as_the_reason(session_with: Callable[..., Any]) -> None:
    session = session_with([maps()])
    with pytest.raises(NoOpError, match="its prompt equals the source's"):
        session.run(EditRequest((Edit(SOURCE, "m0"),), source_prompt=SOURCE, steps=2))


def test_settings_that_leave_nothing_to_do_are_allowed(run_with: Callable[..., Any]) -> None:
    result = run_with([maps(when=When(0, 0))])
    assert result.coverage[0].expected == result.coverage[0].acted == 0
    assert result.warnings == ()
    assert torch.equal(result["edit[0]"].latents, run_with([])["edit[0]"].latents)


def test_a_window_that_holds_no_whole_step_is_said(run_with: Callable[..., Any]) -> None:
    """int(4 * 0.2) is 0: somebody asked for 20 % and gets nothing."""
    (warning,) = run_with([maps(when=When(0, 0.2))]).warnings
    assert "edit[0]: maps does not act: its window [0, 0.2) of 4 steps holds no whole step" in warning


def test_editing_a_half_that_is_not_run_is_said(run_with: Callable[..., Any]) -> None:
    with pytest.raises(NoOpError, match="edits the unconditional half only, which guidance 1 leaves out"):
        run_with([maps(passes=("uncond",))], guidance=1.0)
    result = run_with([maps(passes=("uncond",)), maps(name="other")], guidance=1.0)
    assert any("maps does not act: it edits the unconditional half" in w for w in result.warnings)
    assert [r.acted for r in result.coverage] == [0, 44]


def test_a_method_that_plans_nothing_is_said(session_with: Callable[..., Any]) -> None:
    session = session_with([])

    class Lazy(session.registry.method("m0")):  # type: ignore[misc]
        name = "lazy"
        no_op = False

    session.registry.classes["method"]["lazy"] = Lazy
    result = session.run(EditRequest((Edit(TARGET, "lazy"),), source_prompt=SOURCE, steps=1))
    assert any("edit[0] (lazy) has nothing to control" in w for w in result.warnings)


def test_texts_that_are_cut_off_are_said(tiny_session: EditSession) -> None:
    long = "a cat and " * 30 + "a dog"
    result = tiny_session.run(EditRequest((Edit(long, "none"),), source_prompt=SOURCE, steps=1))
    (warning,) = result.warnings
    assert warning.startswith("the prompt is longer than 77 tokens; this part is cut off: ")
    assert warning.endswith("a dog'")
    assert long.count("cat") - warning.count("cat") == 25  # 75 tokens of three words


# -- faults ------------------------------------------------------------------------------------------------------------


def requests() -> dict[str, tuple[dict[str, Any], type[AttnctlError], str]]:
    return {
        "method": ({"edits": (Edit(TARGET, "nine"),)}, InputError, "unknown method 'nine': known are none"),
        "setting": ({"edits": (Edit(TARGET, "none", {"a": 1}),)}, InputError, "unknown setting of none 'a'"),
        "preset": ({"edits": (Edit(TARGET, "fpe", preset="papr"),)}, InputError, "known are paper"),
        "names": ({"edits": (Edit(TARGET, "none", name="source"),)}, SelectionError, "two lanes are called 'source'"),
        "self": ({"edits": (Edit(TARGET, "none", name="self"),)}, SelectionError, "cannot be called 'self'"),
        "same": ({"edits": (Edit(TARGET, "none", name="a"), Edit(OTHER, "none", name="a"))}, SelectionError, "'a'"),
        "scheduler": ({"scheduler": "ddimm"}, InputError, "unknown scheduler 'ddimm': known are ddim"),
        "steps": ({"steps": 1000}, InputError, "steps must lie between 1 and 999"),
        "size": ({"size": (60, 64)}, InputError, "multiples of 8, found 60x64"),
        "tiny": ({"size": (0, 64)}, InputError, r"size \(0, 64\) is not allowed"),
        "x_T": ({"x_T": torch.zeros(1, 3, 8, 8)}, InputError, r"x_T must have the shape \(1, 4, h, w\)"),
        "x_T rank": ({"x_T": torch.zeros(4, 8, 8)}, InputError, "x_T must have the shape"),
        "x_T size": ({"x_T": torch.zeros(1, 4, 8, 8), "size": (64, 96)}, InputError, "not that of the run"),
        "two x0": ({"x0": torch.zeros(2, 4, 8, 8)}, InputError, "x0 must have the shape"),
        "pixels": ({"pixels": torch.zeros(64, 64, 3)}, InputError, r"pixels must be floats of shape \(3, H, W\)"),
        "bytes": ({"pixels": torch.zeros(3, 64, 64, dtype=torch.uint8)}, InputError, "found torch.uint8"),
        "odd pixels": ({"pixels": torch.zeros(3, 60, 64)}, InputError, "multiples of 8"),
        "both": ({"pixels": torch.zeros(3, 64, 64), "x0": torch.zeros(1, 4, 8, 12)}, InputError, "not that of the run"),
        "noise": ({"x0": torch.zeros(1, 4, 8, 8), "x_T": torch.zeros(1, 4, 8, 8)}, InputError, "noise of its own"),
        "inversion": ({"x0": torch.zeros(1, 4, 8, 8), "inversion": "dim"}, InputError, "'dim': known are ddim"),
    }


@pytest.mark.parametrize("name", sorted(requests()))
def test_wrong_requests_are_refused_in_one_line(name: str, tiny_session: EditSession) -> None:
    fields, kind, message = requests()[name]
    with pytest.raises(kind, match=message) as caught:
        tiny_session.run(
            EditRequest(**{"edits": (Edit(TARGET, "none"),), "source_prompt": SOURCE, "steps": 2, **fields})
        )
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_methods_and_inversions_that_cannot_work_together_are_refused(session_with: Callable[..., Any]) -> None:
    session = session_with([])

    class Generates(EditMethod):
        name = "generates"

        def plan(self, request: Any, model: Any) -> EditPlan:
            return EditPlan(Source("a"), (maps(),))

    class Inverts(Generates):
        name = "inverts"

        def plan(self, request: Any, model: Any) -> EditPlan:
            return EditPlan(Source("a"), (maps(),), InversionSpec("ddim"))

    class Asks(Inverts):
        name = "asks"
        needs_source_prompt = True

    for kind in (Generates, Inverts, Asks):
        session.registry.classes["method"][kind.name] = kind
    with pytest.raises(PluginError, match="generates plans no inversion"):
        session.plan(EditRequest((Edit(TARGET, "generates"),), x0=noise()))
    with pytest.raises(PluginError, match="inverts plans an inversion, but there is no picture"):
        session.plan(EditRequest((Edit(TARGET, "inverts"),), source_prompt=SOURCE))
    with pytest.raises(InputError, match="asks needs a prompt that describes the picture"):
        session.plan(EditRequest((Edit(TARGET, "asks"),), x0=noise()))


def test_v_prediction_and_epsilon_models_are_edited_alike(run_with: Callable[..., Any]) -> None:
    for prediction in ("epsilon", "v_prediction"):
        model = tiny_model(prediction_type=prediction)
        edited, plain = run_with([maps()], model=model), run_with([], model=model)
        assert torch.equal(edited.source.latents, plain.source.latents)
        assert distance(edited["edit[0]"].latents, plain["edit[0]"].latents) > 1e-2


def test_other_prediction_types_are_refused() -> None:
    model = Model(tiny_sd(prediction_type="sample"), "odd")
    with pytest.raises(ModelError, match="unknown prediction type 'sample'"):
        EditSession(model).plan(EditRequest((Edit(TARGET, "none"),), source_prompt=SOURCE))
