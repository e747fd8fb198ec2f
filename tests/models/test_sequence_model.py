"""What must hold of every sequence model, whatever its weights (methods: DT, section 7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model, pad, random_window, taken
from torch import Tensor
from torch.nn import functional

from rayrl_dt import losses
from rayrl_dt.data import windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.blocks import attention_bias
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.models.trunk import TrunkInputs
from rayrl_dt.types import Window

K = 6
SPACES: dict[str, dict[str, Any]] = {
    "continuous": {},
    "discrete": {"actions": 4},
    "discrete from 3": {"actions": 4, "first_action": 3},
    "discrete from -9": {"actions": 4, "first_action": -9},
}
TRANSFORMERS = [backbone for backbone in BACKBONES if backbone != "mlp"]
"""The backbones that act at each step of a window."""
MakeStore = Callable[..., TrajectoryStore]


@pytest.fixture(params=list(SPACES))
def store(request: pytest.FixtureRequest, make_store: MakeStore) -> TrajectoryStore:
    return make_store(**SPACES[request.param])


@pytest.fixture(params=TRANSFORMERS)
def transformer(request: pytest.FixtureRequest, store: TrajectoryStore) -> SequenceModel:
    return build_model(store, backbone=request.param)


@pytest.fixture
def continuous(make_store: MakeStore) -> SequenceModel:
    return build_model(make_store())


def changed(model: SequenceModel, window: Window[Tensor], name: str, steps: slice) -> Window[Tensor]:
    """The window with other values of one field at some steps."""
    values = getattr(window, name).clone()
    if name == "actions" and not model.spec.head.continuous:
        start, count = int(model.spec.action_space.start), model.spec.action_size
        values[:, steps] = start + (values[:, steps] - start + 1) % count
    elif name == "actions":
        values[:, steps] = -values[:, steps]
    else:
        values[:, steps] += 3
    return replace(window, **{name: values})


def difference(model: SequenceModel, one: Window[Tensor], other: Window[Tensor]) -> Tensor:
    """`(P,)` the largest change of the output at each step."""
    with torch.no_grad():
        return (model(one) - model(other)).abs().amax(dim=(0, 2))


def test_weights_that_are_loaded_leave_the_specification_alone(continuous: SequenceModel) -> None:
    before = continuous.spec.normalizer.mean.copy(), continuous.spec.normalizer.std.copy()
    continuous.load_state_dict({name: value + 1 for name, value in continuous.state_dict().items()})
    normalizer = continuous.spec.normalizer
    for kept, value in zip((normalizer.mean, normalizer.std), before, strict=True):
        np.testing.assert_array_equal(kept, value)


@pytest.mark.parametrize("step", range(K))
def test_outputs_do_not_see_the_future(transformer: SequenceModel, step: int) -> None:
    window = random_window(transformer, [K, K, 4])
    for name, begin in (("actions", step), ("observations", step + 1), ("returns_to_go", step + 1)):
        later = changed(transformer, window, name, slice(begin, None))
        assert difference(transformer, window, later)[: step + 1].max() <= 1e-6


@pytest.mark.parametrize("step", range(K - 1))
def test_an_action_moves_the_next_output_but_not_its_own(transformer: SequenceModel, step: int) -> None:
    window = random_window(transformer, [K, K])
    moved = difference(transformer, window, changed(transformer, window, "actions", slice(step, step + 1)))
    assert moved[step] <= 1e-6
    assert moved[step + 1] > 1e-3


@pytest.mark.parametrize("step", range(K))
def test_observation_and_return_move_their_own_output(transformer: SequenceModel, step: int) -> None:
    window = random_window(transformer, [K, K])
    here = slice(step, step + 1)
    assert difference(transformer, window, changed(transformer, window, "observations", here))[step] > 1e-3
    moved = difference(transformer, window, changed(transformer, window, "returns_to_go", here))[step]
    assert moved > 1e-3 if transformer.spec.model.backbone != "no-return" else moved == 0


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("garbage", [-10.0, 1e6, -(2.0**40), float("nan"), float("inf")])
def test_what_padding_holds_does_not_matter(store: TrajectoryStore, backbone: str, garbage: float) -> None:
    model = build_model(store, backbone=backbone)
    clean = random_window(model, [1, 3, K, 5])
    dirty = pad(clean, garbage)
    assert not torch.equal(clean.timesteps, dirty.timesteps)
    with torch.no_grad():
        outputs, dirty_outputs = model(clean), model(dirty)
    real = clean.mask[:, -outputs.shape[1] :]
    assert torch.equal(outputs[real], dirty_outputs[real])
    assert dirty_outputs.isfinite().all()


@pytest.mark.parametrize("backbone", TRANSFORMERS)
@pytest.mark.parametrize("garbage", [-10.0, 1e6, float("nan"), float("inf")])
def test_padding_has_no_gradient(store: TrajectoryStore, backbone: str, garbage: float) -> None:
    model = build_model(store, backbone=backbone)
    clean = random_window(model, [1, 3, K, 5])
    loss = losses.masked_mse if model.spec.head.continuous else losses.cross_entropy
    gradients = []
    for window in (clean, pad(clean, garbage)):
        model.zero_grad()
        loss(model(window), model.to_model_actions(window.actions), window.mask).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)


@pytest.mark.parametrize("real", range(1, K + 1))
@pytest.mark.parametrize("backbone", [name for name in TRANSFORMERS if name != "starformer"])
def test_left_padded_window_is_a_prefix_of_the_whole_one(
    store: TrajectoryStore, backbone: str, real: int
) -> None:
    # StARformer is left out: it knows the slots of a window instead of timesteps.
    model = build_model(store, backbone=backbone)
    whole = random_window(model, [K, K])
    shifted = {
        name: functional.pad(
            getattr(whole, name)[:, :real], (0, 0) * (getattr(whole, name).dim() - 2) + (K - real, 0)
        )
        for name in ("returns_to_go", "observations", "actions", "timesteps", "mask")
    }
    with torch.no_grad():
        outputs, prefix = model(whole), model(Window(**shifted))
    torch.testing.assert_close(prefix[:, -real:], outputs[:, :real], rtol=1e-5, atol=1e-5)


def test_a_mask_of_ones_is_no_mask(transformer: SequenceModel) -> None:
    window = random_window(transformer, [K, K])
    inputs = transformer.inputs(window)
    assert inputs.mask is None
    with torch.no_grad():
        bare, masked = transformer.trunk(inputs), transformer.trunk(replace(inputs, mask=window.mask))
    torch.testing.assert_close(bare, masked, rtol=1e-5, atol=1e-5)


def test_rows_of_a_batch_are_independent(transformer: SequenceModel) -> None:
    window = random_window(transformer, [K, 1, 4])
    with torch.no_grad():
        together = transformer(window)
        for row in range(3):
            alone = transformer(Window(**{k: v[row : row + 1] for k, v in window.to_dict().items()}))
            real = window.mask[row]
            torch.testing.assert_close(together[row, real], alone[0, real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("length", [1, K, 20])
@pytest.mark.parametrize("padded", [False, True])
def test_last_only_is_the_last_step(store: TrajectoryStore, backbone: str, length: int, padded: bool) -> None:
    model = build_model(store, backbone=backbone, context_length=length)
    window = random_window(model, [max(1, length // 2), 1, length] if padded else [length] * 3)
    with torch.no_grad():
        last, outputs = model(window, last_only=True), model(window)
    assert last.shape == (3, 1, model.spec.action_size)
    torch.testing.assert_close(last, outputs[:, -1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_both_ways_to_attend_agree(
    store: TrajectoryStore, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A probability that rounds to no drop at all takes the training path and changes nothing.
    model = build_model(store, dropout=1e-7)
    window = random_window(model, [2, K] if padded else [K, K])
    with torch.no_grad():
        fused, fused_last = model(window), model(window, last_only=True)
        monkeypatch.delattr(functional, "scaled_dot_product_attention")
        model.train()
        manual, manual_last = model(window), model(window, last_only=True)
    real = window.mask
    torch.testing.assert_close(fused[real], manual[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(fused_last, manual_last, rtol=0, atol=1e-5)


def test_behavior_cloning_has_two_tokens_per_step_and_no_return(store: TrajectoryStore) -> None:
    counted = {}
    for backbone in ("dt", "no-return"):
        model = build_model(store, backbone=backbone)
        widths: list[int] = []
        model.trunk.blocks[0].register_forward_pre_hook(lambda _, args, w=widths: w.append(args[0].shape[1]))
        window = random_window(model, [K, 3])
        difference(model, window, window)
        counted[backbone] = widths[0]
    assert counted == {"dt": 3 * K, "no-return": 2 * K}
    garbled = replace(window, returns_to_go=torch.full_like(window.returns_to_go, torch.nan))
    assert difference(model, window, garbled).max() == 0
    assert not any("return" in name for name, _ in model.named_parameters())


def test_mlp_reads_only_observations(store: TrajectoryStore) -> None:
    model = build_model(store, backbone="mlp")
    window = random_window(model, [K, 3])
    for name in ("actions", "returns_to_go", "timesteps"):
        assert difference(model, window, changed(model, window, name, slice(None))).max() == 0
    for step in range(K - 3, K):
        here = slice(step, step + 1)
        assert difference(model, window, changed(model, window, "observations", here)).max() > 1e-3


def test_with_a_context_of_one_there_is_no_history(store: TrajectoryStore) -> None:
    model = build_model(store, context_length=1)
    window = random_window(model, [1])
    assert difference(model, window, changed(model, window, "actions", slice(None))).max() <= 1e-6
    with torch.no_grad():
        assert model(window).shape == (1, 1, model.spec.action_size)


@pytest.mark.parametrize(("episode", "offset"), [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (3, 29), (4, 27)])
def test_short_episodes_make_windows_like_any_other(
    make_store: MakeStore, transformer: SequenceModel, episode: int, offset: int
) -> None:
    first = getattr(transformer.spec.action_space, "start", 0)
    options = {} if transformer.spec.head.continuous else {"actions": 4, "first_action": int(first)}
    store = make_store(lengths=(1, 2, K, 30, 30), **options)
    cut = windows.gather(store, np.array([episode, 4]), np.array([offset, 3]), K).to_torch()
    real = int(cut.mask[0].sum())
    assert real == min(K, int(store.lengths[episode]) - offset)
    alone = windows.gather(store, np.array([episode]), np.array([offset]), real).to_torch()
    with torch.no_grad():
        outputs, expected = transformer(cut), transformer(alone)
    torch.testing.assert_close(outputs[:1, -real:], expected, rtol=1e-5, atol=1e-5)
    loss = losses.masked_mse if transformer.spec.head.continuous else losses.cross_entropy
    assert loss(outputs, transformer.to_model_actions(cut.actions), cut.mask).isfinite()


def test_timesteps_past_the_table_share_its_last_row(continuous: SequenceModel) -> None:
    rows = continuous.spec.model.max_episode_steps
    assert rows == 30
    window = random_window(continuous, [K])
    at = [replace(window, timesteps=torch.full((1, K), step)) for step in (rows - 2, rows - 1, rows, 10**6)]
    assert difference(continuous, at[1], at[2]).max() == difference(continuous, at[1], at[3]).max() == 0
    assert difference(continuous, at[0], at[1]).max() > 1e-3


@pytest.mark.parametrize("backbone", ["dt", "no-return", "convformer", "reinformer"])
def test_without_a_timestep_embedding_only_the_order_counts(make_store: MakeStore, backbone: str) -> None:
    store = make_store()
    for kind, sees_the_time in (("learned", True), ("none", False)):
        model = build_model(store, backbone=backbone, timestep_embedding=kind)
        window = random_window(model, [K])
        later = replace(window, timesteps=window.timesteps + 5)
        assert (difference(model, window, later).max() > 1e-4) == sees_the_time
        order = replace(window, observations=window.observations[:, [*range(K - 3), K - 2, K - 3, K - 1]])
        assert difference(model, window, order)[-1] > 1e-6
        assert any("timestep" in name for name in model.state_dict()) == sees_the_time


def test_raw_units_are_converted_once(make_store: MakeStore) -> None:
    store = make_store()
    model = build_model(store, return_scale=100.0)
    model.action_middle.copy_(torch.tensor([1.0, -1.0]))
    model.action_half.copy_(torch.tensor([2.0, 0.5]))
    window = replace(
        random_window(model, [K, 2]), actions=torch.tensor([3.0, -0.75]).expand(2, K, 2).contiguous()
    )
    seen: list[TrunkInputs] = []
    model.trunk.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(window)
    (inputs,) = seen
    expected = store.normalizer.apply(window.observations.numpy())
    np.testing.assert_allclose(inputs.observations[0], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(inputs.returns_to_go, window.returns_to_go / 100)
    torch.testing.assert_close(inputs.actions[0], torch.tensor([1.0, 0.5]).expand(K, 2))
    assert (inputs.observations[1, : K - 2] == 0).all()
    assert (inputs.actions[1, : K - 2] == 0).all()


def test_actions_survive_the_way_to_model_units_and_back(make_store: MakeStore) -> None:
    low, high = (-0.4, 0.1), (0.7, 5.0)
    model = build_model(make_store())
    spec = replace(model.spec, action_low=low, action_high=high)
    model = SequenceModel(spec)
    actions = torch.tensor(np.random.default_rng(0).uniform(low, high, (50, 2)), dtype=torch.float32)
    inside = model.to_model_actions(actions)
    assert inside.abs().max() <= 1
    np.testing.assert_allclose(model.to_env_actions(inside), actions, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        model.to_env_actions(torch.tensor([[-1.0, 1.0]])), [[low[0], high[1]]], rtol=1e-6
    )
    assert model.to_model_actions(torch.tensor([[9.0, -9.0]])).tolist() == [[1.0, -1.0]]


def test_continuous_actions_stay_within_the_bounds_of_the_space(make_store: MakeStore) -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(-3, 1, 500)
    high = low + rng.uniform(0.01, 3, 500)
    for dtype in (np.float32, np.float64):
        space = gym.spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
        bounds = {"action_low": tuple(space.low.tolist()), "action_high": tuple(space.high.tolist())}
        spec = replace(build_model(make_store()).spec, action_space=space, **bounds)
        for extreme in (-1.0, 1.0):
            action = SequenceModel(spec).to_env_actions(torch.full((1, 500), extreme))
            assert action.dtype == dtype
            assert space.contains(action[0])


@pytest.mark.parametrize("far", [1e6, 1e38, np.inf])
def test_bounds_far_beyond_the_data_are_no_actions(make_store: MakeStore, far: float) -> None:
    store = make_store()
    space = gym.spaces.Box(np.array([-far, -1], np.float32), np.array([far, 1], np.float32))
    store = replace(store, info=replace(store.info, action_space=space))
    spec = PolicySpec.from_store(ModelConfig(), store, return_scale=None)
    found = SequenceModel(spec).to_env_actions(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    wanted = [[store.actions[:, 0].min(), -1], [store.actions[:, 0].max(), 1]]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_where_the_space_leaves_no_choice_none_is_made(make_store: MakeStore) -> None:
    store = make_store()
    store.actions[:, 1] = 0.5
    space = gym.spaces.Box(np.array([-1, 0.5], np.float32), np.array([1, 0.5], np.float32))
    store = replace(store, info=replace(store.info, action_space=space))
    model = SequenceModel(PolicySpec.from_store(ModelConfig(), store, return_scale=None))
    for extreme in (-1.0, 0.3, 1.0):
        assert space.contains(model.to_env_actions(torch.full((1, 2), extreme))[0])
    assert model.to_model_actions(torch.tensor([[0.0, 0.5]])).isfinite().all()


@pytest.mark.parametrize("start", [0, 3, -9])
def test_discrete_actions_start_where_the_space_does(make_store: MakeStore, start: int) -> None:
    model = build_model(make_store(actions=4, first_action=start))
    actions = start + torch.arange(4)
    assert model.to_model_actions(actions).tolist() == [0, 1, 2, 3]
    logits = torch.eye(4) * 9
    assert taken(model, logits).tolist() == actions.tolist()


def test_discrete_actions_follow_the_softmax(make_store: MakeStore) -> None:
    model = build_model(make_store(actions=4, first_action=3))
    law = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count = 20_000
    generator = torch.Generator().manual_seed(0)
    drawn = taken(model, law.log().expand(count, 4), generator)
    frequencies = np.bincount(drawn - 3, minlength=4) / count
    assert (np.abs(frequencies - law.numpy()) < 4 * np.sqrt(law.numpy() * (1 - law.numpy()) / count)).all()
    again = taken(model, law.log().expand(count, 4), generator.manual_seed(0))
    assert (drawn == again).all()


@pytest.mark.parametrize("mask", [None, torch.tensor([[False, False, True, True], [True] * 4])])
def test_attention_bias_is_causal_and_leaves_no_row_empty(mask: Tensor | None) -> None:
    bias = attention_bias(mask, 12, 3, torch.zeros(1))
    visible = torch.isfinite(bias)
    for row in range(len(bias)):
        real = torch.ones(12, dtype=torch.bool) if mask is None else mask[row].repeat_interleave(3)
        for query in range(12):
            for key in range(12):
                expected = (key <= query and bool(real[key])) or key == query
                assert bool(visible[row, 0, query, key]) == expected
    assert set(bias.unique().tolist()) == {0.0, -float("inf")}


def test_weights_alone_carry_the_normalizer(make_store: MakeStore) -> None:
    model = build_model(make_store())
    other = build_model(make_store(seed=5), seed=1)
    window = random_window(model, [K])
    assert difference_between(model, other, window) > 1e-3
    other.load_state_dict(model.state_dict())
    assert difference_between(model, other, window) == 0


def difference_between(one: SequenceModel, other: SequenceModel, window: Window[Tensor]) -> float:
    with torch.no_grad():
        return float((one(window) - other(window)).abs().max())


def test_images_that_are_no_bytes_are_refused(make_store: MakeStore) -> None:
    spec = build_model(make_store()).spec
    image: PolicySpec = replace(spec, observation_space=gym.spaces.Box(0, 1, (8, 8, 3), np.float32))
    with pytest.raises(UserError, match=r"float32 of shape \(8, 8, 3\).*FlattenObservation"):
        SequenceModel(image)


def test_initialization_follows_the_paper_code(make_store: MakeStore) -> None:
    config = {"embed_dim": 64, "num_layers": 2, "num_heads": 1, "max_episode_steps": 200}
    spec = build_model(make_store(), **config).spec
    torch.manual_seed(0)
    model = SequenceModel(spec)
    for block in model.trunk.blocks:
        for layer in (block.attention.qkv, block.attention.out, block.mlp.expand, block.mlp.contract):
            assert layer.weight.detach().std().item() == pytest.approx(0.02, rel=0.05)
            assert (layer.bias == 0).all()
    assert model.trunk.embed_timestep.weight.detach().std().item() == pytest.approx(1.0, rel=0.05)
    bound = 1 / np.sqrt(3)
    assert bound * 0.9 < model.trunk.embed_observation.weight.abs().max() <= bound


@pytest.mark.parametrize("width", [2**46, 2**70])
def test_a_network_that_no_memory_holds_is_one_line(store: TrajectoryStore, width: int) -> None:
    with pytest.raises(
        UserError, match=f"no memory for a network of embed_dim {width}.*make it smaller"
    ) as told:
        build_model(store, embed_dim=width)
    assert "\n" not in str(told.value)
