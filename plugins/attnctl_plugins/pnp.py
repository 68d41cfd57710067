"""Plug-and-Play: inject the source's decoder features and self-attention maps, both halves, into the edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from attnctl.attend import Attend
from attnctl.controller import Controller
from attnctl.errors import InputError, ModelError
from attnctl.hookspecs import hookimpl
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, MethodConfig, ModelView, Preset, Source
from attnctl.request import PlanRequest
from attnctl.sites import Site, Where
from attnctl.steps import When

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.attend import AttentionCall
    from attnctl.branches import LaneTensors

BOTH: tuple[Literal["uncond"], Literal["cond"]] = ("uncond", "cond")
NEGATIVE = "ugly, blurry, black, low res, unrealistic"


class PlugAndPlay(EditMethod):
    r"""Plug-and-Play diffusion features (Tumanyan et al., CVPR 2023, arXiv 2211.12572).

    For the first steps, both guidance halves of the edit take from the source

        what one decoder residual block adds before its shortcut:   h_edit <- h_src
        the self-attention maps of the decoder layers behind it:     out = softmax(q_src k_src^T / sqrt(D)) v_edit

    A given picture's source lane is conditioned on the empty text and sits on the inverted path at every step, so that
    one row serves both halves of the edit.
    """

    name = "pnp"
    summary = "Inject one decoder feature and the decoder's self-attention maps of the source."
    paper = "arXiv:2211.12572"
    bibtex = """@inproceedings{tumanyan2023pnp,
  title = {Plug-and-Play Diffusion Features for Text-Driven Image-to-Image Translation},
  author = {Tumanyan, Narek and Geyer, Michal and Bagon, Shai and Dekel, Tali},
  booktitle = {CVPR},
  year = {2023}
}"""
    presets: ClassVar = {
        "paper": Preset(
            {"inversion_steps": 999, "negative_prompt": NEGATIVE},
            "The authors' pnp-diffusers: inversion in 999 steps, their negative prompt.",
        ),
        "pie-bench": Preset(
            {"negative_prompt": NEGATIVE},
            "PIE-Bench's port: inversion in as many steps as the sampling, the authors' negative prompt.",
        ),
        "pie-bench-ddim": Preset(
            {"negative_prompt": NEGATIVE, "misaligned": True},
            "PIE-Bench's `ddim+pnp` baseline with its fault: every source latent is one step too clean.",
        ),
    }

    class Config(MethodConfig):
        """Settings of Plug-and-Play."""

        feature: float = Field(
            0.8, ge=0, le=1, description="Fraction of the schedule, from its start, with the source's feature."
        )
        attention: float = Field(
            0.5,
            ge=0,
            le=1,
            description="Fraction of the schedule, from its start, with the source's self-attention maps.",
        )
        feature_path: str | None = Field(
            None,
            description="Residual block whose feature is injected; None: the second one of the first decoder block "
            "with attention (up_blocks.1.resnets.1 on Stable Diffusion 1.x).",
        )
        layers: tuple[int, ...] | None = Field(
            None,
            min_length=1,
            description="Self-attention layers whose maps are injected; None: all decoder layers behind that residual "
            "block (8 to 15 on Stable Diffusion 1.x).",
        )
        feature_steps: tuple[int, ...] | None = Field(
            None, min_length=1, description="Exactly these steps, counted from 0, instead of `feature`."
        )
        attention_steps: tuple[int, ...] | None = Field(
            None, min_length=1, description="Exactly these steps, counted from 0, instead of `attention`."
        )
        negative_prompt: str | None = Field(
            None, description="Unconditional text of the edit; None: the run's negative prompt."
        )
        inversion_prompt: str | None = Field(
            None, description="Text that a given picture is inverted with; None: the source prompt, or nothing."
        )
        inversion_steps: int | None = Field(
            None, ge=1, le=999, description="Steps of DDIM inversion; None: as many as the sampling. The paper: 999."
        )
        misaligned: bool = Field(
            False,
            description="Feed the source's reconstruction one step too clean, as PIE-Bench's `ddim+pnp` baseline does.",
        )

    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        """Plan one edit lane."""
        config = self.config
        path = config.feature_path or feature_path(model.sites)
        feature = Controller(
            name="decoder feature",
            where=Where(kind="feature", paths=(path,)),
            when=_window(config.feature, config.feature_steps),
            passes=BOTH,
            on_feature=_take_source,
        )
        maps = Controller(
            name="decoder self-attention maps",
            where=Where(kind="self", layers=config.layers or layers_behind(model.sites, path)),
            when=_window(config.attention, config.attention_steps),
            passes=BOTH,
            attend=Attend(q="source", k="source", v="self"),
        )
        if not request.real:
            if not request.source_prompt:
                raise InputError("pnp needs a source prompt to generate the source", hint="give --source-prompt")
            return EditPlan(Source(request.source_prompt), (feature, maps), negative_prompt=config.negative_prompt)
        return EditPlan(
            Source("", pin="start", negative_prompt=""),
            (feature, maps),
            self._inversion(request),
            negative_prompt=config.negative_prompt,
        )

    def _inversion(self, request: PlanRequest) -> InversionSpec:
        config = self.config
        name = request.inversion or ("ddim-replayed" if config.misaligned else "ddim")
        prompt = config.inversion_prompt
        if prompt is None:
            prompt = request.source_prompt or ""
        if config.inversion_steps is None:
            return InversionSpec(name, prompt)
        if name != "ddim":
            raise InputError(
                f"inversion_steps is a setting of the ddim inversion, and this run uses {name}",
                hint="leave one of the two out",
            )
        return InversionSpec(name, prompt, (("steps", config.inversion_steps),))


def _window(fraction: float, steps: tuple[int, ...] | None) -> When:
    return When(0, fraction) if steps is None else When(steps=frozenset(steps))


def _take_source(call: AttentionCall, feature: LaneTensors) -> Tensor:
    return feature["source"]


def feature_path(sites: tuple[Site, ...]) -> str:
    """Return the second residual block of the first decoder block that has attention, or its only one.

    Raises:
        ModelError: No decoder block has attention.
    """
    first = next((s for s in sites if s.kind == "self" and s.block == "up"), None)
    if first is None:
        raise ModelError("this model's decoder has no attention", hint="pnp needs one; use another model")
    block = first.path.partition(".attentions.")[0] + "."
    here = [s.path for s in sites if s.kind == "feature" and s.path.startswith(block)]
    return here[min(1, len(here) - 1)]


def layers_behind(sites: tuple[Site, ...], path: str) -> tuple[int, ...]:
    """Return the decoder's self-attention layers that run after a residual block."""
    paths = [s.path for s in sites]
    after = sites[paths.index(path) + 1 :] if path in paths else sites
    return tuple(s.layer for s in after if s.kind == "self" and s.block == "up")


@hookimpl
def attnctl_methods() -> list[type[EditMethod]]:
    """Register Plug-and-Play."""
    return [PlugAndPlay]
