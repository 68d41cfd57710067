"""Tiny but real diffusers pipelines: random weights from a seed, the topology of the models that people use.

They say nothing about picture quality. They do run the same code as the real models, layer for layer, so that what is
exact here (which rows meet, what is restored, what is computed) is exact there.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from attnctl.model import Model, check_supported

WORDS = (
    *(
        "a",
        "an",
        "the",
        "of",
        "on",
        "in",
        "with",
        "and",
        "photo",
        "painting",
        "red",
        "green",
        "blue",
        "yellow",
        "white",
    ),
    *(
        "black",
        "cat",
        "dog",
        "car",
        "house",
        "tree",
        "boat",
        "sitting",
        "running",
        "sleeping",
        "grass",
        "beach",
        "snow",
    ),
    *("road", "night", "small", "big", "striped"),
)
"""Words that are one token each; any other word is spelled letter by letter."""

START, END = "<|startoftext|>", "<|endoftext|>"
TEXT_LENGTH = 77
SHARPEN = 4.0
"""Factor on query and key weights: without it the attention of random weights is nearly uniform and edits are faint."""


def tiny_sd(
    folder: Path | str | None = None, *, prediction_type: str = "epsilon", sample_size: int = 8, seed: int = 0
) -> Any:
    """Build a pipeline with the topology of Stable Diffusion 1.x: 16 transformer blocks on four levels.

    Args:
        folder: Where to save it in diffusers' layout, as safetensors; None saves nothing.
        prediction_type: ``epsilon``, or ``v_prediction`` as in Stable Diffusion 2.x.
        sample_size: Side of the latents that it declares as its own; it takes any size.
        seed: Seed of the weights; the process's own random state is left as it was.

    Returns:
        A ``StableDiffusionPipeline`` in float32 on the CPU, with a DDIM scheduler set as the papers use it.
    """
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=sample_size,
            block_out_channels=(16, 16, 32, 32),
            attention_head_dim=(2, 2, 4, 4),
            cross_attention_dim=32,
            norm_num_groups=8,
        )
        pipe = diffusers.StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=text_encoder(),
            tokenizer=tiny_tokenizer(),
            unet=_condition(unet),
            scheduler=_scheduler(prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return finish(pipe, folder)


def tiny_sdxl(
    folder: Path | str | None = None, *, prediction_type: str = "epsilon", sample_size: int = 8, seed: int = 0
) -> Any:
    """Build a pipeline with the topology of Stable Diffusion XL: three levels, two text encoders, size conditioning.

    The depth of its transformers is (1, 2, 3) in place of (1, 2, 10).

    Args:
        folder: Where to save it in diffusers' layout, as safetensors; None saves nothing.
        prediction_type: ``epsilon`` or ``v_prediction``.
        sample_size: Side of the latents that it declares as its own; it takes any size.
        seed: Seed of the weights; the process's own random state is left as it was.

    Returns:
        A ``StableDiffusionXLPipeline`` in float32 on the CPU.
    """
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=sample_size,
            block_out_channels=(16, 16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3),
            attention_head_dim=(2, 2, 4),
            use_linear_projection=True,
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
            norm_num_groups=8,
        )
        pipe = diffusers.StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=text_encoder(),
            text_encoder_2=text_encoder(projected=True),
            tokenizer=tiny_tokenizer(),
            tokenizer_2=tiny_tokenizer(),
            unet=_condition(unet),
            scheduler=_scheduler(prediction_type),
            add_watermarker=False,
        )
    return finish(pipe, folder)


def tiny_model(
    *, prediction_type: str = "epsilon", sample_size: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Model:
    """Wrap `tiny_sd` as a `Model`, ready for an `EditSession`; a fresh one at every call."""
    pipe = tiny_sd(prediction_type=prediction_type, sample_size=sample_size, seed=seed)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder) if dtype != torch.float32 else ():
        part.to(dtype)
    return Model(pipe, "tiny-sd", family=check_supported(pipe, "tiny-sd"))


def tiny_tokenizer() -> Any:
    """Build a CLIP tokenizer of 77 positions from `WORDS`, the 26 letters, ten digits and some punctuation."""
    from transformers import CLIPTokenizer

    vocab, merges = _vocabulary()
    return CLIPTokenizer(vocab=dict(vocab), merges=list(merges), model_max_length=TEXT_LENGTH)


@cache
def _vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Return (token -> id, merges), learned as byte pair encoding is, until every word of `WORDS` is one token."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.!?'-"
    words = [[*word[:-1], word[-1] + "</w>"] for word in WORDS]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in words for pair in pairwise(word)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), START, END]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, tuple(merges)


def text_encoder(*, projected: bool = False) -> Any:
    """Build a CLIP text encoder for `tiny_tokenizer`, with or without a projected pooled vector."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocab, _ = _vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=vocab[START],
        eos_token_id=vocab[END],
        pad_token_id=vocab[END],
    )
    encoder = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    with torch.no_grad():  # initialised at 0.02: as it is, all words would be nearly the same word
        for name, weight in encoder.named_parameters():
            if name.endswith("token_embedding.weight"):
                weight.mul_(50.0)
    return encoder


def _vae() -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )


def _condition(unet: Any) -> Any:
    """Make random weights behave: sharp attention, a prediction of about unit size that depends on the text."""
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                weight.mul_(SHARPEN)
        unet.conv_out.weight.mul_(3.0)
    return unet


def _scheduler(prediction_type: str) -> Any:
    import diffusers

    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def finish(pipe: Any, folder: Path | str | None) -> Any:
    """Freeze a pipeline's weights, quiet it, and save it if a folder is given."""
    for part in ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        module = getattr(pipe, part, None)
        if module is not None:
            module.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    if folder is not None:
        pipe.save_pretrained(folder, safe_serialization=True)
    return pipe
