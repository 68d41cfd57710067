"""Recordings in a run's folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from attnctl.model import Model
from attnctl.recording import Recording
from attnctl.registry import Registry
from attnctl.request import Edit, EditRequest
from attnctl.runs.carrying import carry_out
from attnctl.runs.output import RunOutput
from attnctl.sites import Where


def test_recordings_are_kept_beside_the_pictures(shared_tiny_model: Model, tmp_path: Path) -> None:
    recording = Recording("maps", Where("cross", layers=(3,)), reduce=frozenset({"steps"}))
    request = EditRequest((Edit("a blue cat", "fpe"),), source_prompt="a red cat", steps=2, recordings=(recording,))
    output = RunOutput(str(tmp_path / "run"), label="run", seed=0, force=False)
    carried = carry_out(request, shared_tiny_model, Registry.load(), output)
    file = tmp_path / "run" / carried.manifest.files["recordings"].file
    (name,) = tensors = load_file(file)
    assert name == "maps/down_blocks.1.attentions.1.transformer_blocks.0.attn2/mean"
    assert torch.equal(tensors[name], carried.result.recordings["maps"].at())
