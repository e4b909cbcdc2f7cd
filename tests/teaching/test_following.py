"""Three utterances are followed by the rules that the notebook states."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dataset import prepare
from runs.speaker_model import build_model
from teaching import following, remarks
from teaching.anatomy import Inside, look_inside
from transforms import SpecAugment


@pytest.fixture
def splits(miniature):
    parameters = miniature("dataset.synthetic.num_speakers=12")
    return prepare(parameters.dataset, parameters.front_end)


@pytest.fixture
def model(miniature, splits):
    cpu = torch.device("cpu")
    return build_model(miniature(), splits.speakers, splits.pack.digests, cpu).eval()


def test_a_twice_and_another_of_the_same_gender(splits):
    entries = list(splits.pack.entries)
    people = {entries[i].speaker: [] for i in splits.test}
    for index in splits.test:
        people[entries[index].speaker].append(index)
    (first, second, third), sizes = people, iter(range(30_000, 10_000, -700))
    for speaker, gender in ((first, "f"), (second, "m"), (third, "f")):
        for index in people[speaker]:
            entry = replace(entries[index], gender=gender, samples=next(sizes))
            entries[index] = entry
    packed = replace(splits.pack, entries=entries)
    trio = following.choose_trio(replace(splits, pack=packed), splits.test)
    wanted = [*people[first][:2], people[third][0]]
    size = entries[wanted[2]].samples
    for x, index in zip(trio.waveforms.values(), wanted, strict=True):
        begin = entries[index].offset + (entries[index].samples - size) // 2
        assert torch.equal(x * 2**15, packed.samples[begin : begin + size].float())
    assert len(trio.others) == 1 + len(splits.speakers)  # few: training speakers too
    assert sorted(trio.blind.values()) == ["A", "A again", "B"]


def test_the_same_utterance_stays_the_same(splits, model):
    trio = following.choose_trio(splits, splits.test)
    a, *_ = trio.waveforms.values()
    b = trio.waveforms["B"]
    journey = following.follow(model, replace(trio, waveforms={"A": a, "2": a, "B": b}))
    assert [*journey.again.values()] == pytest.approx([1] * 8, abs=1e-5)
    embeddings = torch.nn.functional.normalize(model(torch.stack([a, b])).detach())
    expected = float(embeddings[0] @ embeddings[1])
    assert journey.other["the embedding"] == pytest.approx(expected, abs=1e-5)
    lines = following.draw_journey(journey).axes[0].get_lines()
    assert [*lines[1].get_ydata()] == [*journey.other.values()]
    (axes,) = following.draw_circle(journey, 0.5).axes
    shown = [text.get_text() for text in axes.texts]
    assert {"threshold 0.50", "A", "A again: 0°, 1.00"} <= set(shown)
    assert "B at" in remarks.on_journey(journey)


def test_stages_of_the_front_end(splits, model):
    trio = following.choose_trio(splits, splits.test)
    hide = SpecAugment(model.config.augmentation.spec_augment)
    waveforms = trio.waveforms.values()
    stages = following.front_end_stages(model.front_end, waveforms, hide)
    _, log_mel, normalised, masked = (images[1] for images in stages.values())
    expected = log_mel - log_mel.mean(1, keepdims=True)
    expected /= log_mel.std(1, keepdims=True, ddof=1) + 1e-5
    np.testing.assert_allclose(normalised, expected, atol=1e-4)
    hidden = masked != normalised
    assert hidden.any()
    assert (masked[hidden] == 0).all()
    axes = following.draw_front_end(stages, 1.0, 8.0).axes
    assert [a.get_title(loc="left") for a in axes[:3]] == ["A", "A again", "B"]
    assert axes[0].get_ylim() == (0, 8)


def inside(gate: float, mean: float) -> Inside:
    frames = np.zeros((10, 2), np.float32)
    attention = np.full((10, 2), 0.1, np.float32)
    pooled = np.array([mean, 1, 1, 1], np.float32)
    return Inside([np.full(4, gate)], frames, attention, pooled)


def test_numbers_beside_the_figures():
    insides = {
        "A": inside(0, 9),
        "A again": inside(0.25, 8),
        "B": inside(0.5, 5),
    }
    assert following.gate_distances(insides, 0) == (0.25, 0.5)
    axes = following.draw_gates(insides, ["block"]).axes
    titles = [a.get_title(loc="left") for a in axes]
    assert titles == [f"block\n|difference| {d}" for d in ("0.250", "0.500")]
    assert remarks.on_gates(insides, ["block"]).endswith("than to B's in block.")
    assert remarks.on_pooling(insides, [0]).startswith("In 1 of these 1 channels")
    features = dict.fromkeys(insides, np.eye(3, 10, dtype=np.float32))
    axes = following.draw_attention(features, insides, 1.0, "title").axes
    np.testing.assert_allclose(axes[3].get_lines()[0].get_ydata(), 1, rtol=1e-6)
    assert "gets 1.00 even shares" in remarks.on_attention(features, insides)
    axes = following.draw_pooling(insides, [0], 1.0).axes
    assert axes[0].texts[0].get_text() == "9.00 ± 1.00"
    pooled = np.array([[1, 5, 2, 9], [1, 6, 4, 9.0]])
    assert following.telling_channels(pooled, 2) == [1, 0]


def test_gates_are_those_of_the_model(splits, model):
    x = following.choose_trio(splits, splits.test).waveforms["A"]
    seen = look_inside(model.encoder, model.front_end(x[None])[0])
    described = following.describe(model, x)
    np.testing.assert_allclose(described["the pooling"], seen.pooled, atol=1e-6)
    frames = torch.from_numpy(seen.frames)
    expected = torch.cat([frames.mean(0), frames.std(0)])
    torch.testing.assert_close(described["the epilog"], expected)
