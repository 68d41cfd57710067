"""``attnctl sites``: the places of a model where an edit can act."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from typing import get_args

from attnctl.cli.requesting import check_model, wanted_structure
from attnctl.errors import unknown
from attnctl.sites import Kind
from attnctl.terminal import show, show_json, table


def sites(arguments: Namespace) -> int:
    """List a model's sites in execution order.

    Raises:
        AttnctlError: There is no such model, kind or size.
    """
    kinds = get_args(Kind)
    if arguments.kind is not None and arguments.kind not in kinds:
        raise unknown("kind of site", arguments.kind, kinds)
    check_model(arguments)

    model = wanted_structure(arguments)
    size = model.latent_size(arguments.size)
    found = [site for site in model.sites if arguments.kind in (None, site.kind)]
    if arguments.json:
        show_json(
            {
                "model": model.name,
                "latent_size": list(size),
                "sites": [{**asdict(site), "grid": list(site.grid(size))} for site in found],
            }
        )
        return 0
    rows = [
        (s.layer, s.kind, s.block, "x".join(map(str, s.grid(size))), s.downscale, s.heads or "", s.path) for s in found
    ]
    columns = ("layer", "kind", "block", "grid", "downscale", "heads", "path")
    show(table(columns, rows, right=("layer", "grid", "downscale", "heads")))
    return 0
