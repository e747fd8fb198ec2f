"""What a user may choose of a model (`rl_module.model_config` of a config file)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from rayrl_dt.errors import UserError, suggest

__all__ = ["BACKBONES", "CONTEXT_RULES", "HEADS", "TARGET_RULES", "WITH_TIMESTEP_TABLE", "ModelConfig"]

BACKBONES = ("dt", "radt", "convformer", "starformer", "reinformer", "no-return", "mlp")
HEADS = ("auto", "deterministic", "gaussian", "categorical")
TARGET_RULES = ("auto", "decrement", "constant", "predicted")
CONTEXT_RULES = ("consecutive", "newest", "elastic", "whole")
WITH_TIMESTEP_TABLE = ("dt", "no-return", "convformer", "reinformer")
_GELU_BACKBONES = ("radt", "convformer", "starformer", "reinformer")
_COUNTS = (
    "context_length",
    "embed_dim",
    "num_layers",
    "num_heads",
    "conv_window",
    "local_dim",
    "local_heads",
)
# Option -> the only backbone that has it, and its default.
_OPTIONS_OF_ONE_BACKBONE: dict[str, tuple[str, Any]] = {
    "use_seqra": ("radt", True),
    "use_stepra": ("radt", True),
    "adaptive_scaling": ("radt", True),
    "norm": ("radt", "auto"),
    "padding_mask": ("radt", "correct"),
    "conv_window": ("convformer", 6),
    "local_dim": ("starformer", 16),
    "local_heads": ("starformer", 4),
    "shared_networks": ("reinformer", False),
    "return_expectile": ("reinformer", 0.99),
    "context_rule": ("reinformer", "consecutive"),
}


@dataclass(frozen=True)
class ModelConfig:
    """The user's choices (`rl_module.model_config` of a config file).

    Attributes:
        backbone: "dt" (return, state and action tokens), "radt" (state and action tokens that consult the
            returns in every layer), "convformer" (DT's tokens, mixed by short convolutions instead of
            attention), "starformer" (attention within each step, then among the steps), "reinformer" (state, return and
            action tokens, and a prediction of each step's return), "no-return" (transformer BC: state and action
            tokens), "mlp" (BC on the last `context_length` states).
        context_length: K, steps that the policy sees.
        embed_dim: width d of the tokens, or of the MLP's hidden layers.
        num_layers: transformer blocks, or hidden layers of the MLP.
        num_heads: attention heads; divides `embed_dim`. ConvFormer has none.
        dropout: probability on embeddings, attention weights and residual branches.
        activation: "relu", "gelu", or "auto": gelu for RADT, ConvFormer, StARformer and Reinformer, relu for
            the others.
        head: "deterministic" (tanh) or "gaussian" (tanh of a normal variable, to be sampled in training: stochastic
            ODT) for continuous actions, "categorical" for discrete ones; "auto" is never "gaussian".
        target_rule: "decrement" the target return by each reward, hold it "constant" (delayed rewards), act on the
            return that the policy itself "predicted" and ignore the target (Reinformer alone), or "auto": predicted
            for Reinformer, else constant exactly when the training rewards were delayed.
        timestep_embedding: "learned" as in DT, or "none" as in Online DT (Zheng et al. 2022, their code's default),
            where a window knows its order from the causal mask alone; of DT, transformer BC, ConvFormer, Reinformer.
            "auto" is "none" for algorithm OnlineDT, unless it starts from a policy, and "learned" for all others.
        max_episode_steps: size of the timestep embedding; None for the longest episode of the data, or the
            environment's limit if that is longer. Later steps share the last embedding. StARformer has none.
        use_seqra: RADT's cross-attention to the returns.
        use_stepra: RADT's scaling and shifting of each step by its return.
        adaptive_scaling: RADT's learned elementwise scale of that cross-attention.
        norm: of RADT's blocks: "post", "pre", or "auto": post, but pre without StepRA (the authors' ablation).
        padding_mask: of RADT in training: "correct", or "inverted" as in the authors' released code, where padded
            windows attend to nothing but their padding; only to reproduce it, and only in fp32.
        conv_window: tokens that a filter of ConvFormer spans, its own included (a step has three).
        local_dim: width of StARformer's tokens within a step.
        local_heads: attention heads within a step of StARformer; divides `local_dim`.
        shared_networks: of Reinformer: one network for returns and actions instead of one each.
        return_expectile: tau of Reinformer's return prediction; towards 1 it predicts the best return of the data.
        context_rule: steps that Reinformer acts on with target rule "predicted": as many as its predictions fell,
            "consecutive" ones compared or each with the "newest"; those of which it predicts the highest return
            ("elastic"); or the "whole" context.
    """

    backbone: str = "dt"
    context_length: int = 20
    embed_dim: int = 128
    num_layers: int = 3
    num_heads: int = 1
    dropout: float = 0.1
    activation: str = "auto"
    head: str = "auto"
    target_rule: str = "auto"
    timestep_embedding: str = "auto"
    max_episode_steps: int | None = None
    use_seqra: bool = True
    use_stepra: bool = True
    adaptive_scaling: bool = True
    norm: str = "auto"
    padding_mask: str = "correct"
    conv_window: int = 6
    local_dim: int = 16
    local_heads: int = 4
    shared_networks: bool = False
    return_expectile: float = 0.99
    context_rule: str = "consecutive"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build the config from a dict; unknown keys are refused with the nearest known one."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"rl_module.model_config has no key {key!r}.{suggest(key, known)}")
        return cls(**values)

    def validate(self) -> None:
        """Raise UserError for a value that cannot work, naming the allowed ones."""
        for name, allowed in (
            ("backbone", BACKBONES),
            ("head", HEADS),
            ("target_rule", TARGET_RULES),
            ("activation", ("auto", "relu", "gelu")),
            ("norm", ("auto", "post", "pre")),
            ("padding_mask", ("correct", "inverted")),
            ("context_rule", CONTEXT_RULES),
            ("timestep_embedding", ("auto", "learned", "none")),
        ):
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise UserError(f"model_config.{name} is {value!r}.{suggest(value, allowed)}")
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"model_config.{name} is {value!r}; it must be a whole number of at least 1")
        if self.timestep_embedding == "none" and self.backbone not in WITH_TIMESTEP_TABLE:
            raise UserError(
                f"model_config.timestep_embedding 'none' is for backbones {', '.join(WITH_TIMESTEP_TABLE)}, "
                f"not {self.backbone!r}; remove it"
            )
        limit = self.max_episode_steps
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise UserError(
                f"model_config.max_episode_steps is {limit!r}; it must be a whole number of at least 1, "
                "or null"
            )
        if not isinstance(self.dropout, int | float) or not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model_config.dropout is {self.dropout!r}; it must be a number in [0, 1)")
        self._validate_options()
        for width, heads in (("embed_dim", "num_heads"), ("local_dim", "local_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise UserError(
                    f"model_config.{width} {getattr(self, width)} is not a multiple of {heads} "
                    f"{getattr(self, heads)}; choose a width that the heads divide"
                )

    def _validate_options(self) -> None:
        for name, (backbone, default) in _OPTIONS_OF_ONE_BACKBONE.items():
            value = getattr(self, name)
            if isinstance(default, bool) and not isinstance(value, bool):
                raise UserError(f"model_config.{name} is {value!r}; it must be true or false")
            if self.backbone != backbone and value != default:
                raise UserError(
                    f"model_config.{name} {value!r} is for backbone {backbone!r}, not {self.backbone!r}; remove it"
                )
        self._validate_prediction()
        if not (self.use_seqra or self.use_stepra):
            raise UserError(
                "model_config.use_seqra and use_stepra are both false, so nothing reads the returns; "
                "for a policy without returns choose backbone: no-return"
            )
        if not (self.use_seqra or self.adaptive_scaling):
            raise UserError("model_config.adaptive_scaling false needs use_seqra: it scales that attention")

    def _validate_prediction(self) -> None:
        expectile = self.return_expectile
        if isinstance(expectile, bool) or not isinstance(expectile, int | float) or not 0 < expectile < 1:
            raise UserError(f"model_config.return_expectile is {expectile!r}; it must be a number in (0, 1)")
        if self.target_rule == "predicted" and self.backbone != "reinformer":
            raise UserError(
                f"model_config.target_rule 'predicted' needs backbone 'reinformer': {self.backbone!r} predicts no "
                "returns; choose that backbone, or target_rule: auto"
            )
        if self.target_rule not in ("auto", "predicted") and self.context_rule != "consecutive":
            raise UserError(
                f"model_config.context_rule {self.context_rule!r} compares predicted returns, and target_rule is "
                f"{self.target_rule!r}; remove it, or set target_rule: predicted"
            )

    def resolved(self) -> ModelConfig:
        """Return the config with what hangs on the backbone alone decided."""
        activation = "gelu" if self.backbone in _GELU_BACKBONES else "relu"
        norm = self.norm
        if self.backbone == "radt" and norm == "auto":
            norm = "post" if self.use_stepra else "pre"
        return replace(
            self,
            activation=activation if self.activation == "auto" else self.activation,
            norm=norm,
            timestep_embedding="learned" if self.timestep_embedding == "auto" else self.timestep_embedding,
        )
