"""RLlib modules of a policy beside implicit Q-learning's critic: trained with it, or frozen."""

from __future__ import annotations

from ray.rllib.core.rl_module.apis import InferenceOnlyAPI

from rayrl_dt.algorithms.module import INIT_SEED, SequenceRLModule
from rayrl_dt.critics.networks import IQLCritic, TwinCritic
from rayrl_dt.seeding import seeded_weights

__all__ = ["CRITIC_HIDDEN", "CriticRLModule", "FrozenCriticRLModule"]

CRITIC_HIDDEN = "critic_hidden"


class CriticRLModule(SequenceRLModule, InferenceOnlyAPI):
    """Adds a critic for the learner; env runners hold the policy alone.

    Attributes:
        critic: V, twin Q and its slow copy.
    """

    def setup(self) -> None:
        """Build the networks with weights that are a function of the run's seed alone."""
        super().setup()
        if self.inference_only:
            return
        with seeded_weights(self.model_config.get(INIT_SEED) or 0, "init-critic"):
            self.critic = IQLCritic(self.model.spec, hidden=self.model_config[CRITIC_HIDDEN])

    @property
    def judge(self) -> TwinCritic | None:
        """The twin Q that a training objective may ask; None on env runners."""
        return None if self.inference_only else self.critic.q

    def get_non_inference_attributes(self) -> list[str]:
        """Names what env runners do without."""
        return ["critic"]


class FrozenCriticRLModule(CriticRLModule):
    """Its critic comes from a bundle and never trains. Checkpoints keep it, so they need nothing but themselves."""

    def setup(self) -> None:
        """Build the networks; the algorithm puts the critic's weights in."""
        super().setup()
        if not self.inference_only:
            self.critic.requires_grad_(False)
