"""MasaCtrl: the edit asks its own queries of the source's keys and values: the looks stay, the shapes may move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from attnctl.attend import Attend
from attnctl.controller import Controller
from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, MethodConfig, ModelView, Preset, Source
from attnctl.request import PlanRequest
from attnctl.sites import Where
from attnctl.steps import When
from attnctl_plugins.words import read_word_pair, tokens_of

if TYPE_CHECKING:
    from attnctl.sites import Site
    from attnctl_plugins.regions import Regions

BOTH: tuple[Literal["uncond"], Literal["cond"]] = ("uncond", "cond")
Words = Annotated[tuple[str | int, ...], Field(min_length=1)]
Tokens = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class MasaCtrl(EditMethod):
    r"""Mutual self-attention control (Cao et al., ICCV 2023, arXiv 2304.08465).

    In the selected self-attention layers, from the start step on and in both guidance halves:

        out = softmax(q_edit k_src^T / sqrt(D)) v_src

    With regions (a mask, or words whose cross-attention maps make one), a query inside the edit's region sees the keys
    inside the source's region only, and one outside sees those outside. The union variant joins the keys and values of
    source and edit under one softmax.
    """

    name = "masactrl"
    summary = "Ask the edit's queries of the source's keys and values: same looks, new pose."
    paper = "arXiv:2304.08465"
    bibtex = """@inproceedings{cao2023masactrl,
  title = {MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image Synthesis and Editing},
  author = {Cao, Mingdeng and Wang, Xintao and Qi, Zhongang and Shan, Ying and Qie, Xiaohu and Zheng, Yinqiang},
  booktitle = {ICCV},
  year = {2023}
}"""
    uses_mask = True
    presets: ClassVar = {
        "paper": Preset(
            {"start": 0.08, "start_layer": 10},
            "The authors' demo on Stable Diffusion 1.x: from step 4 of 50 on, in layers 10 to 15.",
        ),
        "reference": Preset(
            {"start": 0.08, "start_layer": 10, "empty_region": "average"},
            "As `paper`, and what the authors' code does with an empty region: the mean of all source values.",
        ),
        "union": Preset({"union": True}, "The variant that also keeps the edit's own keys and values."),
    }

    class Config(MethodConfig):
        """Settings of MasaCtrl."""

        start: float = Field(0.08, ge=0, le=1, description="Fraction of the schedule after which control begins.")
        start_step: int | None = Field(
            None, ge=0, description="First controlled step, counted from 0, instead of `start`."
        )
        start_layer: int | None = Field(
            None,
            ge=0,
            description="First controlled self-attention layer in execution order; None: every decoder layer above "
            "the coarsest level (10 on Stable Diffusion 1.x).",
        )
        layers: tuple[int, ...] | None = Field(
            None, min_length=1, description="Exactly these self-attention layers instead of `start_layer`."
        )
        union: bool = Field(
            False, description="Let the edit also see its own keys and values, under one softmax with the source's."
        )
        words: tuple[Words, Words] | None = Field(
            None,
            description="Find the object by the attention of words, source > target: 'cat > tiger', or 'cat' for both "
            "prompts.",
        )
        tokens: tuple[Tokens, Tokens] | None = Field(
            None,
            description="As words, by token position in the source and in the target prompt; 0 is the start token.",
        )
        threshold: float = Field(
            0.1, ge=0, le=1, description="The object is where a word's map, scaled to [0, 1], is at least this."
        )
        map_downscale: int = Field(
            4, ge=1, description="Words' maps are read where the token grid is 1/this of the latents' side."
        )
        empty_region: Literal["all", "average"] = Field(
            "all",
            description="What a query sees whose region holds no source key: all keys, or the mean of all values.",
        )

        @field_validator("words", mode="before")
        @classmethod
        def _pair(cls, value: Any) -> Any:
            return read_word_pair(value)

        @model_validator(mode="after")
        def _fits(self) -> MasaCtrl.Config:
            if self.words is not None and self.tokens is not None:
                raise ValueError("give words or tokens, not both")
            if self.union and (self.words or self.tokens):
                raise ValueError("the union variant has no regions, so it takes no words or tokens")
            return self

    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        """Plan one edit lane."""
        config = self.config
        if not request.real and not request.source_prompt:
            raise InputError("masactrl needs a source prompt to generate the source", hint="give --source-prompt")
        prompt = request.source_prompt or ""
        when = self._when(request.steps)
        regions = self._regions(request, model)
        keys: str | tuple[str, ...] = ("source", "self") if config.union else "source"
        mutual = Controller(
            name="mutual self-attention",
            where=Where(kind="self", layers=self._layers(model.sites)),
            when=when,
            passes=BOTH,
            attend=Attend(q="self", k=keys, v=keys, mask=None if regions is None else regions.allowed),
            both_halves=regions is not None,  # words are read in the conditional half and bind both
        )
        controllers = (mutual, *([] if regions is None else regions.readers(when, config.map_downscale)))
        notes: tuple[str, ...] = ()
        if request.mask is not None and (config.union or config.words or config.tokens):
            notes = (f"masactrl {'joins all keys' if config.union else 'goes by words'}, so it does not use the mask",)
        inversion = InversionSpec(request.inversion or model.inversion, prompt) if request.real else None
        return EditPlan(Source(prompt), controllers, inversion, notes=notes)

    def _when(self, count: int) -> When:
        step = self.config.start_step
        if step is None:
            return When(self.config.start, 1)
        # Half a step further: int(T * (S / T)) may come out as S - 1.
        return When(min(1.0, (step + 0.5) / count), 1)

    def _layers(self, sites: tuple[Site, ...]) -> tuple[int, ...]:
        config = self.config
        here = [s for s in sites if s.kind == "self"]
        if config.layers is not None:
            return config.layers  # type: ignore[no-any-return]
        if config.start_layer is not None:
            found = tuple(s.layer for s in here if s.layer >= config.start_layer)
            return found or (config.start_layer,)  # which does not exist: the selector lists those that do
        decoder = [s for s in here if s.block == "up"]
        coarsest = max((s.downscale for s in decoder), default=0)
        return tuple(s.layer for s in decoder if s.downscale < coarsest) or tuple(s.layer for s in decoder)

    def _regions(self, request: PlanRequest, model: ModelView) -> Regions | None:
        from attnctl_plugins.regions import FixedRegions, WordRegions

        config = self.config
        average = config.empty_region == "average"
        if config.words is not None or config.tokens is not None:
            if not request.source_prompt:
                raise InputError(
                    "masactrl is to find the object by words, but the source has no prompt", hint="give --source-prompt"
                )
            prompts = (request.source_prompt, request.prompt)
            source, edit = config.tokens or [
                tokens_of(words, model.tokens(text)) for words, text in zip(config.words, prompts, strict=True)
            ]
            return WordRegions(source, edit, model.text_length, config.threshold, average_if_empty=average)
        if request.mask is None or config.union:
            return None
        return FixedRegions(request.mask, request.mask, average_if_empty=average)


@hookimpl
def attnctl_methods() -> list[type[EditMethod]]:
    """Register MasaCtrl."""
    return [MasaCtrl]
