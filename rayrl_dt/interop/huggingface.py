"""Decision Transformers to and from Hugging Face's `DecisionTransformerModel`.

Their trunk keeps GPT-2's position table and reads its row 0 at every token (all position ids are 0), right
after the embedding's LayerNorm: importing folds that row into the LayerNorm's bias, exporting writes zeros.
Their projections are GPT-2 `Conv1D`, whose weights are transposed.

Their checkpoints hold no observation statistics and no return scale. An export carries ours in `policy.json`;
an import of a foreign checkpoint has to be told.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from rayrl_dt.data import sources
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.errors import UserError, one_line, one_of
from rayrl_dt.interop.bundle import load_weights
from rayrl_dt.interop.header import HEADER, read_spec
from rayrl_dt.models.encoders import encoder_of
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.types import Normalizer

__all__ = ["ACTIONS", "export_huggingface", "import_huggingface", "to_huggingface"]

_LOG = logging.getLogger(__name__)
ACTIONS = ("raw", "scaled")
"""What the actions of a foreign checkpoint may be; the first unless an import is told otherwise."""
_SAID_BY_DATA = ("normalizer", "env", "action_space", "data_returns")

# What our trunk does, where theirs has a choice.
_SETTINGS = {
    "action_tanh": True,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}
# Their names of our sizes.
_SIZES = {
    "hidden_size": "embed_dim",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "activation_function": "activation",
    "max_ep_len": "max_episode_steps",
}


def export_huggingface(model: SequenceModel, folder: str | os.PathLike[str]) -> Path:
    """Write a checkpoint that `DecisionTransformerModel.from_pretrained` loads, plus our `policy.json`.

    Raises:
        UserError: the policy is not a deterministic, continuous Decision Transformer, or transformers is not installed.
    """
    target = Path(folder)
    to_huggingface(model).save_pretrained(target)
    (target / HEADER).write_text(json.dumps({"spec": model.spec.to_json()}, indent=2))
    return target


def to_huggingface(model: SequenceModel) -> Any:
    """Return an equal `transformers.DecisionTransformerModel`, in eval mode.

    It takes *normalized* observations and *scaled* returns-to-go, and gives actions in [-1, 1].
    """
    transformers = _transformers()
    spec = model.spec
    if encoder_of(spec.seen_space, spec.model.encoder).raw or spec.model.embeddings == "atari":
        raise UserError(
            "Hugging Face's Decision Transformer reads no images, and has no embeddings for Atari; export a bundle "
            "instead (--format bundle)"
        )
    if spec.model.backbone != "dt" or spec.model.head != "deterministic":
        raise UserError(
            f"Hugging Face has no model for backbone {spec.model.backbone!r} with "
            f"{'continuous' if spec.head.continuous else 'discrete'} actions and a {spec.model.head} head; "
            "export a bundle instead (--format bundle)"
        )
    if spec.model.return_dropout > 0:
        raise UserError(
            f"Hugging Face's Decision Transformer is always asked for a return, and this policy also acts on none "
            f"(return_dropout {spec.model.return_dropout}); export a bundle instead (--format bundle)"
        )
    config = transformers.DecisionTransformerConfig(
        state_dim=(spec.observation_space.shape or (1,))[0],
        act_dim=spec.action_size,
        n_inner=4 * spec.model.embed_dim,
        vocab_size=1,
        bos_token_id=0,
        eos_token_id=0,
        **{theirs: getattr(spec.model, ours) for theirs, ours in _SIZES.items()},
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), spec.model.dropout),
        **_SETTINGS,
    )
    theirs = transformers.DecisionTransformerModel(config).eval()
    ours = model.state_dict()
    state = theirs.state_dict()
    for our_name, their_name, transposed in _names(spec.model.num_layers, spec.model.timestep_embedding):
        value = ours[our_name]
        state[their_name] = (value.t() if transposed else value).clone()
    if spec.model.timestep_embedding == "none":
        state["embed_timestep.weight"].zero_()
    state["encoder.wpe.weight"] = torch.zeros_like(state["encoder.wpe.weight"])
    theirs.load_state_dict(state)
    return theirs


def import_huggingface(
    path: str | os.PathLike[str],
    *,
    context_length: int | None = None,
    store: TrajectoryStore | str | None = None,
    normalizer: Normalizer | None = None,
    return_scale: float | None = None,
    env: str | None = None,
    action_space: gym.spaces.Box | None = None,
    data_returns: dict[str, float] | None = None,
    actions: str | None = None,
) -> SequenceModel:
    """Load a Hugging Face Decision Transformer as a policy network.

    Args:
        path: local folder with `config.json` and the weights.
        context_length: K, 20 if it is left out; their checkpoints do not record it.
        store: the data that the model was trained on, or their source id; says everything below but the return scale
            and what actions are.
        normalizer: statistics of the observations that the model was trained on.
        return_scale: what returns were divided by.
        env: environment id, for the record.
        action_space: the environment's; None for [-1, 1].
        data_returns: quantiles of the training returns, for default targets; None if unknown.
        actions: what the model's actions in [-1, 1] are: "raw", the environment's own, as where the authors' code
            trained it, or "scaled" to the bounds of the action space (to the data's where it has none). None for
            "raw", and a warning where the bounds are others.

    Raises:
        UserError: statistics are neither given nor beside the checkpoint, or given twice; the data are of another task;
            or the checkpoint cannot be read.
    """
    given = {
        "context_length": context_length,
        "store": store,
        "normalizer": normalizer,
        "return_scale": return_scale,
        "env": env,
        "action_space": action_space,
        "data_returns": data_returns,
        "actions": actions,
    }
    named = [name for name, value in given.items() if value is not None]
    folder = Path(path)
    theirs = _opened(folder)
    config = theirs.config
    model_config = ModelConfig(
        backbone="dt",
        context_length=20 if context_length is None else context_length,
        dropout=config.resid_pdrop,
        head="deterministic",
        target_rule="decrement",
        **{ours: getattr(config, theirs) for theirs, ours in _SIZES.items()},
    )
    if (folder / HEADER).exists():
        if named:
            raise UserError(f"{folder / HEADER} says what {', '.join(named)} would say; leave them out")
        spec = _saved_spec(folder / HEADER)
    elif return_scale is None or (store is None and normalizer is None):
        raise UserError(
            f"{folder} holds neither observation statistics nor a return scale; pass return_scale= and the data that "
            "it was trained on, store=load_dataset(...) (rayrl-dt import --dataset ... --return-scale ...)"
        )
    elif store is not None:
        twice = [name for name in named if name in _SAID_BY_DATA]
        if twice:
            raise UserError(f"store says what {', '.join(twice)} would say; leave them out")
        data = sources.load(store) if isinstance(store, str) else store
        _check_task(config, data, folder)
        spec = PolicySpec.from_store(model_config, data, return_scale=return_scale)
        # The table of timesteps is as long as it was trained.
        spec = replace(spec, model=replace(spec.model, max_episode_steps=config.max_ep_len))
        spec = _in_units_of(actions, spec, folder)
    else:
        assert normalizer is not None
        bounds = action_space or gym.spaces.Box(-1.0, 1.0, (config.act_dim,), np.float32)
        spec = PolicySpec(
            model=model_config.resolved(),
            observation_space=gym.spaces.Box(-np.inf, np.inf, (config.state_dim,), np.float32),
            action_space=bounds,
            action_low=tuple(bounds.low.tolist()),
            action_high=tuple(bounds.high.tolist()),
            normalizer=normalizer,
            return_scale=return_scale,
            env=None if env is None else RecordedEnv(env),
            dataset=f"huggingface:{folder.name}",
            data_returns=data_returns or {},
        )
        spec = _in_units_of(actions, spec, folder)
    spec.validate()
    model = SequenceModel(spec)
    state = theirs.state_dict()
    weights: dict[str, Tensor] = dict(model.named_buffers())
    for our_name, their_name, transposed in _names(config.n_layer, spec.model.timestep_embedding):
        value = state[their_name]
        weights[our_name] = (value.t() if transposed else value).clone()
    weights["trunk.embed_norm.bias"] = weights["trunk.embed_norm.bias"] + state["encoder.wpe.weight"][0]
    load_weights(model, weights, source=str(folder))
    return model.eval()


def _opened(folder: Path) -> Any:
    """Return the model of a checkpoint, if ours can do what it does."""
    transformers = _transformers()
    try:
        theirs, report = transformers.DecisionTransformerModel.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} is not a Hugging Face Decision Transformer ({one_line(error)})") from error
    if report["missing_keys"]:
        # transformers only warns, and makes up random weights.
        name = min(report["missing_keys"])
        raise UserError(f"{folder} is not a Hugging Face Decision Transformer ({name} is missing)")
    config = theirs.config
    for setting, wanted in _SETTINGS.items():
        if getattr(config, setting) != wanted:
            raise UserError(
                f"{folder} has {setting}={getattr(config, setting)}; only models with {setting}={wanted} can "
                "be imported"
            )
    if config.n_inner not in (None, 4 * config.hidden_size):
        raise UserError(f"{folder} has n_inner {config.n_inner}; only 4 x hidden_size can be imported")
    return theirs


def _check_task(config: Any, data: TrajectoryStore, folder: Path) -> None:
    """Refuse data that a model cannot have learned from."""
    theirs = (config.state_dim,), (config.act_dim,)
    here = data.info.observation_space, data.info.action_space
    if theirs != tuple(space.shape for space in here):
        raise UserError(
            f"{data.info.source} is of another task than {folder}, which takes {config.state_dim} numbers and gives "
            f"{config.act_dim}: observations are {here[0]}, actions {here[1]}; name data of its own task with --dataset"
        )


def _in_units_of(actions: str | None, spec: PolicySpec, folder: Path) -> PolicySpec:
    """Return a specification whose actions are what a model gives, as an import is told."""
    if one_of("actions", actions or ACTIONS[0], ACTIONS) == "scaled":
        return spec
    space, ones = spec.action_space, (1.0,) * spec.action_size
    assert isinstance(space, gym.spaces.Box)
    if actions is None and not (np.allclose(space.low, -1) and np.allclose(space.high, 1)):
        _LOG.warning(
            "%s: its actions, in [-1, 1], are taken for the environment's own, whose space is %s; if they were scaled "
            "to it in training, say so: actions scaled (--actions scaled).",
            folder,
            space,
        )
    return replace(spec, action_low=tuple(-one for one in ones), action_high=ones)


def _saved_spec(path: Path) -> PolicySpec:
    try:
        header = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is not a whole policy ({one_line(error)}); export the policy again"
        ) from error
    return read_spec(header, path)


def _names(layers: int, timestep_embedding: str) -> Iterator[tuple[str, str, bool]]:
    """Yield (our name, their name, whether theirs is transposed) of every shared tensor."""
    for ours, theirs in (
        ("trunk.embed_return", "embed_return"),
        ("trunk.embed_observation", "embed_state"),
        ("trunk.embed_action", "embed_action"),
        ("trunk.embed_norm", "embed_ln"),
        ("trunk.final_norm", "encoder.ln_f"),
        ("head", "predict_action.0"),
    ):
        yield f"{ours}.weight", f"{theirs}.weight", False
        yield f"{ours}.bias", f"{theirs}.bias", False
    if timestep_embedding != "none":
        yield "trunk.embed_timestep.weight", "embed_timestep.weight", False
    for layer in range(layers):
        for ours, theirs, transposed in (
            ("norm_attention", "ln_1", False),
            ("attention.qkv", "attn.c_attn", True),
            ("attention.out", "attn.c_proj", True),
            ("norm_mlp", "ln_2", False),
            ("mlp.expand", "mlp.c_fc", True),
            ("mlp.contract", "mlp.c_proj", True),
        ):
            yield f"trunk.blocks.{layer}.{ours}.weight", f"encoder.h.{layer}.{theirs}.weight", transposed
            yield f"trunk.blocks.{layer}.{ours}.bias", f"encoder.h.{layer}.{theirs}.bias", False


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("Hugging Face support needs the extra: pip install 'rayrl_dt[hf]'") from error
    return transformers
