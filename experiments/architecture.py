"""Draw TitaNet-S as the opening figure of README, from the model that `src` builds.

    python experiments/architecture.py [assets/models/titanet-architecture.png]

The upper row leads from a recording to its embedding, the lower one opens a mega block.
Channels, kernels and numbers of weights are read from the model.
"""

import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from engine.parameter_files import SHIPPED, load_parameters
from models import Block, TitaNet
from parameters import FrontEndParameters
from reports.style import BLUE, GREEN, ORANGE, PINK, SKY, STYLE
from speech.packs import FULL_SCALE
from speech.synthetic import SyntheticUtterance
from transforms import FrontEnd

PICTURE = SHIPPED.parent / "assets" / "models" / "titanet-architecture.png"
INCHES, UNITS = (7.0, 5.0), (14.0, 10.0)  # of the figure: two units are an inch
DOTS_PER_INCH = 200
# Heights in units: the upper row and its words, the lower row and its skip connection.
UPPER, WORDS, LOWER, SKIP = 7.55, 6.0, 2.7, 0.75
OPENED = 2  # of the mega blocks
LINE, GREY, FILL = "0.35", "0.5", 0.18


def box(
    axes: Axes, centre: tuple[float, float], size: tuple[float, float], *look: str
) -> None:
    """Draw a box around its text. A look is the text and the colour."""
    (x, y), (width, height), (text, colour) = centre, size, look
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            "round,pad=0,rounding_size=0.12",
            facecolor=[1 - FILL * (1 - c) for c in matplotlib.colors.to_rgb(colour)],
            edgecolor=colour,
            zorder=2,
        )
    )
    axes.text(x, y, text, ha="center", va="center", linespacing=1.3)


def arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """Draw a line through the points that ends in a head."""
    axes.plot(*zip(*points, strict=True), color=LINE, linewidth=1.2)
    head = {"arrowstyle": "-|>", "color": LINE, "mutation_scale": 9}
    head |= {"shrinkA": 0, "shrinkB": 0}
    axes.annotate("", points[-1], points[-2], arrowprops=head)


def note(axes: Axes, x: float, y: float, text: str, **look: str) -> None:
    """Write a few words that begin below (x, y)."""
    axes.text(x, y, text, ha="center", va="top", fontsize=8.5, linespacing=1.3, **look)


def count(module: nn.Module) -> str:
    """Return a module's number of weights as the figure shows it."""
    number = sum(weight.numel() for weight in module.parameters())
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number / 1e3:.0f} k"


def features_of_a_voice(parameters: FrontEndParameters) -> Tensor:
    """Return the log-mel features [M, T] of a synthetic voice."""
    spoken = SyntheticUtterance(speaker=1, index=0, seconds=1.2, seed=1)
    samples = torch.from_numpy(spoken.render(parameters.sample_rate)).float()
    features, _ = FrontEnd(parameters).eval()(samples[None] / FULL_SCALE)
    return features[0]


def draw_encoder(axes: Axes, encoder: TitaNet, features: Tensor) -> None:
    """Draw the upper row: features, blocks, pooling, embedding and loss."""
    extent = (0.2, 1.5, UPPER - 0.7, UPPER + 0.7)
    axes.imshow(features, extent=extent, aspect="auto", origin="lower", cmap="GnBu")
    note(axes, 0.85, WORDS, f"log-mel\n{len(features)} bands")
    left = 1.5
    for name, x, width, block in zip(
        ("prolog", "1", "2", "3", "epilog"),
        (2.5, 3.9, 5.2, 6.5, 7.9),
        (1.3, 0.9, 0.9, 0.9, 1.3),
        encoder.blocks,
        strict=True,
    ):
        last = block.sub_blocks[-1]
        channels, kernel = last.pointwise.out_features, last.depthwise.weight.shape[-1]
        arrow(axes, (left, UPPER), (x - width / 2, UPPER))
        box(axes, (x, UPPER), (width, 1.7 if channels < 1000 else 2.6), name, BLUE)
        left = x + width / 2
        words = f"kernel {kernel}\n{channels} wide\n{count(block)}"
        note(axes, x, WORDS, words)
    note(axes, 5.2, UPPER + 1.5, "mega blocks")
    arrow(axes, (left, UPPER), (8.9, UPPER))
    pooling = "attentive\nstatistics\npooling"
    box(axes, (9.75, UPPER), (1.7, 2.6), pooling, ORANGE)
    note(axes, 9.75, WORDS, f"mean and\ndeviation\n{count(encoder.pooling)}")
    arrow(axes, (10.6, UPPER), (11.15, UPPER))
    numbers = torch.rand(16, 1, generator=torch.Generator().manual_seed(1))
    extent = (11.2, 11.6, UPPER - 1.3, UPPER + 1.3)
    axes.imshow(numbers, extent=extent, aspect="auto", cmap="Greens", vmin=-0.2)
    size = encoder.embedding_size
    words = f"embedding\n{size} numbers\n{count(encoder.embedding)}"
    note(axes, 11.4, WORDS, words)
    arrow(axes, (11.65, UPPER), (12.2, UPPER))
    box(axes, (13.0, UPPER), (1.6, 1.7), "loss,\nsuch as\nArcFace", GREY)
    note(axes, 13.0, WORDS, "in training\nonly")


def draw_block(axes: Axes, block: Block) -> None:
    """Draw the lower row: sub-blocks, squeeze and excite, and the skip connection."""
    axes.fill((0.1, 13.9, 13.9, 0.1), (0.15, 0.15, 4.55, 4.55), color=BLUE, alpha=0.06)
    for x, corner in ((4.65, 0.1), (5.75, 13.9)):
        axes.plot((x, corner), (WORDS - 1.05, 4.55), color=BLUE, linewidth=0.8)
    x, gap, activation = 0.6, 0.3, ((1.15, 1.2), "ReLU\ndropout", GREY)
    sub_block = ((1.75, 2.5), "", SKY)
    wide, narrow = block.squeeze_excitation.squeeze.weight.shape[::-1]
    gates = ((1.4, 2.5), "squeeze\nand\nexcite", PINK)
    note(axes, 1.5, 4.35, f"mega block {OPENED}")
    between = [sub_block, activation] * len(block.sub_blocks)
    for size, text, colour in (*between[:-1], gates):
        arrow(axes, (x - gap, LOWER), (x, LOWER))
        middle = x + size[0] / 2
        box(axes, (middle, LOWER), size, text, colour)
        if not text:
            for name, y in (("depthwise", 0.8), ("pointwise", 0), ("batch norm", -0.8)):
                box(axes, (middle, LOWER + y), (1.6, 0.6), name, BLUE)
        x += size[0] + gap
    note(axes, x - gap - 0.7, 4.35, f"{wide} → {narrow} → {wide}")
    arrow(axes, (x - gap, LOWER), (x, LOWER))
    axes.text(x + 0.2, LOWER, "+", ha="center", va="center", fontsize=15, color=GREEN)
    arrow(axes, (x + 0.4, LOWER), (x + 0.4 + gap, LOWER))
    size, text, colour = activation
    box(axes, (x + 0.4 + gap + size[0] / 2, LOWER), size, text, colour)
    x_end = x + 0.4 + gap + size[0]
    arrow(axes, (x_end, LOWER), (x_end + gap, LOWER))
    note(axes, 1.9, SKIP + 0.45, "skip connection")
    arrow(axes, (0.4, LOWER), (0.4, SKIP), (x + 0.2, SKIP), (x + 0.2, LOWER - 0.3))
    for name, middle in (("pointwise", 5.0), ("batch norm", 7.0)):
        box(axes, (middle, SKIP), (1.6, 0.6), name, GREEN)


def main(target: Path) -> None:
    """Draw the figure."""
    parameters = load_parameters(SHIPPED)
    encoder = TitaNet(parameters.model.titanet, parameters.front_end.num_mels)
    with matplotlib.rc_context(STYLE | {"font.size": 9.5}):
        figure = Figure(figsize=INCHES, layout="none")
        axes = figure.add_axes((0, 0, 1, 1))
        draw_encoder(axes, encoder, features_of_a_voice(parameters.front_end))
        draw_block(axes, encoder.blocks[OPENED])
        name = f"TitaNet-S, {count(encoder)} weights"
        axes.text(0.2, UNITS[1] - 0.25, name, va="top", fontsize=11, weight="bold")
        axes.set(xlim=(0, UNITS[0]), ylim=(0, UNITS[1]))
        axes.axis("off")
        figure.savefig(target, dpi=DOTS_PER_INCH)


if __name__ == "__main__":
    main(Path(*sys.argv[1:2] or [PICTURE]))
