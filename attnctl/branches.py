"""Names for batch rows: lanes (pictures that denoise together) times guidance halves. Nobody writes ``chunk(2)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from attnctl.errors import SelectionError, unknown

if TYPE_CHECKING:
    from torch import Tensor

Half = Literal["uncond", "cond"]
HALVES: tuple[Half, Half] = ("uncond", "cond")


@dataclass(frozen=True, order=True)
class Row:
    """One batch row: a lane under one half of classifier-free guidance."""

    lane: str
    half: Half


@dataclass(frozen=True)
class Branches:
    """The rows of one denoiser call, in batch order.

    Attributes:
        rows: The B physical rows.
        aliases: Rows that would be numerically equal to a physical row (a lane whose text is the same in both
            halves) and are served by it instead of being computed again.
    """

    rows: tuple[Row, ...]
    aliases: Mapping[Row, Row] = field(default_factory=dict)

    def index(self, lane: str, half: Half) -> int:
        """Return the batch index of a lane's half.

        Raises:
            SelectionError: The call has no such row; the message lists the rows it has.
        """
        row = Row(lane, half)
        row = self.aliases.get(row, row)
        try:
            return self.rows.index(row)
        except ValueError:
            raise unknown(
                "row", f"{lane}/{half}", [f"{r.lane}/{r.half}" for r in self.rows], cls=SelectionError
            ) from None

    def __contains__(self, row: Row) -> bool:
        return self.aliases.get(row, row) in self.rows

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class LaneTensors:
    """Tensors by lane name, as an edit sees them: ``x["self"]``, ``x["source"]``, ``x["edit[1]"]``.

    Attributes:
        lane: The lane that ``"self"`` stands for.
        source: The lane that ``"source"`` stands for.
        get: Fetches the tensor of a lane by its real name; what is never asked for is never computed.
    """

    lane: str
    source: str
    get: Callable[[str], Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.get(resolve_lane(name, self.lane, self.source))


def resolve_lane(name: str, lane: str, source: str) -> str:
    """Turn ``"self"`` and ``"source"`` into real lane names; any other name is a real one already."""
    return {"self": lane, "source": source}.get(name, name)
