"""Against the real `transformers`: same inputs, same outputs, with and without padding."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model, random_window, scramble
from torch import Tensor

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.errors import UserError
from rayrl_dt.interop.huggingface import export_huggingface, import_huggingface, to_huggingface
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.serving.policy import SequencePolicy
from rayrl_dt.types import Normalizer, Window

transformers = pytest.importorskip("transformers")
MakeStore = Callable[..., TrajectoryStore]
STATES, ACTIONS, WIDTH = 3, 2, 16


def foreign(seed: int = 0, **changes: Any) -> Any:
    """A model of theirs whose every weight matters, also row 0 of the position table."""
    config = transformers.DecisionTransformerConfig(
        **{
            "state_dim": STATES,
            "act_dim": ACTIONS,
            "hidden_size": WIDTH,
            "max_ep_len": 40,
            "n_layer": 2,
            "n_head": 2,
            "vocab_size": 1,
            "bos_token_id": 0,
            "eos_token_id": 0,
            **changes,
        }
    )
    model = transformers.DecisionTransformerModel(config)
    scramble(model, seed)
    with torch.no_grad():
        model.encoder.wpe.weight[0] += 1.0
    return model.eval()


def their_actions(theirs: Any, ours: SequenceModel, window: Window[Tensor]) -> Tensor:
    """Asks their model about our raw window."""
    inputs = ours.inputs(window)
    with torch.no_grad():
        return theirs(
            states=inputs.observations,
            actions=inputs.actions,
            rewards=torch.zeros_like(inputs.returns_to_go),
            returns_to_go=inputs.returns_to_go,
            timesteps=inputs.timesteps,
            attention_mask=window.mask.long(),
            return_dict=True,
        ).action_preds


def assert_parity(theirs: Any, ours: SequenceModel, *, sensitive: bool = True) -> None:
    for real in ([6, 6, 6], [1, 3, 6]):
        window = random_window(ours, real, seed=sum(real))
        with torch.no_grad():
            outputs = ours(window)
        expected = their_actions(theirs, ours, window)
        assert (outputs - expected)[window.mask].abs().max() < 1e-5
        if sensitive:
            assert expected[window.mask].std() > 0.05, "the test would see nothing"


def read(folder: Path, **options: Any) -> SequenceModel:
    normalizer = Normalizer(np.array([1, -2, 0.5], np.float32), np.array([2, 0.5, 3], np.float32))
    defaults = {"normalizer": normalizer, "return_scale": 10.0, "context_length": 6}
    return import_huggingface(folder, **{**defaults, **options})


@pytest.fixture
def model(make_store: MakeStore) -> SequenceModel:
    return build_model(make_store())


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("heads", [1, 4])
def test_their_checkpoint_acts_the_same_here(tmp_path: Path, activation: str, heads: int) -> None:
    theirs = foreign(activation_function=activation, n_head=heads)
    theirs.save_pretrained(tmp_path)
    ours = read(tmp_path)
    assert not ours.training
    assert ours.spec.model.activation == activation
    assert (ours.spec.model.num_heads, ours.spec.model.max_episode_steps) == (heads, 40)
    assert_parity(theirs, ours)


def test_no_tensor_of_theirs_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing any tensor changes our output exactly if it changes theirs."""
    theirs = foreign()
    monkeypatch.setattr(
        transformers.DecisionTransformerModel,
        "from_pretrained",
        lambda *_, **__: (theirs, {"missing_keys": set()}),  # spares writing forty checkpoints
    )
    base = read(tmp_path)
    window = random_window(base, [6, 2])
    before = their_actions(theirs, base, window)
    matter = {}
    for name, parameter in theirs.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
            matter[name] = bool(
                ((their_actions(theirs, base, window) - before)[window.mask].abs() > 1e-4).any()
            )
            ours = bool(((read(tmp_path)(window) - base(window))[window.mask].abs() > 1e-4).any())
            parameter.copy_(kept)
        assert matter[name] == ours, name
    unused = {name for name, matters in matter.items() if not matters}
    # The heads that the paper's loss does not train, and GPT-2's table of words.
    heads = {f"predict_{what}.{kind}" for what in ("state", "return") for kind in ("weight", "bias")}
    assert unused == heads | {"encoder.wte.weight"}


@pytest.mark.parametrize(
    "options", [{"activation": "relu"}, {"activation": "gelu"}, {"timestep_embedding": "none"}], ids=str
)
def test_our_policy_acts_the_same_there(
    make_store: MakeStore, tmp_path: Path, options: dict[str, str]
) -> None:
    ours = build_model(make_store(), **options, return_scale=7.0, dropout=0.1)
    assert_parity(to_huggingface(ours), ours)
    export_huggingface(ours, tmp_path / "hf")
    theirs = transformers.DecisionTransformerModel.from_pretrained(tmp_path / "hf")
    assert not theirs.training
    assert_parity(theirs, ours)
    assert_parity(theirs, import_huggingface(tmp_path / "hf"))


def test_export_and_import_are_inverse(model: SequenceModel, tmp_path: Path) -> None:
    model.spec = model.spec.acting(context_length=2, action_selection=None)
    again = import_huggingface(export_huggingface(model, tmp_path / "hf"))
    assert again.spec.acts_on == 2 and again.spec.to_json() == model.spec.to_json()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    window = random_window(model, [6, 2])
    with torch.no_grad():
        assert torch.equal(again(window), model(window))


@pytest.mark.parametrize("layers", [1, 3])
def test_a_checkpoint_must_fit_the_policy_beside_it(
    model: SequenceModel, tmp_path: Path, layers: int
) -> None:
    folder = export_huggingface(model, tmp_path / "hf")
    header = json.loads((folder / "policy.json").read_text())
    header["spec"]["model"]["num_layers"] = layers
    (folder / "policy.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match=r"another architecture: trunk.blocks"):
        import_huggingface(folder)
    (folder / "policy.json").write_text('{"spec": {}}')
    with pytest.raises(UserError, match="not a whole policy"):
        import_huggingface(folder)


def test_import_and_export_are_inverse(tmp_path: Path) -> None:
    theirs = foreign()
    theirs.save_pretrained(tmp_path)
    ours = read(tmp_path)
    back = to_huggingface(ours)
    window = random_window(ours, [6, 3])
    difference = their_actions(theirs, ours, window) - their_actions(back, ours, window)
    assert difference[window.mask].abs().max() < 1e-5


def test_what_an_import_is_told_is_used(tmp_path: Path) -> None:
    foreign().save_pretrained(tmp_path)
    space = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([2, 4], np.float32))
    returns = {"min": 0.0, "p5": 1.0, "p50": 2.0, "p95": 3.0, "max": 4.0, "mean": 2.0}
    ours = read(tmp_path, action_space=space, env="Pendulum-v1", data_returns=returns, actions="scaled")
    assert (ours.spec.action_low, ours.spec.action_high) == ((-2.0, 0.0), (2.0, 4.0))
    assert (ours.spec.env, ours.spec.return_scale, ours.spec.data_returns) == (
        RecordedEnv("Pendulum-v1"),
        10.0,
        returns,
    )
    assert ours.observation_mean.tolist() == [1, -2, 0.5]
    policy = SequencePolicy(ours)
    policy.reset()
    assert space.contains(policy.act(np.zeros(3)))


def wide(make_trajectories: Callable[..., Any], *, actions: int = ACTIONS) -> TrajectoryStore:
    """Data whose actions go from -2 to 2."""
    space = gym.spaces.Box(-2, 2, (actions,), np.float32)
    info = DatasetInfo("wide", gym.spaces.Box(-np.inf, np.inf, (STATES,), np.float32), space)
    return TrajectoryStore.from_trajectories(make_trajectories(action_dim=actions), info)


@pytest.mark.parametrize(("actions", "bound"), [(None, 1.0), ("raw", 1.0), ("scaled", 2.0)])
def test_actions_are_what_an_import_says(
    tmp_path: Path,
    make_trajectories: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    actions: str | None,
    bound: float,
) -> None:
    foreign().save_pretrained(tmp_path)
    store = wide(make_trajectories)
    ours = read(tmp_path, normalizer=None, store=store, actions=actions)
    assert (ours.spec.action_low, ours.spec.action_high) == ((-bound,) * 2, (bound,) * 2)
    assert ("are taken for the environment's own" in caplog.text) == (actions is None)
    window = random_window(ours, [1])
    window = replace(window, timesteps=window.timesteps * 0)
    policy = SequencePolicy(ours)
    policy.reset(float(window.returns_to_go[0, -1]))
    with torch.no_grad():
        wanted = bound * ours(window)[0, -1].numpy()
    np.testing.assert_allclose(policy.act(window.observations[0, -1].numpy()), wanted, atol=1e-5)


def test_data_and_what_they_say_are_not_both_given(
    tmp_path: Path, make_trajectories: Callable[..., Any]
) -> None:
    foreign().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"store says what normalizer, env would say; leave them out"):
        read(tmp_path, store=wide(make_trajectories), env="Pendulum-v1")
    other = wide(make_trajectories, actions=3)
    with pytest.raises(UserError, match=r"^wide is of another task than .*gives 2: .*with --dataset$"):
        read(tmp_path, normalizer=None, store=other)


def test_the_checkpoint_is_opened_before_the_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a Hugging Face Decision Transformer"):
        read(tmp_path, normalizer=None, store="store:gone")
    foreign().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="gone"):
        read(tmp_path, normalizer=None, store="store:gone")


def test_an_export_acts_by_the_rules_of_its_page(
    make_trajectories: Callable[..., Any], tmp_path: Path
) -> None:
    """`docs/export.md` says what is to be done with `policy.json`; actions go from -2 to 2."""
    model = build_model(wide(make_trajectories), return_scale=7.0, max_episode_steps=9)
    model.spec = model.spec.acting(context_length=4, action_selection=None)
    theirs = transformers.DecisionTransformerModel.from_pretrained(export_huggingface(model, tmp_path))
    spec = json.loads((tmp_path / "policy.json").read_text())["spec"]
    steps = spec["acting_context_length"] or spec["model"]["context_length"]
    mean, std = (np.array(spec["normalizer"][name]) for name in ("mean", "std"))
    low, high = np.array(spec["action_low"]), np.array(spec["action_high"])
    policy, rng = SequencePolicy(model), np.random.default_rng(0)
    policy.reset(5.0)
    to_go, reward, past = 5.0, None, []
    for step in range(12):
        observation = rng.normal(size=STATES)
        to_go -= reward or 0.0
        past.append(
            {
                "states": (observation - mean) / std,
                "actions": np.zeros(ACTIONS),
                "returns_to_go": [to_go / spec["return_scale"]],
                "timesteps": min(step, theirs.config.max_ep_len - 1),
            }
        )
        window = {name: np.stack([each[name] for each in past[-steps:]])[None] for name in past[0]}
        inputs = {
            name: torch.as_tensor(values, dtype=torch.long if name == "timesteps" else torch.float32)
            for name, values in window.items()
        }
        with torch.no_grad():
            found = theirs(**inputs, rewards=inputs["returns_to_go"]).action_preds[0, -1].numpy()
        past[-1]["actions"] = found
        action = low + (found + 1) / 2 * (high - low)
        np.testing.assert_allclose(policy.act(observation, reward), action, atol=1e-5)
        reward = float(rng.normal())


def test_statistics_must_be_given(tmp_path: Path) -> None:
    foreign().save_pretrained(tmp_path)
    for missing in ({"normalizer": None}, {"return_scale": None}):
        with pytest.raises(UserError, match="holds neither observation statistics nor a return scale"):
            read(tmp_path, **missing)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_tanh": False}, r"action_tanh=False; only models with action_tanh=True"),
        ({"n_inner": 24}, r"n_inner 24; only 4 x hidden_size"),
        ({"activation_function": "gelu_new"}, r"activation is 'gelu_new'.*'gelu'"),
        ({"layer_norm_epsilon": 1e-3}, r"layer_norm_epsilon=0.001"),
        ({"scale_attn_weights": False}, r"scale_attn_weights=False"),
        ({"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx=True"),
    ],
)
def test_models_that_differ_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    foreign(**changes).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a Hugging Face Decision Transformer"):
        read(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not a Hugging Face Decision Transformer"):
        read(tmp_path)


def test_weights_are_never_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    foreign().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.h.1.mlp.c_fc.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"encoder.h.1.mlp.c_fc.weight is missing"):
        read(tmp_path)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    foreign().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"is not a Hugging Face Decision Transformer"):
        read(tmp_path)


def test_a_gpt2_checkpoint_is_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=1, vocab_size=4, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    with pytest.raises(UserError):
        read(tmp_path)


@pytest.mark.parametrize(
    ("space", "config"), [({"actions": 3}, {}), ({}, {"backbone": "no-return"}), ({}, {"backbone": "mlp"})]
)
def test_other_policies_are_exported_as_bundles(
    make_store: MakeStore, tmp_path: Path, space: dict[str, int], config: dict[str, str]
) -> None:
    model = build_model(make_store(**space), **config)
    with pytest.raises(UserError, match=r"export a bundle instead \(--format bundle\)"):
        export_huggingface(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_not_taken_for_a_bundle(model: SequenceModel, tmp_path: Path) -> None:
    folder = export_huggingface(model, tmp_path / "hf")
    assert "spec" in json.loads((folder / "policy.json").read_text())
    with pytest.raises(UserError, match="rayrl-dt import"):
        SequencePolicy.load(folder)


def test_without_the_extra_it_says_what_to_install(
    model: SequenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for call in (lambda: to_huggingface(model), lambda: read(tmp_path)):
        with pytest.raises(UserError, match=r"pip install 'rayrl_dt\[hf\]'"):
            call()
