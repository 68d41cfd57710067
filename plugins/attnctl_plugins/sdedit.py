"""SDEdit: noise the picture part of the way, then denoise it under the target prompt. No attention control."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from attnctl.controller import Controller
from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, MethodConfig, ModelView, Preset, Source
from attnctl.request import PlanRequest

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.controller import StepCall


class SDEdit(EditMethod):
    r"""SDEdit (Meng et al., ICLR 2022, arXiv 2108.01073), guided by text as in diffusers' image-to-image pipeline.

    With T steps and strength s, the edit starts at step T - n, n = int(T s), from

        x = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise,   t = timesteps[T - n]

    and is sampled as usual. With a mask, what lies outside it is put back on the picture, noised with the same noise
    to the level at hand, after every step.
    """

    name = "sdedit"
    summary = "Noise the picture part of the way, denoise it under the target prompt; no attention control."
    paper = "arXiv:2108.01073"
    bibtex = """@inproceedings{meng2022sdedit,
  title = {SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations},
  author = {Meng, Chenlin and He, Yutong and Song, Yang and Song, Jiaming and Wu, Jiajun and Zhu, Jun-Yan and
            Ermon, Stefano},
  booktitle = {ICLR},
  year = {2022}
}"""
    uses_mask = True
    no_op = True
    presets: ClassVar = {"diffusers": Preset({"strength": 0.8}, "The default of diffusers' image-to-image pipeline.")}

    class Config(MethodConfig):
        """Settings of SDEdit."""

        strength: float = Field(
            0.8, gt=0, le=1, description="Fraction of the schedule that is run: 1 forgets most of the picture."
        )

    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        """Plan one edit lane."""
        if not request.real:
            raise InputError("sdedit edits a given picture", hint="give --image, or leave sdedit out")
        if int(request.steps * self.config.strength) < 1:
            raise InputError(
                f"sdedit with strength {self.config.strength:g} leaves no step of {request.steps}",
                hint=f"give a strength of at least {1 / request.steps:g}, or more steps",
            )
        controllers: tuple[Controller, ...] = ()
        if request.mask is not None:
            keep = _KeepOutside(request.mask)
            controllers = (Controller("keep outside the mask", on_step_end=keep, lanes=()),)
        inversion = InversionSpec("noising", "", (("strength", self.config.strength),))
        return EditPlan(Source(request.source_prompt or ""), controllers, inversion)


class _KeepOutside:
    """Puts the noised picture back outside a mask."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, call: StepCall) -> Tensor:
        import torch

        x = call.latents["self"]
        assert call.reference is not None  # sdedit plans an inversion, so there is a path to go by
        return torch.where(self.mask.to(x.device), x, call.reference.to(x))


@hookimpl
def attnctl_methods() -> list[type[EditMethod]]:
    """Register SDEdit."""
    return [SDEdit]
