"""pix2pix-zero: a gradient step on the latents keeps the edit's cross-attention maps close to the source's."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from attnctl.controller import Controller, Observation
from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, MethodConfig, ModelView, Preset, Source
from attnctl.request import PlanRequest
from attnctl.sites import Where

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.attend import AttentionCall
    from attnctl.branches import Half
    from attnctl.controller import GuidanceCall, StepCall

REAL, GENERATED = 0.1, 0.15
"""The authors' step sizes."""


class Pix2PixZero(EditMethod):
    r"""Cross-attention guidance of pix2pix-zero (Parmar et al., SIGGRAPH 2023, arXiv 2302.03027).

    The edit's text is the caption plus a direction, mean E(target sentences) - mean E(source sentences). Before every
    denoiser call, in each guidance half,

        x_half <- x - lambda grad_x  sum_l 1/(2 H) sum (A_edit - A_src)^2

    over all cross-attention maps A. The scheduler moves the unconditional half's x. The maps have to exist for this,
    in one layer of heads x pixels x tokens after the other, and the gradient runs through the whole denoiser.
    """

    name = "pix2pix-zero"
    summary = "Keep cross-attention maps close to the source's by a gradient step on the latents."
    paper = "arXiv:2302.03027"
    bibtex = """@inproceedings{parmar2023zero,
  title = {Zero-shot Image-to-Image Translation},
  author = {Parmar, Gaurav and Singh, Krishna Kumar and Zhang, Richard and Li, Yijun and Lu, Jingwan and Zhu, Jun-Yan},
  booktitle = {SIGGRAPH},
  year = {2023}
}"""
    needs_source_prompt = True
    presets: ClassVar = {
        "paper": Preset({"guidance": 5.0}, "The authors' guidance scale."),
        "pie-bench": Preset({"guidance": 7.5, "step_size": 0.1}, "As PnPInversion runs it on PIE-Bench."),
    }

    class Config(MethodConfig):
        """Settings of pix2pix-zero."""

        step_size: float | None = Field(
            None,
            ge=0,
            description="The gradient's factor lambda; None: 0.1 for given pictures, 0.15 for generated ones.",
        )
        caption: str | None = Field(None, description="What the source shows; None: the source prompt.")
        source_sentences: tuple[str, ...] = Field(
            (), description="Sentences with what the source has; () : the source prompt."
        )
        target_sentences: tuple[str, ...] = Field(
            (), description="Sentences with what the edit shall have; (): the target prompt."
        )
        layers: tuple[int, ...] | None = Field(
            None, min_length=1, description="Cross-attention layers whose maps are compared; None: all."
        )
        guidance: float | None = Field(
            None, ge=1, description="Guidance scale of the source and the edit; None: the run's."
        )
        negative: Literal["caption", "run"] = Field(
            "caption", description="Unconditional text for a given picture: the caption, or the run's negative prompt."
        )

    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        """Plan one edit lane."""
        config = self.config
        caption = config.caption or request.source_prompt
        if not caption:
            raise InputError("pix2pix-zero needs to know what the source shows", hint="give --source-prompt")
        negative = caption if request.real and config.negative == "caption" else None
        size = config.step_size
        if size is None:
            size = REAL if request.real else GENERATED
        guide = _Guide(Where(kind="cross", layers=config.layers), size, one_source_row=negative is not None)
        controllers = [Controller("cross-attention guidance", on_step_start=guide.start, lanes=())]
        if (config.guidance or request.guidance) != 1:  # else there is one half only
            controllers.append(Controller("guidance of both halves' latents", on_guidance=guide.guide, lanes=()))
        return EditPlan(
            Source(caption, guidance=config.guidance, negative_prompt=negative),
            tuple(controllers),
            InversionSpec(request.inversion or "ddim-regularised", caption) if request.real else None,
            negative_prompt=negative,
            guidance=config.guidance,
            text=self._text(caption, request),
        )

    def _text(self, caption: str, request: PlanRequest) -> tuple[tuple[str, float], ...]:
        """Return the caption plus the edit direction as weighted prompts."""
        config = self.config
        weights: dict[str, float] = {caption: 1.0}
        for sign, sentences in (
            (1.0, config.target_sentences or (request.prompt,)),
            (-1.0, config.source_sentences or (request.source_prompt or caption,)),
        ):
            for sentence in sentences:
                weights[sentence] = weights.get(sentence, 0.0) + sign / len(sentences)
        return tuple((prompt, weight) for prompt, weight in weights.items() if weight)


class _Guide:
    """Moves the latents of one lane before each step; remembers the conditional half's prediction until guidance."""

    def __init__(self, where: Where, size: float, *, one_source_row: bool) -> None:
        self.where, self.size, self.one_source_row = where, size, one_source_row
        self._cond: Tensor | None = None

    def start(self, call: StepCall) -> Tensor:
        """Return the unconditional half's moved latents (C, h, w), which the scheduler will move on."""
        import torch

        halves: tuple[Half, ...] = ("cond",) if call.guidance == 1 else ("uncond", "cond")
        moved: dict[Half, Tensor] = {}
        reference: list[Tensor] = []
        for half in halves:
            if not (reference and self.one_source_row):
                with torch.no_grad():
                    reference = self._maps(call, call.latents["source"], "source", half)
            x = call.latents["self"].requires_grad_()
            loss = torch.zeros((), device=x.device)
            for mine, other in zip(self._maps(call, x, "self", half), reference, strict=True):
                loss = loss + ((mine - other) ** 2).sum() / (2 * mine.shape[0])
            (gradient,) = torch.autograd.grad(loss, x)
            moved[half] = (x - self.size * gradient).detach()
        if len(halves) == 2:
            with torch.no_grad():
                self._cond = call.predict(moved["cond"], "self", "cond")
        return moved[halves[0]]

    def guide(self, call: GuidanceCall) -> Tensor:
        """Return e_u(x_u) + g (e_c(x_c) - e_u(x_u)): each half saw its own latents."""
        uncond = call.uncond["self"]
        assert self._cond is not None  # start() ran before
        return uncond + call.guidance * (self._cond - uncond)

    def _maps(self, call: StepCall, x: Tensor, lane: str, half: Half) -> list[Tensor]:
        """Run the denoiser and return its cross-attention maps, (H, N, M) float32 each, in execution order."""
        import torch

        found: list[Tensor] = []

        def identity(at: AttentionCall) -> Tensor:
            return torch.eye(at.keys)  # A I = A

        reader = Controller(
            "maps", self.where, observe=Observation(identity, lambda at, maps: found.append(maps)), passes=(half,)
        )
        call.predict(x, lane, half, observers=(reader,))
        return found


@hookimpl
def attnctl_methods() -> list[type[EditMethod]]:
    """Register pix2pix-zero."""
    return [Pix2PixZero]
