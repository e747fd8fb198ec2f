"""The learned embedding of absolute timesteps, which Online DT leaves out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from rayrl_dt.errors import UserError

if TYPE_CHECKING:
    from rayrl_dt.models.model_config import ModelConfig

__all__ = ["TimestepTable", "add_timesteps", "rows_of"]


class TimestepTable(nn.Embedding):
    """One vector per timestep of an episode; timesteps past the table share its last row, as in the authors' DT."""

    @classmethod
    def of(cls, model: ModelConfig) -> TimestepTable | None:
        """Return a table from N(0, 1), as the authors' DT has it, or None with `timestep_embedding: none`.

        Raises:
            UserError: nobody says how long episodes are.
        """
        return None if model.timestep_embedding == "none" else cls(rows_of(model), model.embed_dim)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Return `(B, K, d)` of timesteps `(B, K)`."""
        return super().forward(timesteps.clamp(max=self.num_embeddings - 1))  # (B, K) -> (B, K, d)


def rows_of(model: ModelConfig) -> int:
    """Return how many timesteps an episode has.

    Raises:
        UserError: nobody says.
    """
    if model.max_episode_steps is None:
        raise UserError(
            "model_config.max_episode_steps is null, and the table of timesteps has so many rows; set it to the "
            "steps of the longest episode"
        )
    return model.max_episode_steps


def add_timesteps(tokens: Tensor, table: TimestepTable | None, timesteps: Tensor) -> Tensor:
    """Return tokens `(B, K, P, d)` with the vectors of their steps `(B, K)` added; as they are without a table."""
    return tokens if table is None else tokens + table(timesteps)[:, :, None]  # + (B, K, 1, d)
