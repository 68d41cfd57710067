"""UNets that predict noise or v from text of fixed length: what Stable Diffusion 1.x, 2.x and XL have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from attnctl.errors import ModelError
from attnctl.families.base import Family
from attnctl.families.betas import beta_schedule, check_betas, ignored_spacing
from attnctl.families.compiled import reject_compiled
from attnctl.families.latents import Latents, check_latents
from attnctl.guidance import Guidance
from attnctl.sampling import SCHEDULERS
from attnctl.sites import Block, Site
from attnctl.tokens import learned_vectors, read_prompt, spell

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attnctl.sampling import Schedule
    from attnctl.text import Text
    from attnctl.tokens import PromptTokens

UNSUPPORTED = {
    "class_embed_type": "class embeddings",
    "num_class_embeds": "class embeddings",
    "time_cond_proj_dim": "a guidance embedding: a guidance-distilled model (LCM)",
}
"""Settings of a UNet that want inputs which are not given here, and what they are."""


class UNetFamily(Family):
    """A family with a `UNet2DConditionModel`."""

    denoiser_part: ClassVar[str] = "unet"
    schedules: ClassVar[tuple[str, ...]] = tuple(SCHEDULERS)
    inversion: ClassVar[str] = "ddim"
    steps: ClassVar[int] = 50
    scale: ClassVar[float] = 7.5
    additions: ClassVar[tuple[str | None, ...]] = (None, "text")
    """What else than cross-attention tells the UNet of the text, by the name of its configuration."""

    def check(self) -> None:
        """Refuse inpainting, instruction, class-conditional and distilled UNets, and schedules without betas.

        Raises:
            ModelError: It is such.
        """
        config, name = self.pipe.unet.config, self.name_of_model
        latent = self.pipe.vae.config.latent_channels
        if config.in_channels != latent:
            raise ModelError(
                f"{name} has a denoiser with {config.in_channels} input channels for {latent} latent channels: "
                "an inpainting or instruction model",
                hint="use a text-to-image checkpoint",
            )
        if config.out_channels != latent:
            raise ModelError(
                f"{name} has a denoiser with {config.out_channels} output channels for {latent} latent channels",
                hint="use a checkpoint that predicts noise or v and nothing else",
            )
        for setting, what in UNSUPPORTED.items():
            if config.get(setting) is not None:
                raise ModelError(f"{name} has {what}", hint="use the model that it was made from")
        reject_compiled(self.denoiser)
        check_inputs(self, name)
        check_betas(self.pipe.scheduler)
        check_latents(self.pipe.vae)

    @property
    def latents(self) -> Latents:
        """Latents of the pipeline's autoencoder."""
        config, factor = self.pipe.unet.config, int(self.pipe.vae_scale_factor)
        side = config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        default = height * factor, width * factor
        return Latents(self.pipe.vae, int(config.in_channels), factor, factor, default)

    def sites(self) -> tuple[Site, ...]:
        """All hook points in execution order."""
        reject_compiled(self.denoiser)
        return enumerate_sites(self.denoiser)

    @property
    def text_length(self) -> int:
        """Number of text tokens M: what tokenizer and encoder both have room for, as one of them may not say."""
        encoder = self.pipe.text_encoder
        places = [] if encoder is None else [int(encoder.config.max_position_embeddings)]
        return min([int(self.pipe.tokenizer.model_max_length), *places])

    def tokens(self, prompt: str, *, published: bool = False) -> PromptTokens:
        """Cut a prompt into words and tokens."""
        return read_prompt(prompt, self.pipe.tokenizer, self.text_length, published=published)

    def reads_alike(self, a: str, b: str) -> bool:
        """Whether every tokenizer makes the same tokens of both."""
        tokenizers = (getattr(self.pipe, part, None) for part in self.tokenizers)
        return a == b or all(
            read_prompt(a, reader, self.text_length).ids == read_prompt(b, reader, self.text_length).ids
            for reader in tokenizers
            if reader is not None
        )

    def encoded(self, prompt: str, **options: Any) -> Any:
        """Return what the pipeline's ``encode_prompt`` makes of a prompt, learned placeholders written out once.

        The pipeline would write them out again where the user already did, and so garble them.
        """
        pipe, vectors = self.pipe, learned_vectors(self.pipe.tokenizer)
        device = pipe._execution_device
        for part in self.tokenizers:  # where a tokenizer's file does not say, it would pad without end
            tokenizer = getattr(pipe, part)
            tokenizer.model_max_length = min(int(tokenizer.model_max_length), self.text_length)
        given = {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False, **options}
        if not vectors:
            return pipe.encode_prompt(prompt, **given)
        pipe.maybe_convert_prompt = lambda text, tokenizer: text
        try:
            return pipe.encode_prompt(spell(prompt, vectors), **given)
        finally:
            del pipe.maybe_convert_prompt

    def cut_text(self, prompt: str) -> str:
        """Return the end of a prompt that does not fit into the model's tokens; empty when all fits."""
        text = spell(prompt, learned_vectors(self.pipe.tokenizer))
        ids = self.pipe.tokenizer(text, truncation=False, padding=False, verbose=False).input_ids
        keep = self.text_length - 1  # the last place belongs to the end token
        if len(ids) <= self.text_length:
            return ""
        return str(self.pipe.tokenizer.decode(ids[keep:-1])).strip()

    def guidance(self, scale: float) -> Guidance:
        """Guide between two halves."""
        return Guidance(scale)

    def schedule(self, name: str, steps: int, latent_size: tuple[int, int], seed: int) -> Schedule:
        """Build a schedule over the checkpoint's betas."""
        return beta_schedule(name, self.pipe.scheduler, steps, seed)

    def schedule_note(self, name: str) -> str:
        """Say that DDIM does not space its steps as the checkpoint's file does."""
        return ignored_spacing(name, self.pipe.scheduler)

    @abstractmethod
    def conditions(self, x: Tensor, texts: Sequence[Text]) -> dict[str, Tensor]:
        """Return what else the UNet is told of the rows, by the names of its ``added_cond_kwargs``."""

    def predict(
        self, x: Tensor, told: Sequence[int | float], texts: Sequence[Text], guides: Sequence[float | None]
    ) -> Tensor:
        """Run the UNet once."""
        import torch

        extra: dict[str, Any] = self.conditions(x, texts)
        if getattr(self.pipe.unet.config, "encoder_hid_dim_type", None) == "ip_image_proj":
            if not all(t.images for t in texts):
                raise ModelError(
                    "the model has an IP-Adapter, but there are no image prompts",
                    hint="set Model.image_prompts (pipe.prepare_ip_adapter_image_embeds), or pipe.unload_ip_adapter()",
                )
            extra["image_embeds"] = [torch.cat(parts) for parts in zip(*(t.images for t in texts), strict=True)]
        given = {"added_cond_kwargs": extra} if extra else {}
        # One number where the rows agree, as pipelines give it: what is computed from it is then computed once.
        t = torch.tensor(told[0] if len(set(told)) == 1 else list(told), device=x.device)
        embeds = torch.cat([t.embeds for t in texts])
        return self.pipe.unet(x, t, encoder_hidden_states=embeds, return_dict=False, **given)[0]  # type: ignore[no-any-return]


def check_inputs(family: UNetFamily, name: str) -> None:
    """Refuse UNets that read something else than this family's texts, before the first step.

    Raises:
        ModelError: It does.
    """
    config: Any = family.pipe.unet.config
    projection = getattr(config, "encoder_hid_dim_type", None)  # adapters set it beside the table of settings
    if projection not in (None, "text_proj", "ip_image_proj"):
        raise ModelError(
            f"{name} projects its conditions by encoder_hid_dim_type={projection!r}, which wants image embeddings",
            hint="use a checkpoint that is told by text alone",
        )
    added = config.get("addition_embed_type")
    if added not in family.additions:
        wanted = " or ".join(repr(a) for a in family.additions)
        raise ModelError(
            f"{name} has addition_embed_type={added!r}; models of this family have {wanted}",
            hint="use the pipeline class that the checkpoint was made for",
        )
    encoders: tuple[Any, ...] = family.encoders
    widths = [int(w.config.hidden_size) for w in encoders if hasattr(w.config, "hidden_size")]
    expected = config.get("encoder_hid_dim") if projection == "text_proj" else config.cross_attention_dim
    given = {expected} if isinstance(expected, int) else set(_numbers(expected))
    if len(widths) == len(family.encoders) and widths and given and given != {sum(widths)}:
        raise ModelError(
            f"{name} has a denoiser that reads texts of {', '.join(map(str, sorted(given)))} numbers a token, and text "
            f"encoders that give {sum(widths)}",
            hint="the parts are of different models; download the whole model again",
        )


def _numbers(nested: Any) -> Iterator[int]:
    """All numbers of a nested list."""
    if isinstance(nested, int):
        yield nested
    for inner in nested if isinstance(nested, list | tuple) else ():
        yield from _numbers(inner)


def enumerate_sites(unet: nn.Module) -> tuple[Site, ...]:
    """List a diffusers UNet's sites in execution order: down blocks, mid block, up blocks.

    The order is derived from the structure, never from `attn_processors`, which lists the mid block last and can
    hold modules that belong to adapters.

    Raises:
        ModelError: The module has no down, mid and up blocks, or none of them has attention.
    """
    if not all(hasattr(unet, name) for name in ("down_blocks", "mid_block", "up_blocks")):
        raise ModelError(
            f"{type(unet).__name__} has no down, mid and up blocks, so its attention cannot be located",
            hint="use a Stable Diffusion 1.x, 2.x or XL model",
        )
    sites: list[Site] = []
    counters, inside = {"attention": 0, "feature": 0}, ""
    for path, block, name, downscale in _walk_blocks(unet):
        for site in _block_sites(block, path, name, downscale):
            counter = "feature" if site.kind == "feature" else "attention"
            around = site.path.rpartition(".")[0]
            if counter == "attention" and around == inside:  # the attentions of one transformer block share a number
                sites.append(replace(site, layer=counters[counter] - 1))
                continue
            inside = around
            sites.append(replace(site, layer=counters[counter]))
            counters[counter] += 1
    if counters["attention"] == 0:
        raise ModelError(f"{type(unet).__name__} has no attention layers to control", hint="use another model")
    return tuple(sites)


def _walk_blocks(unet: nn.Module) -> Iterator[tuple[str, nn.Module, Block, int]]:
    """Yield (path, block, name, downscale) in execution order; samplers change the scale for what follows."""
    downscale = 1
    for i, block in enumerate(unet.down_blocks):  # type: ignore[arg-type]
        yield f"down_blocks.{i}", block, "down", downscale
        if getattr(block, "downsamplers", None):
            downscale *= 2
    if unet.mid_block is not None:
        yield "mid_block", unet.mid_block, "mid", downscale  # type: ignore[misc]
    for i, block in enumerate(unet.up_blocks):  # type: ignore[arg-type]
        yield f"up_blocks.{i}", block, "up", downscale
        if getattr(block, "upsamplers", None):
            downscale //= 2


def _block_sites(block: nn.Module, path: str, name: Block, downscale: int) -> Iterator[Site]:
    """Yield one block's sites in execution order: resnet i, attention i; the mid block has one more resnet in front."""
    resnets = list(getattr(block, "resnets", None) or [])
    attentions = list(getattr(block, "attentions", None) or [])
    lead = 1 if name == "mid" else 0
    for i in range(lead):
        yield Site(f"{path}.resnets.{i}", "feature", name, 0, downscale, 0)
    for i in range(max(len(resnets) - lead, len(attentions))):
        resnet = Site(f"{path}.resnets.{i + lead}", "feature", name, 0, downscale, 0)
        attention = (
            list(_attention_sites(attentions[i], f"{path}.attentions.{i}", name, downscale))
            if i < len(attentions)
            else []
        )
        here = [resnet] if i + lead < len(resnets) else []
        yield from (*attention, *here) if name == "mid" else (*here, *attention)


def _attention_sites(attention: nn.Module, path: str, name: Block, downscale: int) -> Iterator[Site]:
    for b, inner in enumerate(getattr(attention, "transformer_blocks", ())):
        for attr, usual in (("attn1", False), ("attn2", True)):
            attn = getattr(inner, attr, None)
            if attn is not None:  # under `only_cross_attention` the first one reads the text, too
                stem = f"{path}.transformer_blocks.{b}.{attr}"
                kind = "cross" if getattr(attn, "is_cross_attention", usual) else "self"
                yield Site(stem, kind, name, 0, downscale, int(attn.heads))  # type: ignore[arg-type]
