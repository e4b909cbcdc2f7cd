"""parameters.yml: what is read, and a line for every mistake."""

import pytest

import parameters
from conftest import REPOSITORY
from engine.parameter_files import (
    check_parameters,
    dump_yaml,
    load_parameters,
    migrate,
    override_values,
    parse_yaml,
)
from parameters import MIGRATIONS, VERSION, ParameterError

SHIPPED = REPOSITORY / "parameters.yml"


def test_shipped_files_are_complete(shipped):
    assert shipped().model.titanet.size == "s"
    study = load_parameters(SHIPPED, REPOSITORY / "init" / "librispeech.yml")
    assert (study.dataset.name, study.training.epochs) == ("librispeech", 75)
    assert study.loss.name == "cross_entropy"


def test_later_files_and_overrides_win(tmp_path):
    more = tmp_path / "more.yml"
    more.write_text("training: {epochs: 9, batch_size: 5}\n")
    p = load_parameters(SHIPPED, more, overrides=["training.epochs=11"])
    assert (p.training.epochs, p.training.batch_size) == (11, 5)
    assert p.training.optimizer.name == "muon"


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3", "+1e-3"])
def test_exponents_are_numbers(shipped, text):
    assert shipped(f"training.optimizer.lr={text}").training.optimizer.lr == 0.001


def test_plain_types_make_the_same_parameters(shipped):
    assert check_parameters(shipped().as_dict()) == shipped()


def test_parameters_are_frozen(shipped):
    with pytest.raises(ValueError, match="frozen"):
        shipped().training.epochs = 3


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.optimizer.lr=fast", "training.optimizer.lr", "'fast'"),
        ("training.epochs=0", "training.epochs", "0"),
        ("training.epochs=1.5", "training.epochs", "1.5"),
        ("model.name=ecapa", "model.name", "'ecapa'"),
        ("dataset.download=maybe", "dataset.download", "'maybe'"),
        ("dataset.root=3", "dataset.root", "3"),
        ("dataset.test_fraction=.nan", "dataset.test_fraction", "nan"),
        ("model.dvector.crop_seconds=[]", "model.dvector.crop_seconds", "()"),
        ("training=3", "training", "3"),
        ("run.name=../x", "run.name", "'../x'"),
        ("augmentation.noise.snr_db=[low, 5]", "augmentation.noise.snr_db.0", "'low'"),
        ("front_end.hop_seconds=0.05", "front_end.hop_seconds", "0.05"),
        ("front_end.n_fft=256", "front_end.n_fft", "256"),
        (
            "model.titanet.crop_seconds=[1.0, 0.01]",
            "model.titanet.crop_seconds",
            "0.01",
        ),
        (
            "model.dvector.projection_size=768",
            "model.dvector.projection_size",
            "768",
        ),
        ("dataset.synthetic.min_seconds=9", "dataset.synthetic.min_seconds", "9.0"),
        ("training.epochs", "training.epochs", "no value"),
    ],
)
def test_mistake_in_an_override(shipped, override, key, value):
    with pytest.raises(ParameterError) as caught:
        shipped(override)
    assert str(caught.value).startswith(f"{key}: expected ")
    assert str(caught.value).endswith(f", got {value}")


def test_bounds_and_choices_are_named(shipped):
    for override, expected in (
        ("training.epochs=0", "training.epochs: expected at least 1, got 0"),
        ("seed=-1", "seed: expected at least 0, got -1"),
        (
            "training.on_nonfinite=x",
            "training.on_nonfinite: expected 'stop' or 'skip', got 'x'",
        ),
    ):
        with pytest.raises(ParameterError) as caught:
            shipped(override)
        assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("training.epohcs=3", "training.epochs"),
        ("epochs=3", "training.epochs"),
        ("loss.arcface.raamp=1", "loss.arcface.ramp"),
    ],
)
def test_unknown_key(shipped, override, near):
    with pytest.raises(ParameterError) as caught:
        shipped(override)
    key = override.partition("=")[0]
    assert str(caught.value) == f"{key}: unknown key; did you mean {near}?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", ":2: seed: expected this key once"),
        ("a: [1\nb: 2\n", "expected"),
        ("just text\n", "expected sections such as `training:`, got 'just text'"),
        ("", "expected sections such as `training:`, got None"),
        ("1: 2\n", ":1: 1: expected a name as key"),
        ("when: 2026-99-99\n", "not readable as YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", ":1: could not determine"),
        ("a: " + "[" * 3000, "not readable as YAML"),
        ("a: \x00\n", "not readable as YAML"),
        ("a: !!bool maybe\n", "not readable as YAML"),
        ("a: !!int ''\n", "not readable as YAML"),
        ("a: !!timestamp soon\n", "not readable as YAML"),
        ("loss: {arcface: {a: 1, a: 2}}\n", ":1: a: expected this key once"),
        ("a: &a {<<: *a}\n", ":1: could not determine"),
        ("seed: &a [*a]\n", ":1: found unconstructable recursive node"),
        ("seed: " + "9" * 5000, "not readable as YAML"),
    ],
)
def test_mistake_in_a_file(tmp_path, text, message):
    path = tmp_path / "mine.yml"
    path.write_text(text)
    with pytest.raises(ParameterError) as caught:
        load_parameters(SHIPPED, path)
    assert str(caught.value).startswith((str(path), "seed: "))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_do_not_make_much_of_little(tmp_path):
    path = tmp_path / "mine.yml"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for name, before in zip("bcdefghij", "abcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    path.write_text("\n".join([*lines, "seed: *j"]))
    with pytest.raises(ParameterError):
        load_parameters(SHIPPED, path)
    path.write_text("seed: " + path.read_text()[3:].partition("\n")[0])
    with pytest.raises(ParameterError, match=r"^seed: expected a whole number, got"):
        load_parameters(SHIPPED, path)
    path.write_text("loss: {arcface: &a {scale: 31.0}, cosface: *a}")
    assert load_parameters(SHIPPED, path).loss.cosface.scale == 31.0


def test_messages_are_one_line_of_bounded_length(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text('"se\\ned\\e": 1')
    with pytest.raises(ParameterError, match=r"^se\\ned\\x1b: unknown key"):
        load_parameters(SHIPPED, path)
    path.write_text(f"seed: {'x' * 10**6}")
    with pytest.raises(ParameterError) as caught:
        load_parameters(SHIPPED, path)
    assert str(caught.value).startswith("seed: expected a whole number, got ")
    assert len(str(caught.value)) < 1100


def test_missing_key(tmp_path):
    path = tmp_path / "mine.yml"
    text = SHIPPED.read_text()
    path.write_text(text.replace("  epochs:", "  # epochs:"))
    with pytest.raises(ParameterError) as caught:
        load_parameters(path)
    assert str(caught.value) == ("training.epochs: expected a value, but it is missing")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00\x01"])
def test_unreadable_file(tmp_path, content):
    path = tmp_path / "mine.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ParameterError, match=str(path)):
        load_parameters(path)


MIXTURE = "dataset.mixture=[{label: a, weight: 1, name: folder%s}]"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("dataset.mixture=[]", "dataset.mixture"),
        ("dataset.mixture=3", "dataset.mixture"),
        ("dataset.mixture=[3]", "dataset.mixture.0"),
        ("dataset.mixture=[{label: a, weight: 1}]", "dataset.mixture.0.name"),
        ("dataset.mixture=[{label: a, name: folder}]", "dataset.mixture.0.weight"),
        ("dataset.mixture=[{weight: 1, name: folder}]", "dataset.mixture.0.label"),
        (MIXTURE % ", name: mixture", "dataset.mixture:1: name"),
        (MIXTURE.replace("folder", "mixture") % "", "dataset.mixture.0.name"),
        (MIXTURE.replace("1", "0") % "", "dataset.mixture.0.weight"),
        (MIXTURE.replace("1", ".inf") % "", "dataset.mixture.0.weight"),
        (MIXTURE.replace("label: a", "label: a/b") % "", "dataset.mixture.0.label"),
        (MIXTURE.replace("label: a", "label: ''") % "", "dataset.mixture.0.label"),
        (MIXTURE % "}, {label: a, weight: 1, name: vctk", "dataset.mixture"),
        (
            MIXTURE % "}, {label: b, weight: 1, name: folder, root: 3",
            "dataset.mixture.1.root",
        ),
        (MIXTURE % ", rot: here", "dataset.mixture.0.rot"),
        (MIXTURE % ", vctk: {microphone: mic3}", "dataset.mixture.0.vctk.microphone"),
        (
            MIXTURE % ", synthetic: {min_seconds: 9}",
            "dataset.mixture.0.synthetic.min_seconds",
        ),
        (MIXTURE % ", packs: here", "dataset.mixture.0.packs"),
        (MIXTURE % ", mixture: []", "dataset.mixture.0.mixture"),
    ],
)
def test_mistake_in_a_mixture(shipped, override, key):
    with pytest.raises(ParameterError) as caught:
        shipped("dataset.name=mixture", override)
    assert str(caught.value).startswith(f"{key}: ")


def test_the_corpora_of_a_mixture(shipped):
    p = shipped(
        "dataset.name=mixture",
        "dataset.seed=7",
        "dataset.mixture=[{label: a, weight: 1, name: folder, root: here},"
        "{label: b, weight: 0.5, name: librispeech, seed: 9, librispeech: {test: []}}]",
    )
    assert check_parameters(p.as_dict()) == p
    assert p.dataset.weights == {"a": 1, "b": 0.5}
    a, b = p.dataset.corpora.values()
    assert (a.name, str(a.root), a.seed) == ("folder", "here", 7)
    assert (b.name, str(b.root), b.seed) == ("librispeech", "data", 9)
    assert b.librispeech.train == ("train-clean-100",)
    assert (b.librispeech.test, b.corpora) == ((), {"": b})
    with pytest.raises(ParameterError, match="trials: expected null with a mixture"):
        check_parameters(override_values(p.as_dict(), ["evaluation.trials=t.txt"]))


def test_the_shipped_file_names_every_key_that_was_added():
    shipped = parse_yaml(SHIPPED.read_text(), "shipped")
    for added in MIGRATIONS:
        for key in added:
            section = shipped
            for name in key.split("."):
                assert name in section, key
                section = section[name]


class TestMigrations:
    """A schema that gained `training.epochs` and then `wandb.project`."""

    @pytest.fixture(autouse=True)
    def gained(self, monkeypatch):
        added = ({"training.epochs": 41}, {"wandb.project": "before"})
        monkeypatch.setattr(parameters, "MIGRATIONS", added)
        monkeypatch.setattr(parameters, "VERSION", 3)

    def saved(self, shipped, version):
        values = shipped("training.epochs=7", "wandb.project=mine").as_dict()
        assert values.pop("version") == 3
        if version < 3:
            del values["wandb"]["project"]
        if version < 2:
            del values["training"]["epochs"]
        return values | {"version": version}

    @pytest.mark.parametrize(
        ("version", "epochs", "project"),
        [(1, 41, "before"), (2, 7, "before"), (3, 7, "mine")],
    )
    def test_bring_older_parameters_up(
        self, shipped, tmp_path, version, epochs, project
    ):
        values = self.saved(shipped, version)
        path = tmp_path / "parameters.yml"
        path.write_text(dump_yaml(values))
        for p in (
            check_parameters(values),
            load_parameters(path),
            load_parameters(SHIPPED, path),  # nothing of today's
        ):
            assert (p.training.epochs, p.wandb.project) == (epochs, project)

    def test_what_says_no_version_is_of_the_first(self, shipped):
        values = self.saved(shipped, 1)
        del values["version"]
        assert check_parameters(values).training.epochs == 41

    def test_a_key_that_its_version_has_is_not_made_up(self, shipped):
        values = self.saved(shipped, 1) | {"version": 3}
        with pytest.raises(ParameterError, match="it is missing"):
            check_parameters(values)

    @pytest.mark.parametrize("version", [0, 4, -1, True, 1.0, "1", None])
    def test_other_versions_are_refused(self, shipped, version):
        values = shipped().as_dict() | {"version": version}
        with pytest.raises(ParameterError, match="version: expected"):
            check_parameters(values)


def test_values_carry_the_version(shipped):
    assert shipped().as_dict()["version"] == VERSION
    assert parse_yaml(shipped().as_yaml(), "")["version"] == VERSION
    assert migrate(shipped().as_dict()) == shipped().as_dict()
