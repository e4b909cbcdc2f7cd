"""Whether the channels of a file are one recording.

blocks [N, C] -> `Channels.add` -> `Channels.finding` -> the channel to take, a warning

N samples, C channels.
"""

import numpy as np

LEVEL_SECONDS = 0.05  # of the frames whose levels are compared between channels
DEAD_POWER = 1e-5  # of the loudest channel's; a channel below it holds nothing
CANCELLED_POWER = 0.25  # of the sum, relative to channels that have nothing in common
# Correlation of levels. Microphones in one room have 0.8 and more. Two people who take
# turns have less than 0.55 even if a third of the amplitude leaks into the other side.
DIFFERENT = 0.6


class Moments:
    """Sums over vectors [C], which may be too many for memory, for their covariance."""

    def __init__(self) -> None:
        self.count, self.sum, self.products = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Add vectors, float64 [values, C]."""
        self.count += len(values)
        self.sum = self.sum + values.sum(0)
        self.products = self.products + values.T @ values

    def covariance(self) -> np.ndarray:
        """Return the covariance of all vectors, [C, C]."""
        mean = self.sum / self.count
        return self.products / self.count - np.outer(mean, mean)


class Channels:
    """What the channels of a file have in common, found block by block.

    C channels. Two microphones hear a person at the same times, so the levels of their
    frames go together even where a delay parts their samples.
    """

    def __init__(self, rate: int) -> None:
        self.frame = max(1, round(LEVEL_SECONDS * rate))  # samples
        self.samples, self.levels = Moments(), Moments()

    def add(self, block: np.ndarray) -> None:
        """Add samples [N, C]; in all blocks but the last, N is a number of frames."""
        with np.errstate(all="ignore"):  # what is not finite is refused later
            block = block.astype(np.float64)
            self.samples.add(block)
            whole = block[: len(block) - len(block) % self.frame]
            frames = whole.reshape(-1, self.frame, block.shape[1])
            self.levels.add(frames.std(1))

    def finding(self) -> tuple[int | None, str | None]:
        """Return the channel to take instead of the mean, and what is to be said."""
        if not self.samples.count:
            return None, None
        with np.errstate(all="ignore"):
            covariance = self.samples.covariance()
            power = covariance.diagonal()
            live = np.flatnonzero(power > DEAD_POWER * power.max())
            if not len(live):
                return None, None
            first = int(live[0])
            if len(live) == 1:
                return first, f"of {len(power)} channels only channel {first} has sound"
            if covariance.sum() < CANCELLED_POWER * power.sum():
                return first, f"channels cancel each other: channel {first} is taken"
            alike = np.maximum(
                np.abs(_correlations(covariance)),
                _correlations(self.levels.covariance()) if self.levels.count else 0,
            )[np.ix_(live, live)]
        if alike.min() < DIFFERENT:
            one, other = live[np.argwhere(alike < DIFFERENT)[0]]
            return None, (
                f"channels differ, {one} and {other} as those of two people do, and "
                "their mean is taken: choose one with --channel, or `channel` in a "
                "manifest"
            )
        return None, None


def _correlations(covariance: np.ndarray) -> np.ndarray:
    """Return [C, C]; a channel that never changes has a correlation of 0."""
    deviations = np.sqrt(covariance.diagonal())
    return np.nan_to_num(covariance / np.outer(deviations, deviations))
