"""What a user may choose of a model (`rl_module.model_config` of a config file)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from rayrl_dt.errors import UserError, one_of, suggest
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.decoupled import MODULATIONS
from rayrl_dt.models.encoders import ENCODERS
from rayrl_dt.models.heads import HEADS
from rayrl_dt.settings import Settings, choice, count, flag, optional, real, setting, whole_value

__all__ = ["CONTEXT_RULES", "TARGET_RULES", "ModelConfig"]

TARGET_RULES = ("auto", "decrement", "constant", "predicted")
CONTEXT_RULES = ("consecutive", "newest", "elastic", "whole")


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The user's choices (`rl_module.model_config` of a config file).

    Attributes:
        backbone: "dt" (return, state and action tokens), "radt" (state and action tokens that consult the
            returns in every layer), "convformer" (DT's tokens, mixed by short convolutions instead of
            attention), "starformer" (attention within each step, then among the steps), "reinformer" (state, return and
            action tokens, and a prediction of each step's return), "no-return" (transformer BC: state and action
            tokens), "decoupled" (those, and the newest return modulates what comes out), "mlp" (BC on the last
            `context_length` states).
        context_length: K, steps that the policy sees.
        embed_dim: width d of the tokens, or of the MLP's hidden layers.
        num_layers: transformer blocks, or hidden layers of the MLP.
        num_heads: attention heads; divides `embed_dim`. ConvFormer and the MLP have none.
        dropout: probability on embeddings, attention weights and residual branches.
        activation: "relu", "gelu", or "auto": gelu for RADT, ConvFormer, StARformer, Reinformer and the embeddings of
            Atari, relu for the others. The MLP has relu whatever is said.
        head: "deterministic" (tanh) or "gaussian" (tanh of a normal variable, to be sampled in training: stochastic
            ODT) for continuous actions, "categorical" for discrete ones, "multi-categorical" for several choices at
            once; "auto" is never "gaussian".
        target_rule: "decrement" the target return by each reward, hold it "constant" (delayed rewards), act on the
            return that the policy itself "predicted" and ignore the target (Reinformer alone), or "auto": predicted
            for Reinformer, else constant exactly when the training rewards were delayed.
        timestep_embedding: "learned" as in DT, or "none" as in Online DT (Zheng et al. 2022, their code's default),
            where a window knows its order from the causal mask alone; of DT, transformer BC, ConvFormer, Reinformer.
            "auto" is "none" for algorithm OnlineDT, unless it starts from a policy, and "learned" for all others.
        embeddings: "gym" (linear maps, each step's timestep, DT's norm, which RADT has for images alone), or "atari" as
            in the authors' networks for images: a tanh (DT) or SiLU (RADT, observations alone) behind the linear maps,
            and positions of the window instead of its steps (`rayrl_dt.models.positions`); of DT, transformer BC, RADT.
            "auto": atari for images.
        encoder: what reads observations: "vector", "image" (the convolutions of agents on Atari), "impala" (deeper),
            or "auto" by what they are, which is never "impala".
        frame_stack: single images `(H, W)` that the policy sees at a step, its own and those before it, as channels;
            None for 4. Images with channels of their own are not stacked.
        max_episode_steps: size of the timestep embedding; None for the longest episode of the data, or the
            environment's limit if that is longer. Later steps share the last embedding. StARformer and the MLP have
            none.
        use_seqra: RADT's cross-attention to the returns.
        use_stepra: RADT's scaling and shifting of each step by its return.
        adaptive_scaling: RADT's learned elementwise scale of that cross-attention.
        norm: of RADT's blocks: "post", "pre", or "auto": post, but pre without StepRA (the authors' ablation).
        padding_mask: of RADT in training: "correct", or "inverted" as in the authors' released code, where padded
            windows attend to nothing but their padding; only to reproduce it, and only in fp32.
        conv_window: tokens that a filter of ConvFormer spans, its own included (a step has three).
        local_dim: width of StARformer's tokens within a step.
        local_heads: attention heads within a step of StARformer; divides `local_dim`.
        modulation: of "decoupled", from a return to scale and shift: "linear" as in the paper, "mlp" with a hidden
            layer, or "block", which also enters the last block behind its attention.
        return_dropout: share of the windows in training that are asked for nothing: a learned vector stands for their
            returns ("decoupled": no scaling and no shift). The policy then also knows what the data do whatever the
            return, and can be guided away from it when it acts (`evaluation.guidance`). Of the backbones that are asked
            for returns; "reinformer" predicts its own.
        shared_networks: of Reinformer: one network for returns and actions instead of one each.
        return_expectile: tau of Reinformer's return prediction; towards 1 it predicts the best return of the data.
        context_rule: steps that Reinformer acts on with target rule "predicted": as many as its predictions fell,
            "consecutive" ones compared or each with the "newest"; those of which it predicts the highest return
            ("elastic"); or the "whole" context.

    Raises:
        UserError: a value is not allowed, or values do not go together.
    """

    section: ClassVar[str] = "model_config"

    # The tables are read at each check, so that a row that was added counts.
    backbone: str = setting("dt", lambda name, value: one_of(name, value, BACKBONES), fixed=whole_value)
    context_length: int = setting(20, count(1))
    embed_dim: int = setting(128, count(1), fixed=whole_value)
    num_layers: int = setting(3, count(1), fixed=whole_value)
    num_heads: int = setting(1, count(1), fixed=whole_value)
    dropout: float = setting(0.1, real(least=0.0, below=1.0))
    activation: str = setting("auto", choice("auto", "relu", "gelu"), fixed=whole_value)
    head: str = setting("auto", lambda name, value: one_of(name, value, ("auto", *HEADS)), fixed=whole_value)
    target_rule: str = setting("auto", choice(*TARGET_RULES))
    timestep_embedding: str = setting("auto", choice("auto", "learned", "none"), fixed=whole_value)
    embeddings: str = setting("auto", choice("auto", "gym", "atari"), fixed=whole_value)
    encoder: str = setting(
        "auto", lambda name, value: one_of(name, value, ("auto", *ENCODERS)), fixed=whole_value
    )
    frame_stack: int | None = setting(None, optional(count(1)), fixed=whole_value)
    max_episode_steps: int | None = setting(None, optional(count(1)), fixed=whole_value)
    use_seqra: bool = setting(True, flag(), fixed=whole_value)
    use_stepra: bool = setting(True, flag(), fixed=whole_value)
    adaptive_scaling: bool = setting(True, flag(), fixed=whole_value)
    norm: str = setting("auto", choice("auto", "post", "pre"), fixed=whole_value)
    padding_mask: str = setting("correct", choice("correct", "inverted"), fixed=whole_value)
    conv_window: int = setting(6, count(1), fixed=whole_value)
    local_dim: int = setting(16, count(1), fixed=whole_value)
    local_heads: int = setting(4, count(1), fixed=whole_value)
    modulation: str = setting(
        "linear", lambda name, value: one_of(name, value, MODULATIONS), fixed=whole_value
    )
    return_dropout: float = setting(0.0, real(least=0.0, below=1.0), fixed=whole_value)
    shared_networks: bool = setting(False, flag(), fixed=whole_value)
    return_expectile: float = setting(0.99, real(above=0.0, below=1.0))
    context_rule: str = setting("consecutive", choice(*CONTEXT_RULES))

    def __post_init__(self) -> None:
        super().__post_init__()
        backbone = BACKBONES[self.backbone]
        if self.timestep_embedding == "none" and not backbone.timestep_table:
            having = ", ".join(name for name, row in BACKBONES.items() if row.timestep_table)
            raise UserError(
                f"model_config.timestep_embedding 'none' is for backbones {having}, not {self.backbone!r}; remove it"
            )
        if self.embed_dim % self.num_heads:
            raise UserError(
                f"model_config.embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}; choose a "
                "width that the heads divide"
            )
        if self.target_rule == "predicted" and not backbone.predicts_returns:
            having = " or ".join(repr(name) for name, row in BACKBONES.items() if row.predicts_returns)
            raise UserError(
                f"model_config.target_rule 'predicted' needs backbone {having}: {self.backbone!r} predicts no "
                "returns; choose that backbone, or target_rule: auto"
            )
        self._check_options(backbone.options)
        backbone.trunk.check(self)

    def _check_options(self, own: tuple[str, ...]) -> None:
        """Refuse what only other backbones read."""
        for each in fields(self):
            having = [name for name, row in BACKBONES.items() if each.name in row.options]
            value = getattr(self, each.name)
            if having and each.name not in own and value != each.default:
                raise UserError(
                    f"model_config.{each.name} {value!r} is for backbone {' or '.join(map(repr, having))}, "
                    f"not {self.backbone!r}; remove it"
                )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build the config from a dict; unknown keys are refused with the nearest known one."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"rl_module.model_config has no key {key!r}.{suggest(key, known)}")
        return cls(**values)

    def resolved(self) -> ModelConfig:
        """Return the config with what hangs on the backbone alone decided."""
        backbone = BACKBONES[self.backbone]
        return replace(
            self,
            activation=backbone.activation if self.activation == "auto" else self.activation,
            timestep_embedding="learned" if self.timestep_embedding == "auto" else self.timestep_embedding,
            **backbone.trunk.decided(self),
        )
