"""The contract of every policy: it is fitted, saved, loaded, resumed and exported, and acts as it was evaluated.

The cases are the rows of the package's own tables, so that a new row is tested by being there. What does not go
together has to be refused before anything is trained, with a message for the user.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import contract
import gymnasium as gym
import numpy as np
import pytest
import torch

from rayrl_dt import SequencePolicy, UserError, load_dataset
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.evaluation.evaluate import evaluate_bundle
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.huggingface import export_huggingface, import_huggingface
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.encoders import ENCODERS, stacked
from rayrl_dt.models.heads import HEADS
from rayrl_dt.objectives.rl_gradients import RL_GRADIENTS
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.runs.config_files import ALGORITHMS, build_config

pytestmark = pytest.mark.ray

Data = Callable[[str, str], str]

# What no table says: a backbone that reads some observations only, and backbones that cannot be finetuned.
UNREAD = {"starformer": ("discrete", "image", "frame", "mixed")}
# Images cost the most: each kind is tried where it is read in a way of its own, with actions of one kind.
TRIED = {
    "image": ("convformer", "reinformer", "mlp", "starformer"),
    "frame": ("dt", "radt", "no-return"),
    "mixed": ("radt", "starformer"),
}
NOT_FINETUNED = ("mlp", "reinformer")


@dataclass(frozen=True)
class Case:
    """A policy of the tables, and what it acts on."""

    backbone: str
    head: str
    observations: str
    actions: str

    def __str__(self) -> str:
        return f"{self.backbone}-{self.head}-{self.observations}-{self.actions}"

    @property
    def misfits(self) -> int:
        """How many parts do not go together with the others."""
        head_fits = HEADS[self.head].fits(contract.ACTIONS[self.actions])
        return (not head_fits) + (self.observations not in readable(self.backbone))

    @property
    def model(self) -> dict[str, Any]:
        """The model's section of a config file."""
        return model_of(self.backbone, head=self.head)


def readable(backbone: str) -> list[str]:
    """The kinds of observations for which there is an encoder, less those that a backbone does not take."""
    found = [kind for kind in contract.OBSERVATIONS if encoder_for(seen(kind))]
    return [kind for kind in found if kind not in UNREAD.get(backbone, ())]


def seen(kind: str) -> Any:
    """The space of what a model sees at a step."""
    space = contract.OBSERVATIONS[kind]
    if isinstance(space, gym.spaces.Dict):
        return Flattening(space).flat
    return stacked(space, 4 if kind == "frame" else None)


def encoder_for(space: Any) -> str | None:
    """The name of the encoder that reads observations of a space."""
    return next((name for name, encoder in ENCODERS.items() if encoder.fits(space)), None)


def actions_for(head: str) -> str:
    """The first kind of actions that a head takes."""
    return next(kind for kind, space in contract.ACTIONS.items() if HEADS[head].fits(space))


def model_of(backbone: str, **chosen: Any) -> dict[str, Any]:
    sizes = dict(contract.MODEL)
    if backbone != "starformer":
        del sizes["local_dim"], sizes["local_heads"]
    return {**sizes, "backbone": backbone, **chosen}


CASES = [
    case
    for case in (Case(*parts) for parts in product(BACKBONES, HEADS, contract.OBSERVATIONS, contract.ACTIONS))
    if case.observations not in TRIED
    or (
        case.backbone in TRIED[case.observations] and (case.head, case.actions) == ("categorical", "discrete")
    )
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Returns a function that gives the data of a kind of observation and of action."""
    made: dict[tuple[str, str], str] = {}

    def source(observations: str, actions: str) -> str:
        kinds = (observations, actions)
        if kinds not in made:
            made[kinds] = contract.make_data(tmp_path_factory.mktemp("data") / "store", *kinds)
        return made[kinds]

    return source


@pytest.fixture
def running() -> Iterator[list[Any]]:
    """Collects algorithms, which are stopped whatever happens."""
    algorithms: list[Any] = []
    yield algorithms
    for algorithm in algorithms:
        algorithm.stop()


@dataclass
class Acted:
    """What an evaluation saw and did in one slot, episode after episode."""

    target: float = 0.0
    steps: list[tuple[Any, float, bool, Any]] = field(default_factory=list)


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> list[Acted]:
    """Fills with what the actors of this process see and do from now on, slot by slot."""
    slots: list[Acted] = []
    act = VectorActor.act

    def watched(
        actor: VectorActor, observations: Any, rewards: Any, starting: Any, targets: Any, active: Any = None
    ) -> Any:
        actions = act(actor, observations, rewards, starting, targets, active)
        if actor.slots > 1:  # an evaluation's, and not that of a `SequencePolicy`
            slots.extend(Acted() for _ in range(actor.slots - len(slots)))
            for i in range(actor.slots):
                if active is None or active[i]:
                    slots[i].target = float(targets[i])
                    seen = (
                        np.array(observations[i]),
                        float(rewards[i]),
                        bool(starting[i]),
                        np.array(actions[i]),
                    )
                    slots[i].steps.append(seen)
        return actions

    monkeypatch.setattr(VectorActor, "act", watched)
    return slots


def state(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    """All weights of the learner: the policy's, and those of critics and slow copies."""
    found = algorithm.learner_group.get_weights()["default_policy"]
    return {name: np.array(value) for name, value in found.items()}


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def finish(algorithm: Any) -> None:
    """Trains to the end, with a loss that is a number."""
    for _ in range(20):
        if algorithm.done:
            return
        assert np.isfinite(algorithm.train()["learners"]["default_policy"]["loss"])
    raise AssertionError("the run does not end")


def episodes(evaluation: dict[str, Any]) -> Any:
    """What an evaluation measured, without its clock."""
    return evaluation["targets"]


def fitted_and_resumed(whole: Any, folder: Path, running: list[Any]) -> None:
    """Trains to the end, and once more from a checkpoint on the way: all that is learned is the same, bit for bit."""
    before = state(whole)
    whole.train()
    if whole.gradient_steps == getattr(whole.config, "pretrain_steps", None):
        whole.train()  # the first round
    whole.save_to_path(str(folder))
    halfway = state(whole)
    finish(whole)
    after = state(whole)
    for network in ("model.", "critic."):
        names = [name for name in before if name.startswith(network)]
        assert not names or any(not np.array_equal(before[name], after[name]) for name in names)
    assert all(np.isfinite(value).all() for value in after.values())
    resumed = type(whole).from_checkpoint(str(folder))
    running.append(resumed)
    assert_same(state(resumed), halfway)
    assert not resumed.done
    finish(resumed)
    assert resumed.gradient_steps == whole.gradient_steps
    assert_same(state(resumed), after)
    assert episodes(resumed.evaluate()["alignment"]) == episodes(whole.evaluate()["alignment"])


def bundled(algorithm: Any, folder: Path) -> Path:
    """Writes the policy as a bundle, which holds all of it."""
    spec, weights = algorithm.policy_spec, algorithm.policy_state()
    bundle = save_bundle(spec, weights, folder, gradient_steps=algorithm.gradient_steps)
    opened = Bundle.open(bundle)
    assert opened.spec.to_json() == spec.to_json() == json.loads(json.dumps(opened.header["spec"]))
    assert_same({name: value.numpy() for name, value in opened.model.state_dict().items()}, weights)
    return bundle


def acts_as_evaluated(algorithm: Any, bundle: Path, acted: list[Acted]) -> None:
    """A bundle is evaluated as its training did, and a `SequencePolicy` takes the same actions step by step."""
    acted.clear()
    evaluation = algorithm.evaluate()["alignment"]
    recorded = list(acted)
    spec = algorithm.policy_spec
    predicts = spec.model.target_rule == "predicted"
    assert [target["episodes"] for target in evaluation["targets"]] == [2] * (1 if predicts else 2)
    again = evaluate_bundle(bundle, targets="dataset:2", episodes_per_target=2).to_json()
    assert episodes(again) == episodes(evaluation)
    policy = SequencePolicy.load(bundle)
    assert len(recorded) == (2 if predicts else 4)
    for slot in recorded:
        assert len(slot.steps) >= contract.STEPS - 1
        for observation, reward, starting, action in slot.steps:
            if starting:
                policy.reset(*([] if predicts else [slot.target]))
            taken = policy.act(observation, None if starting else reward)
            assert spec.action_space.contains(taken) or spec.action_space.contains(np.asarray(taken))
            # One row and several may be rounded in another order.
            np.testing.assert_allclose(taken, action, rtol=1e-4, atol=1e-5)


def exported(bundle: Path, dataset: str, folder: Path) -> None:
    """Other formats take the policy and give it back, or say what to do instead."""
    pytest.importorskip("transformers")
    model = Bundle.open(bundle).model
    spec = model.spec.model
    try:
        export_huggingface(model, folder)
    except UserError as error:
        assert (spec.backbone, spec.head) != ("dt", "deterministic")
        assert "export a bundle instead" in str(error)
        return
    back = import_huggingface(folder)
    assert back.spec.to_json() == model.spec.to_json()
    window = contract.first_window(load_dataset(dataset), spec.context_length)
    with torch.no_grad():
        torch.testing.assert_close(back(window), model(window), rtol=1e-4, atol=1e-5)


def built(values: dict[str, Any], running: list[Any]) -> tuple[Any, str]:
    """Returns the algorithm of a config file; None and why, in one line, if it is refused before it has trained."""
    try:
        algorithm = build_config(values).build_algo()
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return None, str(error)
    running.append(algorithm)
    return algorithm, ""


@pytest.mark.parametrize("case", [case for case in CASES if case.misfits == 0], ids=str)
def test_every_policy(
    ray_session: None, data: Data, running: list[Any], acted: list[Acted], tmp_path: Path, case: Case
) -> None:
    source = data(case.observations, case.actions)
    algorithm, text = built(contract.values_of("DT", source, case.model), running)
    assert algorithm is not None, text
    fitted_and_resumed(algorithm, tmp_path / "checkpoint", running)
    bundle = bundled(algorithm, tmp_path / "bundle")
    acts_as_evaluated(algorithm, bundle, acted)
    exported(bundle, source, tmp_path / "exported")


@pytest.mark.parametrize("case", [case for case in CASES if case.misfits == 1], ids=str)
def test_what_does_not_fit_is_refused(ray_session: None, data: Data, running: list[Any], case: Case) -> None:
    values = contract.values_of("DT", data(case.observations, case.actions), case.model)
    algorithm, text = built(values, running)
    assert algorithm is None
    assert any(name in text for name in (case.head, "observations", case.backbone))


def test_every_row_has_a_case() -> None:
    """A new encoder or head for which there is no environment here needs one in `contract.py`."""
    spaces = [seen(kind) for kind in contract.OBSERVATIONS]
    assert all(any(encoder.fits(space) for space in spaces) for encoder in ENCODERS.values())
    fitting = [case for case in CASES if case.misfits == 0]
    assert {case.backbone for case in fitting} == set(BACKBONES)
    assert {case.head for case in fitting} == set(HEADS)


# All of them on DT; what they ask of a backbone, its actions and their gradient, TD3 asks of the others.
FINETUNED = [
    (rl_gradient, backbone)
    for rl_gradient, backbone in product(RL_GRADIENTS, BACKBONES)
    if backbone == "dt" or rl_gradient in ("td3", "none")
]


@pytest.mark.parametrize(("rl_gradient", "backbone"), FINETUNED)
def test_every_rl_gradient(
    ray_session: None,
    data: Data,
    running: list[Any],
    acted: list[Acted],
    tmp_path: Path,
    rl_gradient: str,
    backbone: str,
) -> None:
    """Two rounds of finetuning, saved and resumed: on DT with every head that is not refused, else with the first."""
    finetuned = 0
    for head in HEADS if backbone == "dt" else list(HEADS)[:1]:
        model = model_of(backbone, head=head)
        values = contract.values_of(
            "OnlineDT", data("vector", actions_for(head)), model, rl_gradient=rl_gradient
        )
        algorithm, text = built(values, running)
        if algorithm is None:
            assert backbone in NOT_FINETUNED or rl_gradient != "none", text
            assert any(name in text for name in (backbone, rl_gradient, head, "actions")), text
            continue
        finetuned += 1
        fitted_and_resumed(algorithm, tmp_path / head, running)
        assert algorithm.rounds == 2
        assert algorithm.env_steps == algorithm.replay.counts.added_steps - logged(algorithm)
        acts_as_evaluated(algorithm, bundled(algorithm, tmp_path / f"{head} bundle"), acted)
    assert (finetuned > 0) == (backbone not in NOT_FINETUNED)


@pytest.mark.parametrize("rl_gradient", ["none", "expected_q"])
def test_frames_are_finetuned(
    ray_session: None, data: Data, running: list[Any], acted: list[Acted], tmp_path: Path, rl_gradient: str
) -> None:
    """The replay keeps single images, as the data do."""
    model = model_of("dt", head="categorical")
    values = contract.values_of("OnlineDT", data("frame", "discrete"), model, rl_gradient=rl_gradient)
    algorithm, text = built(values, running)
    assert algorithm is not None, text
    fitted_and_resumed(algorithm, tmp_path / "checkpoint", running)
    assert algorithm.replay.store.observations.shape[1:] == (40, 40)
    acts_as_evaluated(algorithm, bundled(algorithm, tmp_path / "bundle"), acted)


def logged(algorithm: Any) -> int:
    """Steps of the logged episodes that its replay began with: the best."""
    store = algorithm.offline_data.store
    best = np.argsort(store.episode_returns, kind="stable")[-algorithm.replay.capacity :]
    return int(store.lengths[best].sum())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm(
    ray_session: None, data: Data, running: list[Any], acted: list[Acted], tmp_path: Path, name: str
) -> None:
    """With the choices of its own: those of the file are sizes."""
    sizes = {key: contract.MODEL[key] for key in ("embed_dim", "num_layers")}
    online = {"rl_gradient": "td3"} if "online" in dir(ALGORITHMS[name]) else {}
    source = data("vector", "box")
    algorithm, text = built(contract.values_of(name, source, sizes, **online), running)
    assert algorithm is not None, text
    fitted_and_resumed(algorithm, tmp_path / "checkpoint", running)
    bundle = bundled(algorithm, tmp_path / "bundle")
    acts_as_evaluated(algorithm, bundle, acted)
