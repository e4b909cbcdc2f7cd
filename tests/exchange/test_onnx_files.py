"""ONNX files against torch, by onnxruntime and by sherpa-onnx."""

import sys

import numpy as np
import pytest
import torch

from commands.parser import main
from conftest import CPU
from exchange.onnx_files import INPUTS, OUTPUTS, OnnxError, save_onnx
from runs.speaker_model import build_model
from speech.synthetic import SyntheticUtterance
from voices import Voices


def said(speaker: int, seconds: float) -> torch.Tensor:
    voice = SyntheticUtterance(speaker, index=0, seconds=seconds, seed=0)
    return torch.from_numpy(voice.render(16_000)) / 32_768


@pytest.fixture
def model(miniature):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return build_model(miniature(), ["a", "b"], {"": "none"}, CPU).eval()


@pytest.mark.parametrize("normalization", ["mean", "per_feature"])
def test_file_agrees_with_torch(model, miniature, tmp_path, normalization):
    import onnxruntime

    p = miniature(f"front_end.normalization={normalization}")
    model = build_model(p, ["a", "b"], {"": "none"}, CPU).eval()
    path = tmp_path / "model.onnx"
    agreement = save_onnx(path, model, "abc", said(0, 4.0))
    assert agreement.largest_difference < 1e-4
    assert agreement.smallest_cosine > 1 - 1e-6
    assert agreement.num_vectors == 10
    session = onnxruntime.InferenceSession(path)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["comment"] == "digest abc"
    assert float(metadata["smallest_cosine"]) == agreement.smallest_cosine
    # Shapes that the export has not seen, against the whole model.
    for lengths in ([4900], [16_000, 8000, 5000], [48_000] * 5):
        waveforms = torch.zeros(len(lengths), max(lengths))
        for row, length in enumerate(lengths):
            waveforms[row, :length] = said(row, 3.0)[:length]
        sizes = torch.tensor(lengths)
        features = model.front_end.log_mel(waveforms, sizes).numpy()
        values = features, (sizes // 160).numpy()
        unit, plain = session.run(OUTPUTS, dict(zip(INPUTS, values, strict=True)))
        with torch.inference_mode():
            expected = model(waveforms, sizes).numpy()
        assert np.abs(plain - expected).max() < 1e-4
        assert np.linalg.norm(unit, axis=1) == pytest.approx(np.ones(len(lengths)))


def test_dvector_is_refused(model, miniature, tmp_path):
    model = build_model(miniature("model.name=dvector"), ["a", "b"], {"": "none"}, CPU)
    with pytest.raises(OnnxError, match="expected titanet, got dvector"):
        save_onnx(tmp_path / "model.onnx", model, "abc", said(0, 1.0))


def test_sherpa_reads_it(model, tmp_path):
    sherpa = pytest.importorskip("sherpa_onnx")
    voices = Voices.load()
    path = tmp_path / "model.onnx"
    save_onnx(path, voices.model, voices.digest, said(0, 2.0))
    config = sherpa.SpeakerEmbeddingExtractorConfig(model=str(path))
    extractor = sherpa.SpeakerEmbeddingExtractor(config)
    assert extractor.dim == 192
    for speaker in (0, 1):
        stream = extractor.create_stream()
        stream.accept_waveform(16_000, said(speaker, 4.0).numpy())
        stream.input_finished()
        vector = np.array(extractor.compute(stream))
        (ours,) = voices.embed([said(speaker, 4.0).numpy()])
        assert vector @ ours / np.linalg.norm(vector) > 0.8  # its features differ


def test_command(model, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    assert main(["export", str(path)]) == 0
    assert "largest difference" in capsys.readouterr().out
    assert path.exists()
    assert main(["export", str(path), "--check", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_missing_package_is_said(miniature, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    model = build_model(miniature(), ["a", "b"], {"": "none"}, CPU)
    with pytest.raises(OnnxError, match="onnxscript"):
        save_onnx(tmp_path / "model.onnx", model, "abc", said(0, 1.0))
