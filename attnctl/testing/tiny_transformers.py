"""Tiny but real pipelines of transformers: Stable Diffusion 3 and 3.5, and FLUX.1, block for block what people use.

What `attnctl.testing.tiny` says of its own holds here too.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch

from attnctl.testing.tiny import SHARPEN, WORDS, finish, text_encoder, tiny_tokenizer

CHANNELS = 16
JOINT_WIDTH = 80
"""Of SD3's text tokens: wider than both CLIP encoders side by side, so their part is padded, as in the real one."""


def tiny_sd3(
    folder: Path | str | None = None, *, dual: bool = True, t5: bool = True, sample_size: int = 16, seed: int = 0
) -> Any:
    """Build a pipeline with the topology of Stable Diffusion 3: six joint blocks, three text encoders.

    Args:
        folder: Where to save it in diffusers' layout, as safetensors; None saves nothing.
        dual: As in 3.5: a second attention among image tokens in the first three blocks, and norms of queries and
            keys. Otherwise as in 3.
        t5: Whether it has the third text encoder. A folder without it loads only if ``text_encoder_3=None`` and
            ``tokenizer_3=None`` are given.
        sample_size: Side of the latents that it declares as its own; it takes any even size up to 48.
        seed: Seed of the weights; the process's own random state is left as it was.

    Returns:
        A ``StableDiffusion3Pipeline`` in float32 on the CPU, with the flow scheduler of the released models.
    """
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=sample_size,
            patch_size=2,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=6,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=JOINT_WIDTH,
            caption_projection_dim=64,
            pooled_projection_dim=64,
            pos_embed_max_size=24,
            dual_attention_layers=(0, 1, 2) if dual else (),
            qk_norm="rms_norm" if dual else None,
        )
        pipe = diffusers.StableDiffusion3Pipeline(
            transformer=_enliven(transformer, norms=3.5, gates=4.0, text=3.0, out=2.0),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(scaling=1.5305, shift=0.0609),
            text_encoder=text_encoder(projected=True),
            tokenizer=tiny_tokenizer(),
            text_encoder_2=text_encoder(projected=True),
            tokenizer_2=tiny_tokenizer(),
            text_encoder_3=_t5_encoder(JOINT_WIDTH) if t5 else None,
            tokenizer_3=tiny_t5_tokenizer() if t5 else None,
        )
    return finish(pipe, folder)


def tiny_flux(folder: Path | str | None = None, *, guidance_embeds: bool = True, seed: int = 0) -> Any:
    """Build a pipeline with the topology of FLUX.1: three double and five single blocks, rotary positions.

    Args:
        folder: Where to save it in diffusers' layout, as safetensors; None saves nothing.
        guidance_embeds: Whether guidance is a number that the model is told, as in dev; schnell knows none.
        seed: Seed of the weights; the process's own random state is left as it was.

    Returns:
        A ``FluxPipeline`` in float32 on the CPU, with the flow scheduler of dev (or schnell).
    """
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * CHANNELS,
            num_layers=3,
            num_single_layers=5,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=48,
            pooled_projection_dim=32,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        )
        pipe = diffusers.FluxPipeline(
            scheduler=scheduler,
            vae=_vae(scaling=0.3611, shift=0.1159),
            text_encoder=text_encoder(),
            tokenizer=tiny_tokenizer(),
            text_encoder_2=_t5_encoder(48),
            tokenizer_2=tiny_t5_tokenizer(),
            transformer=_enliven(transformer, norms=2.0, gates=3.0, values=2.5, out=2.0),
        )
    return finish(pipe, folder)


def tiny_t5_tokenizer() -> Any:
    """Build a T5 tokenizer from `WORDS`, letters, digits and punctuation: no start token, ``</s>`` at the end."""
    from transformers import T5TokenizerFast

    letters = f"{string.ascii_lowercase}{string.digits},.!?'-"
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
    vocab += [(f"\u2581{word}", -4.0) for word in WORDS if len(word) > 1] + [(letter, -6.0) for letter in letters]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=512)


def _t5_encoder(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tiny_t5_tokenizer()),
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def _vae(*, scaling: float, shift: float) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _enliven(
    transformer: Any, *, norms: float, gates: float, out: float, values: float = 1.0, text: float = 1.0
) -> Any:
    """Make random weights behave: sharp attention, gates that let it through, a prediction of about unit size.

    Where queries and keys are normalised, factors on their projections would be undone: the norms' own weights count.
    """
    queries_and_keys = ("to_q.weight", "to_k.weight", "add_q_proj.weight", "add_k_proj.weight")
    norm_weights = ("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight")
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if name.endswith(norm_weights):
                weight.mul_(norms)
            elif name.endswith(queries_and_keys):
                weight.mul_(SHARPEN)
            elif name.endswith(".linear.weight") and "norm" in name:
                weight.mul_(gates)
            elif name.endswith(("to_v.weight", "to_out.0.weight")):
                weight.mul_(values)
        transformer.context_embedder.weight.mul_(text)
        transformer.proj_out.weight.mul_(out)
    return transformer
