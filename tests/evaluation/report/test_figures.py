"""Scales of the figure."""

import pytest

from attnctl_evaluation.report.figures import _Scale


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (18.6, 26.2, ["19", "20", "21", "22", "23", "24", "25", "26"]),
        (-0.01, 0.19, ["0.000", "0.025", "0.050", "0.075", "0.100", "0.125", "0.150", "0.175"]),
        (-1.1, 1.1, ["\u22121.00", "\u22120.75", "\u22120.50", "\u22120.25", "0.00", "0.25", "0.50", "0.75", "1.00"]),
    ],
)
def test_ticks_are_round_and_lie_inside(low: float, high: float, texts: list[str]) -> None:
    ticks = _Scale(low, high, 0.0, 100.0).ticks()
    assert [text for _, text in ticks] == texts
    assert all(0 <= place <= 100 for place, _ in ticks)
