"""parameters.yml: what is read, and a line for every mistake."""

import re
from functools import reduce
from itertools import chain
from operator import getitem

import pytest

import parameters
from engine import parameter_files
from engine.parameter_files import SHIPPED, check_parameters, dump_yaml, load_parameters
from parameters import MIGRATIONS, VERSION, ParameterError


@pytest.fixture
def load(tmp_path):
    """Loads a text, or bytes, as a file after others."""
    path = tmp_path / "mine.yml"

    def load(content, *others):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_parameters(*others, path)

    load.path = path
    return load


def refusal(load, *arguments) -> str:
    with pytest.raises(ParameterError) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shipped_files_are_complete_and_their_parameters_frozen(shipped):
    assert shipped().model.titanet.size == "s"
    with pytest.raises(ValueError, match="frozen"):
        shipped().training.epochs = 3
    study = load_parameters(SHIPPED, SHIPPED.parent / "init/librispeech.yml")
    assert (study.dataset.name, study.training.epochs) == ("librispeech", 75)
    assert study.loss.name == "cross_entropy"


def test_later_files_and_overrides_win(load):
    load("training: {epochs: 9, batch_size: 5}", SHIPPED)
    p = load_parameters(SHIPPED, load.path, overrides=["training.epochs=11"])
    assert (p.training.epochs, p.training.batch_size) == (11, 5)
    assert p.training.optimizer.name == "muon"


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3", "+1e-3"])
def test_exponents_are_numbers(shipped, text):
    assert shipped(f"training.optimizer.lr={text}").training.optimizer.lr == 0.001


# Messages show a number as it was written, and quote a text.
NUMBERS = "training.epochs=0 training.epochs=1.5 seed=-1 dataset.root=3 training=3"
NUMBERS += " front_end.hop_seconds=0.05 front_end.n_fft=256"
NUMBERS += " model.dvector.projection_size=768"
TEXTS = "training.optimizer.lr=fast training.on_nonfinite=x model.name=ecapa"
TEXTS += " dataset.download=maybe run.name=../x dataset.name=foo"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        *((override, override.split("=")[1]) for override in NUMBERS.split()),
        *((override, repr(override.split("=")[1])) for override in TEXTS.split()),
        ("training.epochs", "no value"),
        ("dataset.test_fraction=.nan", "nan"),
        ("model.dvector.crop_seconds=[]", "()"),
        ("augmentation.noise.snr_db=[low, 5]", "'low'"),
        ("model.titanet.crop_seconds=[1.0, 0.01]", "0.01"),
        ("dataset.synthetic.min_seconds=9", "9.0"),
    ],
)
def test_mistake_in_an_override(shipped, override, value):
    key, message = override.partition("=")[0], refusal(shipped, override)
    key, value = re.escape(key), re.escape(value)
    assert re.fullmatch(rf"{key}(\.0)?: expected .+, got {value}", message)
    # Nothing of pydantic's words.
    assert not re.search("Input|valid|instance|greater|less than 1", message)


def test_the_choices_of_a_corpus_are_named(shipped):
    message = refusal(shipped, "dataset.name=foo")
    assert "'synthetic'" in message
    assert "'mixture'" in message


def test_a_path_may_begin_at_home(shipped, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    p = shipped("dataset.root=~/x", "run.directory=~/", "evaluation.trials=a/~/b")
    assert (p.dataset.root, p.run.directory) == (tmp_path / "x", tmp_path)
    assert p.evaluation.trials.as_posix() == "a/~/b"
    mixed = "[{label: a, weight: 1, name: folder, root: ~/y}]"
    p = shipped("dataset.name=mixture", f"dataset.mixture={mixed}")
    assert p.dataset.corpora["a"].root == tmp_path / "y"
    assert shipped("dataset.root=~nobody.at.all/x").dataset.root.name == "x"


@pytest.mark.parametrize("name", ["1e3", "1.5E-3", "2_0e1", "12", "on"])
def test_a_text_that_looks_like_something_else_stays_text(load, shipped, name):
    p = shipped(f"run.name='{name}'")
    assert load(dump_yaml(p.as_dict())) == p
    assert p.run.name == name


@pytest.mark.parametrize("key", ["training.epohcs", "epochs"])
def test_unknown_key(shipped, key):
    assert re.fullmatch(f"{key}: .* training.epochs[?]", refusal(shipped, f"{key}=3"))


# PyYAML does not say in which line it fails.
UNREADABLE = [
    *("just text\n", "", "when: 2026-99-99\n", "a: " + "[" * 3000, "a: \x00\n"),
    *("a: !!bool maybe\n", "a: !!int ''\n", "a: !!timestamp soon\n"),
    *("seed: " + "9" * 5000, b"\xff\xfe\x00\x01"),
]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("seed: 1\nseed: 2\n", ":2: seed: "),
        ("loss: {arcface: {a: 1, a: 2}}\n", ":1: a: "),
        ("1: 2\n", ":1: 1: "),
        ("a: [1\nb: 2\n", ":2: "),
        ("a: !!python/object/apply:os.getcwd []\n", ":1: "),
        ("a: &a {<<: *a}\n", ":1: "),
        ("seed: &a [*a]\n", ":1: "),
        *((text, ": ") for text in UNREADABLE),
    ],
)
def test_mistake_in_a_file(load, text, where):
    assert refusal(load, text, SHIPPED).startswith(f"{load.path}{where}")


def test_missing_file_and_missing_key(load):
    assert refusal(load_parameters, load.path).startswith(f"{load.path}: ")
    text = SHIPPED.read_text().replace("  epochs:", "  # epochs:")
    assert refusal(load, text).startswith("training.epochs: ")


def test_aliases_do_not_make_much_of_little(load):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for name, before in zip("bcdefghij", "abcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    assert refusal(load, "\n".join([*lines, "seed: *j"]), SHIPPED)
    aliases = "loss: {arcface: &a {scale: 31.0}, cosface: *a}"
    assert load(aliases, SHIPPED).loss.cosface.scale == 31.0


def test_messages_are_one_line_of_bounded_length(load):
    assert refusal(load, '"se\\ned\\e": 1', SHIPPED).startswith(r"se\ned\x1b: ")
    assert len(refusal(load, f"seed: {'x' * 10**6}", SHIPPED)) < 1100


MIXTURE = "[{label: a, weight: 1, name: folder%s}]"


@pytest.mark.parametrize(
    ("mixture", "key"),
    [
        *(("[]", ""), ("3", ""), ("[3]", ".0"), ("[{label: a, weight: 1}]", ".0.name")),
        ("[{label: a, name: folder}]", ".0.weight"),
        ("[{weight: 1, name: folder}]", ".0.label"),
        (MIXTURE % ", name: mixture", ":1: name"),
        (MIXTURE.replace("folder", "mixture") % "", ".0.name"),
        *((MIXTURE.replace("1", w) % "", ".0.weight") for w in ("0", ".inf")),
        *((MIXTURE.replace(" a", label) % "", ".0.label") for label in (" a/b", " ''")),
        (MIXTURE % "}, {label: a, weight: 1, name: vctk", ""),
        (MIXTURE % "}, {label: b, weight: 1, name: folder, root: 3", ".1.root"),
        (MIXTURE % ", rot: here", ".0.rot"),
        (MIXTURE % ", vctk: {microphone: mic3}", ".0.vctk.microphone"),
        (MIXTURE % ", synthetic: {min_seconds: 9}", ".0.synthetic.min_seconds"),
        (MIXTURE % ", packs: here", ".0.packs"),
        (MIXTURE % ", mixture: []", ".0.mixture"),
    ],
)
def test_mistake_in_a_mixture(shipped, mixture, key):
    message = refusal(shipped, "dataset.name=mixture", f"dataset.mixture={mixture}")
    assert message.startswith(f"dataset.mixture{key}: ")


def test_the_corpora_of_a_mixture(shipped):
    mixture = (
        "dataset.name=mixture",
        "dataset.seed=7",
        "dataset.mixture=[{label: a, weight: 1, name: folder, root: here},"
        "{label: b, weight: 0.5, name: librispeech, seed: 9, librispeech: {test: []}}]",
    )
    p = shipped(*mixture)
    assert check_parameters(p.as_dict()) == p
    assert p.dataset.weights == {"a": 1, "b": 0.5}
    a, b = p.dataset.corpora.values()
    assert (a.name, str(a.root), a.seed) == ("folder", "here", 7)
    assert (b.name, str(b.root), b.seed) == ("librispeech", "data", 9)
    assert b.librispeech.train == ("train-clean-100",)
    assert (b.librispeech.test, b.corpora) == ((), {"": b})
    message = refusal(shipped, *mixture, "evaluation.trials=t.txt")
    assert message.startswith("evaluation.trials: ")


def test_plain_values_carry_the_version_and_make_the_same_parameters(shipped):
    values = shipped().as_dict()
    assert values["version"] == VERSION
    assert parameter_files.parse_yaml(dump_yaml(values), "") == values
    assert parameter_files.migrate(values) == values
    assert check_parameters(values) == shipped()


def test_the_shipped_file_names_every_key_that_was_added():
    shipped = parameter_files.parse_yaml(SHIPPED.read_text(), "shipped")
    for key in chain.from_iterable(MIGRATIONS):
        reduce(getitem, key.split("."), shipped)


class TestMigrations:
    """A schema that gained `training.epochs` and then `wandb.project`."""

    @pytest.fixture
    def saved(self, monkeypatch, shipped):
        added = ({"training.epochs": 41}, {"wandb.project": "before"})
        for module in (parameters, parameter_files):
            monkeypatch.setattr(module, "MIGRATIONS", added)
            monkeypatch.setattr(module, "VERSION", 3)

        def saved(version):
            values = shipped("training.epochs=7", "wandb.project=mine").as_dict()
            if version < 3:
                del values["wandb"]["project"]
            if version < 2:
                del values["training"]["epochs"]
            return values | {"version": version}

        return saved

    @pytest.mark.parametrize(
        ("version", "epochs", "project"),
        [(1, 41, "before"), (2, 7, "before"), (3, 7, "mine")],
    )
    def test_bring_older_parameters_up(self, saved, load, version, epochs, project):
        text = dump_yaml(saved(version))
        # With the shipped file below it, nothing of today's comes through.
        for p in (check_parameters(saved(version)), load(text), load(text, SHIPPED)):
            assert (p.training.epochs, p.wandb.project) == (epochs, project)

    def test_fill_in_what_came_after_the_version(self, saved):
        values = saved(1)
        assert refusal(check_parameters, values | {"version": 3}).endswith("missing")
        del values["version"]
        assert check_parameters(values).training.epochs == 41

    @pytest.mark.parametrize("version", [0, 4, -1, True, 1.0, "1", None])
    def test_other_versions_are_refused(self, saved, version):
        values = saved(3) | {"version": version}
        assert refusal(check_parameters, values).startswith("version: ")
