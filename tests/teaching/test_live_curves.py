"""Curves in a notebook cell."""

from unittest.mock import Mock

import pytest

from teaching.live_curves import LiveCurves

EPOCHS = [{"epoch": n, "train/loss": 1.0 / n, "train/accuracy": 0.5} for n in (1, 2, 3)]


@pytest.mark.parametrize("num_trained", [0, 1, 3])
def test_live_curves_grow_in_their_place_and_say_what_was_trained_now(num_trained):
    curves = LiveCurves("run", handle := Mock())
    for epoch in EPOCHS[3 - num_trained :]:
        curves(epoch)
    said = curves.finish(EPOCHS)
    assert (f"{num_trained} epochs trained" in said) == (num_trained > 0)
    assert ("after 2 of an earlier start" in said) == (num_trained == 1)
    calls = ["display", "update", "update", "update"]
    assert [name for name, _, _ in handle.mock_calls] == calls[: num_trained + 1]
    lines = [figure.axes[0].get_lines()[0] for _, (figure,), _ in handle.mock_calls]
    counts = [*range(1, num_trained + 1), 3]
    assert [len(line.get_xdata()) for line in lines] == counts
