"""What tests of acting with a critic share. Each has a `model` of its own."""

from __future__ import annotations

import pytest
from builders import scramble

from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.critics.training import new_critic
from rayrl_dt.models.sequence_model import SequenceModel


@pytest.fixture
def critic(model: SequenceModel) -> IQLCritic:
    """A critic of the model's kind, away from its first weights."""
    built = new_critic(model.spec, hidden=32, seed=0)
    scramble(built)
    return built
