"""Prompt-to-Prompt: the target's words look where the source's words looked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from attnctl.attend import Attend, AttendSum
from attnctl.controller import Controller
from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, MethodConfig, ModelView, Preset, Source
from attnctl.request import PlanRequest
from attnctl.sites import Where
from attnctl.steps import Step, When
from attnctl.tokens import Alignment, PromptTokens, align_tokens, align_words, identity
from attnctl_plugins.words import (
    alpha_table,
    equalizer,
    read_by_word,
    read_word_pair,
    token_windows,
    tokens_of,
    window,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Fraction = Annotated[float, Field(ge=0, le=1)]
Window = Fraction | tuple[Fraction, Fraction]
Words = tuple[str | int, ...]


class P2P(EditMethod):
    r"""Prompt-to-Prompt (Hertz et al., arXiv 2208.01626).

    In the conditional half of an edit lane, with A_s and A_t the source's and the edit's own maps:

        cross-attention:  out = A_s (W D(c alpha_i)) v + A_t D(1 - alpha_i + alpha_i c w) v
        self-attention:   out = A_s v

    W pairs the tokens of the two prompts, w marks those without a counterpart, c are factors per token, and alpha_i
    is 1 where a token takes the source's map at step i. See docs/methods/p2p.md.
    """

    name = "p2p"
    summary = "Keep where each word looks; swap, add or reweight words."
    paper = "arXiv:2208.01626"
    bibtex = """@inproceedings{hertz2023prompt,
  title = {Prompt-to-Prompt Image Editing with Cross Attention Control},
  author = {Hertz, Amir and Mokady, Ron and Tenenbaum, Jay and Aberman, Kfir and Pritch, Yael and Cohen-Or, Daniel},
  booktitle = {ICLR},
  year = {2023}
}"""
    needs_source_prompt = True
    uses_mask = True
    presets: ClassVar = {
        "paper": Preset(
            {"self_replace": 0.4, "min_downscale": None, "max_tokens": 256, "alignment": "reference", "start_blend": 0},
            "The first notebook, for SD 1.4: self-attention up to 16x16 tokens, blending from the first step on.",
        ),
        "reference": Preset(
            {"self_replace": 0.4, "min_downscale": None, "max_tokens": 1024, "alignment": "reference"},
            "The null-text notebook: self-attention up to 32x32 tokens, blending after a fifth of the steps, its "
            "token alignment as it is.",
        ),
        "pie-bench": Preset(
            {
                "mode": "refine",
                "cross_replace": 0.4,
                "self_replace": 0.6,
                "min_downscale": None,
                "max_tokens": 1024,
                "alignment": "reference",
            },
            "As PnPInversion runs it on PIE-Bench; it also blends and doubles the blend word where there is one.",
        ),
    }

    class Config(MethodConfig):
        """Settings of Prompt-to-Prompt."""

        mode: Literal["auto", "replace", "refine", "reweight"] = Field(
            "auto",
            description="replace: word for word; refine: words were added or removed; reweight: the source's maps by "
            "index; auto: replace if both prompts have as many words, else refine.",
        )
        cross_replace: Window | dict[str | int, Window] = Field(
            0.8,
            json_schema_extra={"allowed": "0 to 1, or start,stop, or word:window word:window"},
            description="Steps with the source's cross-attention: a fraction, start,stop, or by word: "
            "'default_:1 lion:0.4'.",
        )
        self_replace: Window = Field(
            0.4,
            json_schema_extra={"allowed": "0 to 1, or start,stop"},
            description="Steps with the source's self-attention: a fraction or start,stop.",
        )
        min_downscale: int | None = Field(
            2, ge=1, description="Self-attention: act where the grid is at most 1/this of the latents' side."
        )
        max_tokens: int | None = Field(
            None, ge=1, description="Self-attention: act where there are at most this many tokens (the authors' rule)."
        )
        layers: tuple[int, ...] | None = Field(
            None, min_length=1, description="Self-attention: act in these layers only, counted from 0."
        )
        equalizer: dict[str | int, FiniteFloat] = Field(
            {},
            json_schema_extra={"allowed": "word:factor word:factor"},
            description="Factors on words of the target: 'smiling:5 doll:-1'. They act while cross_replace does.",
        )
        blend_words: tuple[Words, Words] | None = Field(
            None,
            json_schema_extra={"allowed": "none, or words, or words > words"},
            description="Change the picture only where these words are: 'cat > tiger', or 'cat' for both prompts.",
        )
        blend_threshold: float = Field(
            0.3, ge=0, lt=1, description="Share of the maximum of the word map from which a place counts."
        )
        subtract_words: tuple[Words, Words] | None = Field(
            None,
            json_schema_extra={"allowed": "none, or words, or words > words"},
            description="Do not change the picture where these words are; written as blend_words.",
        )
        subtract_threshold: float = Field(0.3, ge=0, lt=1, description="As blend_threshold, for subtract_words.")
        start_blend: float = Field(
            0.2, ge=0, le=1, description="Fraction of the schedule after which the source is kept outside the words."
        )
        blend_downscale: int = Field(
            4, ge=1, description="Read word maps where the grid is 1/this of the latents' side."
        )
        alignment: Literal["fixed", "reference"] = Field(
            "fixed",
            description="fixed: what follows a word of another length keeps its own map; reference: as published.",
        )
        missing_words: Literal["error", "skip"] = Field(
            "error", description="What a word does that the prompt does not have; skip is what the authors' code does."
        )

        @field_validator("cross_replace", "equalizer", mode="before")
        @classmethod
        def _by_word(cls, value: Any) -> Any:
            return read_by_word(value) if isinstance(value, str) else value

        @field_validator("blend_words", "subtract_words", mode="before")
        @classmethod
        def _pair(cls, value: Any) -> Any:
            return read_word_pair(value)

        @field_validator("cross_replace", "self_replace")
        @classmethod
        def _ordered(cls, value: Any) -> Any:
            for bounds in value.values() if isinstance(value, dict) else [value]:
                window(bounds)
            return value

        @model_validator(mode="after")
        def _sense(self) -> P2P.Config:
            if self.mode == "reweight" and not self.equalizer:
                raise ValueError("reweight needs an equalizer, for example 'smiling:5'")
            for pair in (self.blend_words, self.subtract_words):
                if pair is not None and not any(pair):
                    raise ValueError("no words are given; leave the setting out")
            return self

    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        """Plan one edit lane.

        Raises:
            InputError: There is no source prompt, a word is not in its prompt, or replace meets prompts with different
                numbers of words.
        """
        if not request.source_prompt:
            raise InputError("p2p needs a prompt that describes the source", hint="give --source-prompt")
        published = self.config.alignment == "reference"
        source, target = (model.tokens(text, published=published) for text in (request.source_prompt, request.prompt))
        skipped: list[str] | None = [] if self.config.missing_words == "skip" else None
        controllers = (
            *self._cross(source, target, request, model, skipped),
            *self._self(),
            *self._blend(source, target, request, model, skipped),
        )
        notes = [f"p2p: {word!r} is in no place of its prompt and was skipped" for word in dict.fromkeys(skipped or [])]
        if self.config.mode == "reweight" and source.ids != target.ids:
            notes.append("p2p: reweight reads the source's maps by token index, but the prompts have different tokens")
        inversion = InversionSpec(request.inversion or "direct", request.source_prompt) if request.real else None
        return EditPlan(Source(request.source_prompt), controllers, inversion, notes=tuple(notes))

    def _cross(
        self,
        source: PromptTokens,
        target: PromptTokens,
        request: PlanRequest,
        model: ModelView,
        skipped: list[str] | None,
    ) -> tuple[Controller, ...]:
        config = self.config
        mode = config.mode
        if mode == "auto":
            mode = "replace" if len(source.words) == len(target.words) else "refine"
        published = config.alignment == "reference"
        if mode == "reweight":
            alignment = identity(source, target)
        else:
            alignment = (align_words if mode == "replace" else align_tokens)(source, target, published=published)
        windows = token_windows(config.cross_replace, target, skipped)
        factors = equalizer(config.equalizer, target, skipped)
        if not (windows[:, 1] > windows[:, 0]).any():
            return ()
        edit = CrossEdit(alignment, factors, windows, request.steps, model.device)
        return (Controller(f"cross-attention ({mode})", Where("cross"), attend=edit),)

    def _self(self) -> tuple[Controller, ...]:
        config = self.config
        start, stop = window(config.self_replace)
        if start == stop:
            return ()
        where = Where("self", layers=config.layers, min_downscale=config.min_downscale, max_tokens=config.max_tokens)
        return (Controller("self-attention maps", where, When(start, stop), attend=Attend("source", "source", "self")),)

    def _blend(
        self,
        source: PromptTokens,
        target: PromptTokens,
        request: PlanRequest,
        model: ModelView,
        skipped: list[str] | None,
    ) -> tuple[Controller, ...]:
        config = self.config
        pairs = [pair for pair in (config.blend_words, config.subtract_words) if pair is not None]
        if not pairs and request.mask is None:
            return ()
        from attnctl_plugins.blend import LocalBlend, WordPlaces, indicator

        places = None
        if pairs:
            sets = {
                "source": [tokens_of(words, source, skipped) for words, _ in pairs],
                "self": [tokens_of(words, target, skipped) for _, words in pairs],
            }
            places = WordPlaces({role: indicator(s, model.text_length, model.device) for role, s in sets.items()})
        blend = LocalBlend(
            places,
            threshold=None if config.blend_words is None else config.blend_threshold,
            subtract_threshold=None if config.subtract_words is None else config.subtract_threshold,
            mask=request.mask,
            start=config.start_blend,
        )
        return blend.controllers(config.blend_downscale)


class CrossEdit:
    """A[source, source] W D(c alpha) v[self] + A[self, self] D(1 - alpha + alpha c w) v[self]."""

    def __init__(
        self,
        alignment: Alignment,
        factors: NDArray[np.float32],
        windows: NDArray[np.float64],
        steps: int,
        device: str,
    ) -> None:
        """Prepare the expressions.

        Args:
            alignment: W and w.
            factors: c, (M,).
            windows: Start and stop of every target token, (M, 2).
            steps: Number of steps that was asked for; PLMS runs one more, which has its own row in the table.
            device: Where the value maps shall be.
        """
        self.alignment = alignment
        self.factors = factors
        self.windows = windows
        self.steps = steps
        self.device = device
        self._made: dict[bytes, Attend | AttendSum | None] = {}

    def __call__(self, step: Step) -> Attend | AttendSum | None:
        """Return the expression of a step; None where no token takes the source's map."""
        count = self.steps if step.count <= self.steps + 1 else step.count
        alpha = alpha_table(self.windows, count)[step.index]
        key = alpha.tobytes()
        if key not in self._made:
            self._made[key] = self._expression(alpha)
        return self._made[key]

    def _expression(self, alpha: NDArray[np.float32]) -> Attend | AttendSum | None:
        import numpy as np
        import torch

        if not alpha.any():
            return None
        weights = self.factors * alpha
        taken = self.alignment.matrix * weights
        own = 1 - alpha + weights * self.alignment.own
        terms = []
        if taken.any():
            diagonal = np.diagonal(taken)
            flat = np.array_equal(taken, np.diag(diagonal))
            # Plain attention where the map is the identity: the engine then shares it between lanes.
            plain = flat and bool((diagonal == 1).all())
            value_map = None if plain else torch.tensor(diagonal if flat else taken, device=self.device)
            terms.append(Attend("source", "source", "self", value_map=value_map))
        if own.any() or not terms:
            terms.append(Attend("self", "self", "self", value_map=torch.tensor(own, device=self.device)))
        return terms[0] if len(terms) == 1 else AttendSum(tuple(terms))


@hookimpl
def attnctl_methods() -> list[type[EditMethod]]:
    """Register Prompt-to-Prompt."""
    return [P2P]
