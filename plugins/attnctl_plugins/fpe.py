"""Free-Prompt-Editing: keep the source's self-attention maps, let the target prompt change the rest."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from attnctl.attend import Attend
from attnctl.controller import Controller
from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, MethodConfig, ModelView, Preset, Source
from attnctl.request import PlanRequest
from attnctl.sites import Where
from attnctl.steps import When


class FPE(EditMethod):
    r"""Free-Prompt-Editing (Liu et al., CVPR 2024, arXiv 2403.03431).

    In the selected self-attention layers and steps, the conditional half of an edit lane uses the source's map:

        out = softmax(q_src k_src^T / sqrt(D)) v_edit

    Cross-attention and the unconditional half stay as they are. A real picture needs no source prompt: it is
    inverted with DDIM under the empty prompt, and the source lane is put back on the inverted path before every step.
    """

    name = "fpe"
    summary = "Keep the source's self-attention maps; the prompt changes the rest."
    paper = "arXiv:2403.03431"
    bibtex = """@inproceedings{liu2024fpe,
  title = {Towards Understanding Cross and Self-Attention in Stable Diffusion for Text-Guided Image Editing},
  author = {Liu, Bingyan and Wang, Chengyu and Cao, Tingfeng and Jia, Kui and Huang, Jun},
  booktitle = {CVPR},
  year = {2024}
}"""
    presets: ClassVar = {
        "paper": Preset(
            {"self_replace": 0.8, "min_downscale": None, "max_tokens": 1024},
            "The authors' code: every self-attention layer with at most 32x32 tokens, first 80 % of the steps.",
        ),
        "layers-4-14": Preset(
            {"self_replace": 0.8, "min_downscale": None, "layers": tuple(range(4, 15))},
            "The paper's text read as execution order counted from 0: self-attention layers 4 to 14.",
        ),
    }

    class Config(MethodConfig):
        """Settings of FPE."""

        self_replace: float = Field(
            0.8,
            ge=0,
            le=1,
            description="Fraction of the schedule, from its start, with the source's self-attention maps.",
        )
        min_downscale: int | None = Field(
            2,
            ge=1,
            description="Act where the token grid is at most 1/this of the latents' side; None: no such rule.",
        )
        max_tokens: int | None = Field(
            None, ge=1, description="Act where there are at most this many tokens (the authors' rule: 1024)."
        )
        layers: tuple[int, ...] | None = Field(
            None, description="Act in these self-attention layers only, counted from 0 in execution order."
        )

        @model_validator(mode="after")
        def _some_layer(self) -> FPE.Config:
            if self.layers is not None and not self.layers:
                raise ValueError("layers is empty; leave it out to use the resolution rule")
            return self

    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        """Plan one edit lane."""
        config = self.config
        keep_maps = Controller(
            name="self-attention maps",
            where=Where(
                kind="self",
                layers=config.layers,
                min_downscale=config.min_downscale,
                max_tokens=config.max_tokens,
            ),
            when=When(0, config.self_replace),
            passes=("cond",),
            attend=Attend(q="source", k="source", v="self"),
        )
        if not request.real:
            if not request.source_prompt:
                raise InputError("fpe needs a source prompt to generate the source", hint="give --source-prompt")
            return EditPlan(Source(request.source_prompt), (keep_maps,))
        prompt = request.source_prompt or ""
        inversion = InversionSpec(request.inversion or model.inversion, prompt)
        return EditPlan(Source(prompt, pin_plain="start"), (keep_maps,), inversion)


@hookimpl
def attnctl_methods() -> list[type[EditMethod]]:
    """Register FPE."""
    return [FPE]
