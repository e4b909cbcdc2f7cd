"""Calibration to own recordings, on vectors of people who are made up."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recognition.own_calibration import calibrate_on
from recognition.sounds import VoiceError
from verification.scoring import Calibration

ENCODERS = Calibration(12.0, -4.0, 1.2, 0.1, 0.01, 2.7)


def made_up(num_people: int, count: int) -> tuple[torch.Tensor, np.ndarray]:
    """Vectors of people with `count` recordings each, which have an EER of some 5 %."""
    generator = torch.Generator().manual_seed(num_people)
    people = torch.randn(num_people, 40, generator=generator).repeat_interleave(
        count, 0
    )
    vectors = people + torch.randn(people.shape, generator=generator)
    return F.normalize(vectors), np.repeat([*map(str, range(num_people))], count)


@pytest.mark.parametrize("prior", [ENCODERS, None])
def test_a_threshold_of_few_people_is_near_the_encoders(prior):
    vectors, speakers = made_up(4, 2)
    own = calibrate_on(vectors, speakers, [3.0] * 8, 0.01, prior)
    assert 6 < own.scale < 40
    assert 0 < own.threshold < own.strict < 20
    assert own.num_people == 4
    # The rule of three of four people, if no false alarm is seen.
    assert own.false_alarm_interval[1] > 0.5 or own.false_alarm > 0


@pytest.mark.parametrize(("num_people", "count"), [(4, 2), (4, 4), (10, 2)])
def test_recordings_that_are_not_sorted_by_person_are_refused(num_people, count):
    vectors, speakers = made_up(num_people, count)
    mixed = np.tile(np.unique(speakers), count)  # everybody in each folder
    with pytest.raises(VoiceError, match=r"p = .*sorted by person"):
        calibrate_on(vectors, mixed, [3.0] * len(mixed), 0.01, ENCODERS)
