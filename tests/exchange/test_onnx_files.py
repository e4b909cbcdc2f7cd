"""ONNX files against torch, by onnxruntime and by sherpa-onnx."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from commands.parser import main
from conftest import CPU, RATE, said
from exchange.onnx_files import INPUTS, OUTPUTS, OnnxError, save_onnx
from runs.speaker_model import build_model
from voices import Voices

SPEECH = torch.from_numpy(said(0, 0)) / 2**15


@pytest.fixture
def build(miniature):
    def build(override: str = "model.name=titanet"):
        return build_model(miniature(override), ["a", "b"], {"": "none"}, CPU).eval()

    return build


@pytest.fixture
def path(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return tmp_path / "model.onnx"


@torch.inference_mode()
@pytest.mark.parametrize("normalization", ["mean", "per_feature"])
def test_file_agrees_with_torch(build, path, normalization):
    import onnxruntime

    model = build(f"front_end.normalization={normalization}")
    model.backend = replace(model.backend, centre=torch.ones(24))
    agreement = save_onnx(path, model, "abc", SPEECH)
    assert agreement.largest_difference < 1e-4
    assert agreement.smallest_cosine > 1 - 1e-6
    assert agreement.num_vectors == 10
    session = onnxruntime.InferenceSession(path)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["comment"] == "digest abc"
    assert float(metadata["smallest_cosine"]) == agreement.smallest_cosine
    # Shapes that the export has not seen, against the whole model.
    for lengths in ([4900], [16_000, 8000, 5000], [40_000] * 5):
        cut = [SPEECH[row * 100 :][:n] for row, n in enumerate(lengths)]
        waveforms, sizes = pad_sequence(cut, batch_first=True), torch.tensor(lengths)
        features = model.front_end.log_mel(waveforms, sizes).numpy()
        values = features, (sizes // 160).numpy()
        unit, plain = session.run(OUTPUTS, dict(zip(INPUTS, values, strict=True)))
        assert np.abs(plain - model(waveforms, sizes).numpy()).max() < 1e-4
        assert np.linalg.norm(unit, axis=1) == pytest.approx(np.ones(len(lengths)))


def test_sherpa_reads_it(path):
    sherpa = pytest.importorskip("sherpa_onnx")
    voices = Voices.load()
    save_onnx(path, voices.model, voices.digest, SPEECH)
    config = sherpa.SpeakerEmbeddingExtractorConfig(model=str(path))
    extractor = sherpa.SpeakerEmbeddingExtractor(config)
    assert extractor.dim == 192
    for speaker in (0, 1):
        speech = said(speaker, 1).astype(np.float32) / 2**15
        stream = extractor.create_stream()
        stream.accept_waveform(RATE, speech)
        stream.input_finished()
        vector = np.array(extractor.compute(stream))
        (ours,) = voices.embed([speech])
        assert vector @ ours / np.linalg.norm(vector) > 0.8  # its features differ


def test_command(path, capsys):
    assert main(["export", str(path)]) == 0
    assert "largest difference" in capsys.readouterr().out
    assert path.exists()
    assert main(["export", str(path), "--check", str(path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_other_encoders_and_missing_packages_are_refused(build, monkeypatch, tmp_path):
    with pytest.raises(OnnxError, match="expected titanet, got dvector"):
        save_onnx(tmp_path / "x.onnx", build("model.name=dvector"), "abc", SPEECH)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(OnnxError, match="onnxscript"):
        save_onnx(tmp_path / "x.onnx", build(), "abc", SPEECH)
