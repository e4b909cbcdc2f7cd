"""The schema of `parameters.yml`: types, ranges, units, and errors that name the key.

`parameters.yml` (+ later files + `key=value` overrides) -> `load_parameters` ->
`Parameters`

Every number a run depends on stands in the files, none in the code: the schema has no
defaults, so a key that no file gives is an error. A new key is a line in its section
below, one in parameters.yml, and one at the end of `MIGRATIONS`, with the value that
does what the program did before it.
"""

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

SHIPPED = Path(__file__).parents[1] / "parameters.yml"

# Keys that the schema gained, a line for each version after the first. Parameters of an
# earlier version lack them and get these values, never those of parameters.yml.
MIGRATIONS: tuple[dict[str, Any], ...] = (
    {"dataset.mixture": []},
    {"training.optimizer.muon_lr": 0.01},
    {"dataset.commonvoice": {"locales": [], "min_utterances": 2}},
    {"augmentation.telephone": {"probability": 0.0}},
)
VERSION = 1 + len(MIGRATIONS)  # of the schema; files that do not say are of the first

MAX_MESSAGE = 1000  # characters


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 200
shown = _repr.repr  # a value of any size for a message


class UserError(Exception):
    """A mistake that the user can mend: commands print it in one line and exit with
    2."""

    def __str__(self) -> str:
        """One line of printable text: escapes other characters, cuts long messages."""
        text = super().__str__()
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE // 2]}...{text[-MAX_MESSAGE // 2 :]}"
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class ParameterError(UserError):
    """A parameter file or an override that cannot be used as it is."""


# From pydantic's words, such as "Input should be greater than 0", to this program's.
WORDS = (
    (r"^\w+ (should (be|have)|is not) ", ""),
    (r"^\w+ should match", "text that matches"),
    (r" after validation, not \d+", ""),
    (r"valid dictionary or instance of \w+", "section"),
    ("a valid boolean", "true or false"),
    ("valid integer", "whole number"),
    ("valid tuple", "list"),
    ("a valid string", "text"),
    ("valid ", ""),
    ("an instance of Path", "a path"),
    ("greater than or equal to", "at least"),
    ("less than or equal to", "at most"),
    ("greater than", "above"),
    ("less than", "below"),
)


class Section(BaseModel):
    """Frozen, strictly typed, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _as_path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and value else value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


PathLike = Annotated[Path, BeforeValidator(_as_path)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
SyntheticSeconds = Annotated[float, Field(ge=0.1, le=3600, allow_inf_nan=False)]
Durations = Annotated[
    tuple[Seconds, ...], Field(min_length=1), BeforeValidator(_as_tuple)
]
Range = Annotated[
    tuple[
        Annotated[float, Field(allow_inf_nan=False)],
        Annotated[float, Field(allow_inf_nan=False)],
    ],
    BeforeValidator(_as_tuple),
]
HeldOut = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SyntheticParameters(Section):
    """The embedded corpus of `synthetic.py`."""

    num_speakers: Annotated[int, Field(ge=2)]
    utterances_per_speaker: Annotated[int, Field(ge=2)]
    min_seconds: SyntheticSeconds
    max_seconds: SyntheticSeconds


class LibriSpeechParameters(Section):
    """Which subsets of LibriSpeech serve which split; an empty test list holds speakers
    of the training subsets out instead."""

    train: Names
    development: Names
    test: Names


class VCTKParameters(Section):
    """Which of the two microphones of VCTK is heard."""

    microphone: Literal["mic1", "mic2"]


class ManifestParameters(Section):
    """Manifests of utterances for each split; without one of the test, speakers of the
    training manifest are held out."""

    train: PathLike
    development: PathLike | None
    test: PathLike | None


class CommonVoiceParameters(Section):
    """Locales of a Common Voice release to read (all if none is named), and the minimum
    number of clips of a speaker in them."""

    locales: Names
    min_utterances: Count


CorpusName = Literal[
    "synthetic",
    "librispeech",
    "vctk",
    "voxceleb1",
    "commonvoice",
    "folder",
    "manifest",
]


class MixedCorpus(Section):
    """One corpus of a mixture; its other keys override those of `dataset`."""

    model_config = ConfigDict(extra="allow")

    label: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]
    weight: Annotated[float, Field(gt=0, le=1000)]
    name: CorpusName


class DatasetParameters(Section):
    """Where the audio comes from and who is kept out of training."""

    name: CorpusName | Literal["mixture"]
    root: PathLike
    packs: PathLike
    download: bool
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    validation_fraction: Fraction
    development_fraction: Fraction
    test_fraction: Fraction
    synthetic: SyntheticParameters
    librispeech: LibriSpeechParameters
    vctk: VCTKParameters
    commonvoice: CommonVoiceParameters
    manifest: ManifestParameters
    mixture: Annotated[tuple[MixedCorpus, ...], BeforeValidator(_as_tuple)]

    @property
    def corpora(self) -> "dict[str, DatasetParameters]":
        """The dataset parameters of each corpus of a mixture, by label; without a
        mixture, this section under the label ""."""
        if self.name != "mixture":
            return {"": self}
        values = self.model_dump(mode="json")
        return {
            corpus.label: DatasetParameters.model_validate(_laid_over(values, corpus))
            for corpus in self.mixture
        }

    @property
    def weights(self) -> dict[str, float]:
        """How often an epoch draws each utterance of a corpus, by its label."""
        if self.name != "mixture":
            return {"": 1.0}
        return {corpus.label: corpus.weight for corpus in self.mixture}


def _laid_over(dataset: Mapping[str, Any], corpus: MixedCorpus) -> dict[str, Any]:
    return _merge(dataset, {**corpus.model_extra, "name": corpus.name, "mixture": []})


class FrontEndParameters(Section):
    """The log-mel front end of `transforms.py`."""

    sample_rate: Annotated[int, Field(ge=8000, le=48000)]
    window_seconds: Seconds
    hop_seconds: Seconds
    n_fft: Annotated[int, Field(ge=1, le=2**15)]
    num_mels: Annotated[int, Field(ge=1, le=512)]
    preemphasis: Fraction
    dither: NonNegative
    normalization: Literal["per_feature", "mean"]

    @property
    def window_size(self) -> int:
        """Samples of an analysis window."""
        return round(self.window_seconds * self.sample_rate)

    @property
    def hop_size(self) -> int:
        """Samples from one frame to the next."""
        return round(self.hop_seconds * self.sample_rate)

    @property
    def min_seconds(self) -> float:
        """The shortest utterance: a whole window, and two frames, since one frame alone
        has no deviation to be divided by."""
        return max(self.window_size, 2 * self.hop_size) / self.sample_rate


class SpecAugmentParameters(Section):
    """Masks on the features of a training batch."""

    frequency_masks: Annotated[int, Field(ge=0)]
    frequency_width: Annotated[int, Field(ge=0)]
    time_masks: Annotated[int, Field(ge=0)]
    time_fraction: Fraction


class SpeedParameters(Section):
    """Faster or slower speech, the pitch with it."""

    probability: Fraction
    max_change: Annotated[float, Field(ge=0, le=0.5)]

    @property
    def steps(self) -> int:
        """Hundredths by which speech may become faster or slower."""
        return round(100 * self.max_change) if self.probability else 0


class ReverberationParameters(Section):
    """Rooms, from a folder of impulse responses or simulated."""

    probability: Fraction
    root: PathLike | None
    download: bool
    held_out: HeldOut
    max_seconds: Seconds
    num_rooms: Count
    rt60_seconds: Range


class NoiseParameters(Section):
    """Added noise, from a folder of recordings or coloured."""

    probability: Fraction
    root: PathLike | None
    held_out: HeldOut
    snr_db: Range


class TelephoneParameters(Section):
    """A narrow band, in half of the cases with mu-law."""

    probability: Fraction


class AugmentationParameters(Section):
    """What is done to training batches and to nothing else; all but SpecAugment to each
    utterance with a probability."""

    speed: SpeedParameters
    reverberation: ReverberationParameters
    noise: NoiseParameters
    telephone: TelephoneParameters
    spec_augment: SpecAugmentParameters


class TitaNetParameters(Section):
    """TitaNet; `channels` and `epilog_channels` override what the size says."""

    size: Literal["s", "m", "l"]
    channels: Count | None
    epilog_channels: Count | None
    embedding_size: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    crop_seconds: Durations


class DVectorParameters(Section):
    """The d-vector baseline."""

    hidden_size: Count
    projection_size: Count
    num_layers: Annotated[int, Field(ge=1, le=32)]
    embedding_size: Count
    crop_seconds: Durations


class ModelParameters(Section):
    """Which encoder is trained."""

    name: Literal["titanet", "dvector"]
    titanet: TitaNetParameters
    dvector: DVectorParameters

    @property
    def crop_seconds(self) -> tuple[float, ...]:
        """Durations of training crops for the chosen encoder, in seconds."""
        return getattr(self, self.name).crop_seconds


class MarginParameters(Section):
    """An angular-margin loss; the margin grows linearly from nothing over the first
    `ramp` of the steps."""

    scale: Positive
    margin: NonNegative
    ramp: Fraction


class SphereFaceParameters(MarginParameters):
    """SphereFace, whose margin multiplies the angle; 1 is none."""

    margin: Annotated[float, Field(ge=1, allow_inf_nan=False)]


class GroupParameters(Section):
    """The batches of a loss that compares the utterances of speakers."""

    speakers_per_batch: Annotated[int, Field(ge=2)]
    utterances_per_speaker: Annotated[int, Field(ge=2)]


class LossParameters(Section):
    """Which loss is trained with."""

    name: Literal["cross_entropy", "arcface", "cosface", "sphereface", "ge2e"]
    arcface: MarginParameters
    cosface: MarginParameters
    sphereface: SphereFaceParameters
    ge2e: GroupParameters

    @property
    def groups(self) -> GroupParameters | None:
        """How batches group the utterances of a speaker, where the loss needs that."""
        chosen = getattr(self, self.name, None)
        return chosen if isinstance(chosen, GroupParameters) else None


class OptimizerParameters(Section):
    """The optimizer and its schedule: linear warm-up, then half a cosine."""

    name: Literal["sgd", "adam", "adamw", "muon"]
    lr: Positive
    muon_lr: Positive
    final_lr: NonNegative
    warmup: Fraction
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegative | None
    clip_norm: Positive

    @property
    def decay(self) -> float:
        """The weight decay; if none is given, one that suits the optimizer."""
        if self.weight_decay is not None:
            return self.weight_decay
        # SGD and Adam add it to the gradient, where 0.3 would outweigh the loss.
        return 2e-4 if self.name in ("sgd", "adam") else 0.3


class TrainingParameters(Section):
    """The training loop."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    init_from: PathLike | None
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    accumulation: Count
    compile: Literal["auto", "always", "never"]
    on_nonfinite: Literal["stop", "skip"]
    optimizer: OptimizerParameters


class AsNormParameters(Section):
    """Normalisation of scores by a cohort of training speakers."""

    utterances_per_speaker: Count
    top: Annotated[int, Field(ge=2)]


class EvaluationParameters(Section):
    """Embedding and verification."""

    batch_seconds: Seconds
    trials: PathLike | None
    max_trials: Count
    p_target: Annotated[float, Field(gt=0, lt=1)]
    c_miss: Positive
    c_fa: Positive
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)]
    num_resamples: Count
    as_norm: AsNormParameters


class RunParameters(Section):
    """Where runs are written."""

    directory: PathLike
    name: Annotated[str, Field(pattern=r"^[\w][\w.+-]*$")] | None


class WandbParameters(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"]
    entity: str | None
    project: str
    api_key_file: PathLike | None
    log_audio: bool


class Parameters(Section):
    """All that a run depends on."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    dataset: DatasetParameters
    front_end: FrontEndParameters
    augmentation: AugmentationParameters
    model: ModelParameters
    loss: LossParameters
    training: TrainingParameters
    evaluation: EvaluationParameters
    run: RunParameters
    wandb: WandbParameters

    def as_dict(self) -> dict[str, Any]:
        """Plain YAML and JSON types, with the schema's version; `Parameters` again
        through `check_parameters`."""
        return {"version": VERSION, **self.model_dump(mode="json")}

    def as_yaml(self) -> str:
        """The text of a parameter file."""
        return dump_yaml(self.as_dict())


def dump_yaml(values: Mapping[str, Any]) -> str:
    """The YAML text of plain values, in their order."""
    return yaml.safe_dump(values, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, as in YAML 1.2, and no key stands twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str) or key in mapping:
            expected = "this key once" if isinstance(key, str) else "a name as key"
            raise yaml.constructor.ConstructorError(
                problem=f"{key}: expected {expected}",
                problem_mark=key_node.start_mark,
            )
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, where: str) -> Any:
    """Plain values of a YAML text, nothing executed; raise `ParameterError` with
    `where` and the line."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: builds plain types only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ParameterError(f"{where}{line}: {error.problem}") from None
    # What PyYAML raises for a value that is not of its tag depends on the tag.
    except (
        *(yaml.YAMLError, ValueError, RecursionError),
        *(LookupError, AttributeError, TypeError),
    ) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ParameterError(f"{where}: not readable as YAML: {first_line}") from None


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ParameterError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ParameterError(f"{path}: not readable as YAML: not UTF-8") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ParameterError(
            f"{path}: expected sections such as `training:`, got {shown(values)}"
        )
    return values


def _merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in update.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _nested(key: str, value: Any) -> dict[str, Any]:
    """`{"a": {"b": value}}` for the key `a.b`."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ParameterError(
            f"{override}: expected section.key=value, "
            "such as training.epochs=5, got no value"
        )
    return _nested(key, parse_yaml(text, key))


def migrate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of any version of the schema as this one has them, unchecked; raise
    `ParameterError` for a version that is not known."""
    version = values.get("version", 1)
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ParameterError(
            f"version: expected one of this program's, 1 to {VERSION}, got {version!r}"
        )
    for added in MIGRATIONS[version - 1 :]:
        for key, value in added.items():
            values = _merge(_nested(key, value), values)
    return {**values, "version": VERSION}


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _keys(kind, f"{prefix}{name}.")


def _explain(error: ValidationError) -> str:
    """The first of pydantic's complaints in one line."""
    complaint = error.errors()[0]
    key = ".".join(map(str, complaint["loc"]))
    if complaint["type"] == "missing":
        return f"{key}: expected a value, but it is missing"
    if complaint["type"] == "extra_forbidden":
        section, _, name = key.rpartition(".")
        known = sorted(_keys(Parameters), key=lambda k: k.startswith(section))
        by_name = {k.rpartition(".")[2]: k for k in known}  # of its section first
        near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.5)
        hint = f"; did you mean {by_name[near[0]]}?" if near else ""
        return f"{key}: unknown key{hint}"
    expected = complaint["msg"]
    for pattern, ours in WORDS:
        expected = re.sub(pattern, ours, expected)
    return f"{key}: expected {expected}, got {shown(complaint['input'])}"


def check_parameters(values: Mapping[str, Any]) -> Parameters:
    """Plain nested values, of any version of the schema -> `Parameters`; raise
    `ParameterError` naming the key."""
    values = migrate(values)
    del values["version"]
    try:
        parameters = Parameters.model_validate(values)
    except ValidationError as error:
        raise ParameterError(_explain(error)) from None
    _check_together(parameters)
    if parameters.dataset.name == "mixture":
        _check_mixture(values, parameters.dataset.mixture)
    return parameters


def _check_mixture(values: Mapping[str, Any], mixture: Sequence[MixedCorpus]) -> None:
    """Raise `ParameterError` if one corpus of a mixture has invalid parameters."""
    for place, corpus in enumerate(mixture):
        where = f"dataset.mixture.{place}."
        for key in ("packs", "mixture"):
            if key in corpus.model_extra:
                raise ParameterError(f"{where}{key}: expected in dataset only")
        dataset = _laid_over(values["dataset"], corpus)
        try:
            check_parameters({**values, "dataset": dataset})
        except ParameterError as error:
            raise ParameterError(where + str(error).removeprefix("dataset.")) from None


def _check_together(parameters: Parameters) -> None:
    """Refuse values that are each in range but cannot go with another."""
    front_end, model = parameters.front_end, parameters.model
    window, hop = front_end.window_seconds, front_end.hop_seconds
    crop, synthetic = min(model.crop_seconds), parameters.dataset.synthetic
    labels = [corpus.label for corpus in parameters.dataset.mixture]
    weights = list(parameters.dataset.weights.values())
    rt60 = parameters.augmentation.reverberation.rt60_seconds
    snr = parameters.augmentation.noise.snr_db
    for key, value, fits, expected in (
        ("front_end.hop_seconds", hop, hop <= window, "at most the window's"),
        (
            "front_end.hop_seconds",
            hop,
            hop * front_end.sample_rate >= 1,
            "at least a sample",
        ),
        (
            "front_end.n_fft",
            front_end.n_fft,
            front_end.n_fft >= window * front_end.sample_rate,
            f"at least the window's {window * front_end.sample_rate:g} samples",
        ),
        (
            "front_end.num_mels",
            front_end.num_mels,
            front_end.num_mels <= front_end.n_fft // 2 + 1,
            f"at most the {front_end.n_fft // 2 + 1} bins of n_fft",
        ),
        (
            f"model.{model.name}.crop_seconds",
            crop,
            crop >= 2 * window,
            f"at least two windows of {window} s",
        ),
        (
            "model.dvector.projection_size",
            model.dvector.projection_size,
            model.dvector.projection_size < model.dvector.hidden_size,
            f"less than the hidden_size of {model.dvector.hidden_size}",
        ),
        (
            "augmentation.reverberation.rt60_seconds",
            rt60,
            0.1 <= rt60[0] <= rt60[1] <= 10,
            "two numbers in order, from 0.1 to 10",
        ),
        (
            "augmentation.noise.snr_db",
            snr,
            -100 <= snr[0] <= snr[1] <= 100,
            "two numbers in order, from -100 to 100",
        ),
        (
            "training.accumulation",
            parameters.training.accumulation,
            not parameters.loss.groups or parameters.training.accumulation == 1,
            f"1 with {parameters.loss.name}, which compares all of a batch",
        ),
        (
            "dataset.synthetic.min_seconds",
            synthetic.min_seconds,
            synthetic.min_seconds <= synthetic.max_seconds,
            f"at most the max_seconds of {synthetic.max_seconds}",
        ),
        (
            "dataset.mixture",
            labels,
            parameters.dataset.name != "mixture" or labels,
            "at least one corpus in a mixture",
        ),
        ("dataset.mixture", labels, len(set(labels)) == len(labels), "a label once"),
        (
            "dataset.mixture",
            weights,
            not parameters.loss.groups or all(w % 1 == 0 for w in weights),
            f"whole weights with {parameters.loss.name}, which groups a speaker's "
            "utterances",
        ),
        (
            "evaluation.trials",
            str(parameters.evaluation.trials),
            parameters.dataset.name != "mixture" or not parameters.evaluation.trials,
            "null with a mixture, whose corpora are tested each by itself",
        ),
    ):
        if not fits:
            raise ParameterError(f"{key}: expected {expected}, got {value}")


def load_parameters(*paths: Path, overrides: Sequence[str] = ()) -> Parameters:
    """Read, merge and check parameter files; later files and `a.b=value` overrides win.

    A first file that gives no version is read as version 1, a later one as the current
    version. Raises `ParameterError` naming the key, what was expected and what was
    given.
    """
    values: dict[str, Any] = {}
    for path in paths:
        layer = _read_mapping(Path(path))
        if not values or "version" in layer:
            layer = migrate(layer)
        values = _merge(values, layer)
    return check_parameters(override_values(values, overrides))


def override_values(values: Mapping[str, Any], overrides: Sequence[str]) -> dict:
    """Nested values with `a.b=value` overrides merged in, not yet checked."""
    for override in overrides:
        values = _merge(values, _parse_override(override))
    return dict(values)
