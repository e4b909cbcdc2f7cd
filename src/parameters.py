"""The schema of `parameters.yml`: types, ranges, units, and errors that name the key.

plain nested values -> `Parameters`

The schema has no defaults: every number a run depends on stands in the files, and a
missing key is an error. To add a key, add a line to its section here, one to
parameters.yml, and one at the end of `MIGRATIONS` with the value that keeps the old
behaviour. A check of several keys stands in the smallest section that holds them all.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from errors import UserError, shown

# Keys that the schema gained, a line for each version after the first. Parameters of an
# earlier version get these values, never those of parameters.yml.
MIGRATIONS: tuple[dict[str, Any], ...] = (
    {"dataset.mixture": []},
    {"training.optimizer.muon_lr": 0.01},
    {"dataset.commonvoice": {"locales": [], "min_utterances": 2}},
    {"augmentation.telephone": {"probability": 0.0}},
    {"evaluation.centre": False},
    {
        "dataset.labelled": True,
        "augmentation.reverberation.simulated": 0.0,
        "augmentation.noise.coloured": 0.0,
        "augmentation.noise.babble": 0.0,
        "augmentation.equalizer": {"probability": 0.0},
        "augmentation.level": {"probability": 0.0},
        "training.teacher": {"vectors": [], "weight": 0.5, "temperature": 0.1},
    },
)
UNLABELLED = -1  # in place of the class of an utterance whose speaker is not known
VERSION = 1 + len(MIGRATIONS)  # of the schema; files that name none have version 1


class ParameterError(UserError):
    """A parameter file or an override that cannot be used."""


# Patterns of pydantic's messages, such as "Input should be greater than 0", and plain
# words in their place.
PLAIN_WORDS = (
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
    """A section that is frozen, strictly typed, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _expect(fits: bool, key: str, expected: str, value: Any) -> None:
    """Raise `ValueError` unless `fits`; `explain` adds the section to the key."""
    if not fits:
        raise ValueError(f"{key}: expected {expected}, got {value}")


def merged(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values in which those of `update` replace those of `base`."""
    result = dict(base)
    for key, value in update.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if nested else value
    return result


def _as_path(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value
    return Path(os.path.expanduser(value))  # unlike Path's, it never raises


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


PathLike = Annotated[Path, BeforeValidator(_as_path)]
Paths = Annotated[tuple[PathLike, ...], BeforeValidator(_as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
SyntheticSeconds = Annotated[float, Field(ge=0.1, le=3600, allow_inf_nan=False)]
Durations = Annotated[
    tuple[Seconds, ...], Field(min_length=1), BeforeValidator(_as_tuple)
]
Number = Annotated[float, Field(allow_inf_nan=False)]
Range = Annotated[tuple[Number, Number], BeforeValidator(_as_tuple)]
HeldOut = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SyntheticParameters(Section):
    """The corpus that `speech/synthetic.py` computes."""

    num_speakers: Annotated[int, Field(ge=2)]
    utterances_per_speaker: Annotated[int, Field(ge=2)]
    min_seconds: SyntheticSeconds
    max_seconds: SyntheticSeconds

    @model_validator(mode="after")
    def _fits_together(self) -> "SyntheticParameters":
        _expect(
            self.min_seconds <= self.max_seconds,
            "min_seconds",
            f"at most the max_seconds of {self.max_seconds}",
            self.min_seconds,
        )
        return self


class LibriSpeechParameters(Section):
    """The subsets of LibriSpeech for each split; without test subsets, speakers of the
    training subsets are held out."""

    train: Names
    development: Names
    test: Names


class VCTKParameters(Section):
    """Which of VCTK's two microphones to use."""

    microphone: Literal["mic1", "mic2"]


class ManifestParameters(Section):
    """A manifest of utterances for each split; without a test manifest, speakers of the
    training manifest are held out."""

    train: PathLike
    development: PathLike | None
    test: PathLike | None


class CommonVoiceParameters(Section):
    """The locales of a Common Voice release to read (all if none is named), and the
    smallest number of clips of a speaker."""

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
    """Where the audio comes from, and how much is kept out of training."""

    name: Literal[CorpusName, "mixture"]
    root: PathLike
    packs: PathLike
    download: bool
    labelled: bool
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
        """The parameters of each corpus of a mixture, by label; without a mixture, this
        section under the label ""."""
        if self.name != "mixture":
            return {"": self}
        values = self.model_dump(mode="json")
        return {
            corpus.label: DatasetParameters.model_validate(_laid_over(values, corpus))
            for corpus in self.mixture
        }

    @property
    def weights(self) -> dict[str, float]:
        """The mean number of times that an epoch draws each utterance of a corpus, by
        the label of the corpus."""
        if self.name != "mixture":
            return {"": 1.0}
        return {corpus.label: corpus.weight for corpus in self.mixture}

    @model_validator(mode="after")
    def _mixture_fits(self) -> "DatasetParameters":
        labels = [corpus.label for corpus in self.mixture]
        at_least_one = "at least one corpus in a mixture"
        _expect(self.name != "mixture" or labels, "mixture", at_least_one, labels)
        _expect(len(set(labels)) == len(labels), "mixture", "each label once", labels)
        values = self.model_dump(mode="json")
        for index, corpus in enumerate(self.mixture if self.name == "mixture" else ()):
            where = f"mixture.{index}"
            for key in ("packs", "mixture"):
                if key in corpus.model_extra:
                    raise ValueError(f"{where}.{key}: expected in dataset only")
            try:
                DatasetParameters.model_validate(_laid_over(values, corpus))
            except ValidationError as error:
                raise ValueError(f"{where}.{explain(error)}") from None
        return self


def _laid_over(dataset: Mapping[str, Any], corpus: MixedCorpus) -> dict[str, Any]:
    """Return the parameters of one corpus of a mixture, unchecked."""
    return merged(dataset, {**corpus.model_extra, "name": corpus.name, "mixture": []})


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
        """The number of samples in an analysis window."""
        return round(self.window_seconds * self.sample_rate)

    @property
    def hop_size(self) -> int:
        """The number of samples from one frame to the next."""
        return round(self.hop_seconds * self.sample_rate)

    @property
    def min_seconds(self) -> float:
        """The duration of the shortest utterance. It holds a whole window and at least
        two frames, since normalisation divides by their standard deviation."""
        return max(self.window_size, 2 * self.hop_size) / self.sample_rate

    @model_validator(mode="after")
    def _fits_together(self) -> "FrontEndParameters":
        hop, samples = self.hop_seconds, self.window_seconds * self.sample_rate
        bins = self.n_fft // 2 + 1
        for fits, key, expected in (
            (
                hop <= self.window_seconds,
                "hop_seconds",
                f"at most the window_seconds of {self.window_seconds}",
            ),
            (hop * self.sample_rate >= 1, "hop_seconds", "at least one sample"),
            (
                self.n_fft >= samples,
                "n_fft",
                f"at least the window's {samples:g} samples",
            ),
            (self.num_mels <= bins, "num_mels", f"at most the {bins} bins of n_fft"),
        ):
            _expect(fits, key, expected, getattr(self, key))
        return self


class SpecAugmentParameters(Section):
    """Masks over the features of training batches."""

    frequency_masks: Annotated[int, Field(ge=0)]
    frequency_width: Annotated[int, Field(ge=0)]
    time_masks: Annotated[int, Field(ge=0)]
    time_fraction: Fraction


class SpeedParameters(Section):
    """Faster or slower speech, which changes the pitch too."""

    probability: Fraction
    max_change: Annotated[float, Field(ge=0, le=0.5)]

    @property
    def steps(self) -> int:
        """The largest change of speed, in percent."""
        return round(100 * self.max_change) if self.probability else 0


class ReverberationParameters(Section):
    """Reverberation by recorded impulse responses or simulated rooms."""

    probability: Fraction
    simulated: Fraction
    root: PathLike | None
    download: bool
    held_out: HeldOut
    max_seconds: Seconds
    num_rooms: Count
    rt60_seconds: Range

    @model_validator(mode="after")
    def _fits_together(self) -> "ReverberationParameters":
        low, high = self.rt60_seconds
        expected = "two numbers in order, from 0.1 to 10"
        _expect(0.1 <= low <= high <= 10, "rt60_seconds", expected, self.rt60_seconds)
        return self


class NoiseParameters(Section):
    """Added noise: recordings, coloured noise, and other voices of the batch."""

    probability: Fraction
    coloured: Fraction
    babble: Fraction
    root: PathLike | None
    held_out: HeldOut
    snr_db: Range

    @model_validator(mode="after")
    def _fits_together(self) -> "NoiseParameters":
        low, high = self.snr_db
        expected = "two numbers in order, from -100 to 100"
        _expect(-100 <= low <= high <= 100, "snr_db", expected, self.snr_db)
        return self


class TelephoneParameters(Section):
    """The narrow band of a telephone; half of its utterances also get mu-law."""

    probability: Fraction


class EqualizerParameters(Section):
    """The frequency response of a microphone."""

    probability: Fraction


class LevelParameters(Section):
    """Recording too loud, which clips, or too quietly, which leaves few bits."""

    probability: Fraction


class AugmentationParameters(Section):
    """The augmentation of training batches. All kinds but SpecAugment change each
    utterance with a probability."""

    speed: SpeedParameters
    reverberation: ReverberationParameters
    noise: NoiseParameters
    equalizer: EqualizerParameters
    level: LevelParameters
    telephone: TelephoneParameters
    spec_augment: SpecAugmentParameters


class TitaNetParameters(Section):
    """TitaNet; `channels` and `epilog_channels` override those of the size."""

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

    @model_validator(mode="after")
    def _fits_together(self) -> "DVectorParameters":
        _expect(
            self.projection_size < self.hidden_size,
            "projection_size",
            f"less than the hidden_size of {self.hidden_size}",
            self.projection_size,
        )
        return self


class ModelParameters(Section):
    """The encoder to train."""

    name: Literal["titanet", "dvector"]
    titanet: TitaNetParameters
    dvector: DVectorParameters

    @property
    def crop_seconds(self) -> tuple[float, ...]:
        """The durations of training crops for the chosen encoder, in seconds."""
        return getattr(self, self.name).crop_seconds

    @property
    def embedding_size(self) -> int:
        """The size of the chosen encoder's embeddings."""
        return getattr(self, self.name).embedding_size


class MarginParameters(Section):
    """An angular-margin loss; its margin grows linearly over the first steps, whose
    share is `ramp`."""

    scale: Positive
    margin: NonNegative
    ramp: Fraction


class SphereFaceParameters(MarginParameters):
    """SphereFace, whose margin multiplies the angle; 1 means no margin."""

    margin: Annotated[float, Field(ge=1, allow_inf_nan=False)]


class GroupParameters(Section):
    """Batches for a loss that compares utterances with each other."""

    speakers_per_batch: Annotated[int, Field(ge=2)]
    utterances_per_speaker: Annotated[int, Field(ge=2)]


class LossParameters(Section):
    """The training loss."""

    name: Literal["cross_entropy", "arcface", "cosface", "sphereface", "ge2e"]
    arcface: MarginParameters
    cosface: MarginParameters
    sphereface: SphereFaceParameters
    ge2e: GroupParameters

    @property
    def groups(self) -> GroupParameters | None:
        """How batches group utterances by speaker, if the loss needs that."""
        loss = getattr(self, self.name, None)
        return loss if isinstance(loss, GroupParameters) else None


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
        """The weight decay; null chooses one that suits the optimizer."""
        if self.weight_decay is not None:
            return self.weight_decay
        # SGD and Adam add it to the gradient, where 0.3 would outweigh the loss.
        return 2e-4 if self.name in ("sgd", "adam") else 0.3


class TeacherParameters(Section):
    """The vectors of another encoder, from which the embeddings learn.

    `weight` is the share of the teacher's loss; the rest is that of the labels.
    """

    vectors: Paths
    weight: Fraction
    temperature: Positive


class TrainingParameters(Section):
    """The training loop."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    init_from: PathLike | None
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    accumulation: Count
    compile: Literal["auto", "always", "never"]
    on_nonfinite: Literal["stop", "skip"]
    teacher: TeacherParameters
    optimizer: OptimizerParameters


class AsNormParameters(Section):
    """Score normalisation by a cohort of training speakers."""

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
    centre: bool
    as_norm: AsNormParameters


class RunParameters(Section):
    """Where runs are written."""

    directory: PathLike
    name: Annotated[str, Field(pattern=r"^[\w][\w.+-]*$")] | None


class WandbParameters(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"]
    entity: str | None
    project: str | None
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
        """Return plain YAML and JSON types, with the schema's version;
        `check_parameters` turns them into `Parameters` again."""
        return {"version": VERSION, **self.model_dump(mode="json")}

    @model_validator(mode="after")
    def _fits_together(self) -> "Parameters":
        model, loss, dataset = self.model, self.loss, self.dataset
        window, crop = self.front_end.window_seconds, min(model.crop_seconds)
        weights = list(dataset.weights.values())
        labelled = [corpus.labelled for corpus in dataset.corpora.values()]
        for fits, key, expected, value in (
            (
                crop >= 2 * window,
                f"model.{model.name}.crop_seconds",
                f"at least two windows of {window} s",
                crop,
            ),
            (
                not loss.groups or self.training.accumulation == 1,
                "training.accumulation",
                f"1 with {loss.name}, which compares whole batches",
                self.training.accumulation,
            ),
            (
                not loss.groups or all(weight % 1 == 0 for weight in weights),
                "dataset.mixture",
                f"whole weights with {loss.name}, which groups a speaker's utterances",
                weights,
            ),
            (
                self.training.teacher.vectors or all(labelled),
                "dataset.labelled",
                "true without training.teacher.vectors",
                False,
            ),
            (
                not loss.groups or all(labelled),
                "dataset.labelled",
                f"true with {loss.name}, which groups a speaker's utterances",
                False,
            ),
            (
                dataset.name != "mixture" or not self.evaluation.trials,
                "evaluation.trials",
                "null with a mixture, which tests each corpus on its own trials",
                str(self.evaluation.trials),
            ),
        ):
            _expect(fits, key, expected, value)
        return self


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all keys, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _keys(kind, f"{prefix}{name}.")


def explain(error: ValidationError) -> str:
    """Return pydantic's first complaint as `key: expected ..., got ...`."""
    complaint = error.errors()[0]
    key = ".".join(map(str, complaint["loc"]))
    if complaint["type"] == "value_error":  # raised by `_expect`
        return f"{key}.{complaint['ctx']['error']}".lstrip(".")
    if complaint["type"] == "missing":
        return f"{key}: expected a value, but it is missing"
    if complaint["type"] == "extra_forbidden":
        section, _, name = key.rpartition(".")
        known = sorted(_keys(Parameters), key=lambda k: k.startswith(section))
        by_name = {k.rpartition(".")[2]: k for k in known}  # prefers the key's section
        near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.5)
        hint = f"; did you mean {by_name[near[0]]}?" if near else ""
        return f"{key}: unknown key{hint}"
    expected = complaint["msg"]
    for pattern, plain in PLAIN_WORDS:
        expected = re.sub(pattern, plain, expected)
    return f"{key}: expected {expected}, got {shown(complaint['input'])}"
