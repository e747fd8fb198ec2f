"""Odd inputs by the thousand: each is either taken, or refused in one line; nothing else happens.

    PYTHONPATH=tests python -m fuzz.campaign --count 10000 --seed 0              all kinds
    PYTHONPATH=tests python -m fuzz.campaign --kind bundle --count 1 --seed 17   one input again

Prints the seed of each input that did something else, and ends with status 1 if there was one. An input is a function
of its kind and seed. What needs Ray is left out: refusals come before Ray starts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import yaml
from fuzz.environments import WAYS
from fuzz.values import changed_array, changed_bytes, changed_tree, odd, pick, word

from rayrl_dt import load_dataset
from rayrl_dt.algorithms import rllib_keys
from rayrl_dt.cli import main as command_line
from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.data.readers import d4rl, minari_io
from rayrl_dt.data.replay import TrajectoryReplay
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.evaluate import evaluate_bundle
from rayrl_dt.evaluation.targets import ReturnRange, parse_targets
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.critics import save_critic
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.reports.run_report import write_report
from rayrl_dt.runs.config_files import ALGORITHMS, apply_overrides, build_config, read_yaml
from rayrl_dt.serving.policy import SequencePolicy
from rayrl_dt.tuning.space import find_spaces
from rayrl_dt.types import Trajectory

Rng = np.random.Generator

LONGEST_S, LONGEST_WAIT_S = 30, 300
"""What computes, or waits, for longer hangs."""
LONGEST_LINE = 2000
CONFIGS = Path(__file__).resolve().parents[2] / "tune_configs"
TRIPLE = ("observations", "actions", "rewards")


@dataclass(frozen=True)
class Materials:
    """Whole files, to be spoiled.

    Attributes:
        folder: where they lie.
    """

    folder: Path

    @cached_property
    def episodes(self) -> list[Trajectory]:
        """A few episodes of Pendulum's shapes."""
        rng = np.random.default_rng(0)
        return [
            Trajectory(
                rng.normal(size=(length + 1, 3)).astype(np.float32),
                rng.uniform(-1, 1, (length, 1)).astype(np.float32),
                rng.normal(size=length).astype(np.float32),
                terminated=False,
            )
            for length in (5, 9, 3)
        ]

    @cached_property
    def store(self) -> Path:
        """A store."""
        spec = gym.spec("Pendulum-v1")
        spaces = gym.spaces.Box(-9, 9, (3,), np.float32), gym.spaces.Box(-2, 2, (1,), np.float32)
        store = TrajectoryStore.from_trajectories(self.episodes, DatasetInfo("fuzz", *spaces, spec))
        return store.save(self.folder / "store")

    @cached_property
    def opened(self) -> TrajectoryStore:
        """The store, open."""
        return TrajectoryStore.open(self.store)

    @cached_property
    def bundle(self) -> Path:
        """A policy with a critic, as a run would leave it."""
        config = ModelConfig(context_length=3, embed_dim=8, num_layers=1, num_heads=1, max_episode_steps=200)
        spec = PolicySpec.from_store(config, self.opened, return_scale=1.0)
        folder = save_bundle(spec, SequenceModel(spec).state_dict(), self.folder / "run" / "policy")
        save_critic(Bundle.open(folder), IQLCritic(spec, hidden=4).state_dict(), record={})
        return folder

    @cached_property
    def run(self) -> Path:
        """A run folder with records and evaluations."""
        run = self.bundle.parent
        values = {"algorithm": "DT", "offline_data": {"dataset": f"store:{self.store}"}}
        target = {"target": -100.0, "return_mean": -120.0, "returns": [-120.0], "lengths": [200]}
        evaluation = {
            "targets": [target],
            "alignment_error": 20.0,
            "env": "Pendulum-v1",
            "checkpoint": "policy",
        }
        lines = [
            {"iteration": i, "gradient_steps": i, "loss": 1.0 / i, "grad_norm": 1.0, "learning_rate": 1e-3}
            for i in (1, 2)
        ]
        (run / "config.yaml").write_text(yaml.safe_dump(values))
        (run / "run.json").write_text(
            json.dumps({"command": "x", "seed": 0, "dataset": "x", "env": "Pendulum-v1"})
        )
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "evaluations").mkdir()
        for name in ("last", "best"):
            (run / "evaluations" / f"{name}.json").write_text(json.dumps(evaluation))
        return run

    @cached_property
    def d4rl(self) -> dict[str, Any]:
        """The arrays of a D4RL file."""
        ends = np.cumsum([len(each) for each in self.episodes]) - 1
        timeouts = np.zeros(ends[-1] + 1, bool)
        timeouts[ends] = True
        return {
            "observations": np.concatenate([each.observations[:-1] for each in self.episodes]),
            "next_observations": np.concatenate([each.observations[1:] for each in self.episodes]),
            "actions": np.concatenate([each.actions for each in self.episodes]),
            "rewards": np.concatenate([each.rewards for each in self.episodes]),
            "terminals": np.zeros_like(timeouts),
            "timeouts": timeouts,
        }

    @cached_property
    def minari(self) -> Path:
        """Minari's folder with a data set `fuzz/whole-v0`."""
        info = self.opened.info
        minari_io.write(
            "fuzz/whole-v0",
            self.episodes,
            observation_space=info.observation_space,
            action_space=info.action_space,
            env_spec="Pendulum-v1",
            author="nobody",
            algorithm_name="none",
            description="for the fuzzer",
        )
        return minari_io.datasets_root()

    @cached_property
    def replay(self) -> Path:
        """A saved replay."""
        file = self.folder / "replay.npz"
        self.empty_replay().save(file)
        return file

    def empty_replay(self) -> TrajectoryReplay:
        """Return a replay with the episodes in it."""
        replay = TrajectoryReplay(self.opened.info, normalizer=self.opened.normalizer, capacity=4)
        replay.add(self.episodes)
        return replay

    @cached_property
    def configs(self) -> list[dict[str, Any]]:
        """The shipped configs, on the store."""
        found = [read_yaml(path) for path in sorted(CONFIGS.glob("*.yaml"))]
        return [{**each, "offline_data": {"dataset": f"store:{self.store}"}} for each in found]


def config(rng: Rng, made: Materials, folder: Path) -> None:
    """A config file with odd values."""
    values = changed_tree(rng, pick(rng, made.configs))
    file = folder / "config.yaml"
    file.write_text(yaml.dump(values), encoding="utf-8")
    read = read_yaml(file)
    build_config({key: value for key, value in read.items() if key not in ("tune", "variants")})


def key(rng: Rng, made: Materials, folder: Path) -> None:
    """A known key with an odd value."""
    name = pick(rng, ALGORITHMS)
    section = pick(rng, ALGORITHMS[name].sections())
    keys = [*ALGORITHMS[name].own_fields(section), *rllib_keys.READ.get(section, ())]
    build_config(
        {
            "algorithm": name,
            "offline_data": {"dataset": f"store:{made.store}"},
            section: {pick(rng, keys): odd(rng)},
        }
    )


def yaml_bytes(rng: Rng, made: Materials, folder: Path) -> None:
    """A config file with odd bytes."""
    file = folder / "config.yaml"
    file.write_bytes(changed_bytes(rng, pick(rng, sorted(CONFIGS.glob("*.yaml"))).read_bytes()))
    values = read_yaml(file)
    find_spaces(values)
    build_config(values)


def override(rng: Rng, made: Materials, folder: Path) -> None:
    """`--set` with odd text."""
    path = pick(
        rng, ("training.lr", "training", "online.alpha", "a.b.c", "", word(rng), "offline_data.dataset")
    )
    text = pick(rng, (f"{path}={odd(rng)}", f"{path}={word(rng)}", path, word(rng)))
    values = apply_overrides(pick(rng, made.configs), [text])
    build_config(values)


def targets(rng: Rng, made: Materials, folder: Path) -> None:
    """Target returns."""
    text = pick(rng, (odd(rng), word(rng), f"dataset:{odd(rng)}", f"{odd(rng)},{odd(rng)}"))
    found = parse_targets(text, data=ReturnRange(-3.0, -2.0, 1.0, 2.0)).targets
    assert found and np.isfinite(found).all(), "targets that nobody can reach"


def refinement(rng: Rng, made: Materials, folder: Path) -> None:
    """Settings of the action gradient."""
    ActionGradient.parse(pick(rng, (word(rng), f"eta={odd(rng)},n={odd(rng)}", f"{word(rng)}={odd(rng)}")))


def d4rl_file(rng: Rng, made: Materials, folder: Path) -> None:
    """A D4RL file with odd arrays or bytes."""
    file, arrays = folder / "hopper_medium-v2.hdf5", dict(made.d4rl)
    for _ in range(int(rng.integers(1, 3))):
        name = pick(rng, arrays)
        if rng.random() < 0.15:
            del arrays[name]
        else:
            arrays[name] = changed_array(rng, arrays[name])
        if not arrays:
            break
    with h5py.File(file, "w") as data:
        for name, array in arrays.items():
            data[name] = array
    if rng.random() < 0.3:
        file.write_bytes(changed_bytes(rng, file.read_bytes()))
    check_store(TrajectoryStore.from_trajectories(*d4rl.stream(file)))


def minari_set(rng: Rng, made: Materials, folder: Path) -> None:
    """A Minari data set with odd metadata, arrays or bytes."""
    place = made.minari / "fuzz" / "odd-v0"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(made.minari / "fuzz" / "whole-v0", place)
    metadata, data = place / "data" / "metadata.json", place / "data" / "main_data.hdf5"
    what = rng.integers(4)
    if what == 0:
        metadata.write_text(json.dumps(changed_tree(rng, json.loads(metadata.read_text()))))
    elif what == 1:
        broken = pick(rng, (metadata, data))
        broken.write_bytes(changed_bytes(rng, broken.read_bytes()))
    else:
        with h5py.File(data, "r+") as file:
            group = file[pick(rng, list(file))]
            name = pick(rng, list(group))
            if isinstance(group[name], h5py.Dataset):
                array = np.array(group[name])
                del group[name]
                if rng.random() < 0.85:
                    group[name] = changed_array(rng, array)
    check_store(TrajectoryStore.from_trajectories(*minari_io.stream("fuzz/odd-v0")))


def store(rng: Rng, made: Materials, folder: Path) -> None:
    """A store with an odd header, or odd arrays."""
    place = folder / "store"
    shutil.copytree(made.store, place)
    spoil(rng, place, "store.json")
    check_store(TrajectoryStore.open(place))


def replay(rng: Rng, made: Materials, folder: Path) -> None:
    """A saved replay with odd bytes or arrays."""
    file = folder / "replay.npz"
    if rng.random() < 0.5:
        file.write_bytes(changed_bytes(rng, made.replay.read_bytes()))
    else:
        with np.load(made.replay) as saved:
            arrays = {name: saved[name] for name in saved.files}
        name = pick(rng, arrays)
        arrays[name] = changed_array(rng, arrays[name])
        np.savez(file, **arrays)
    loaded = made.empty_replay()
    loaded.load(file)
    check_store(loaded.store)


def bundle(rng: Rng, made: Materials, folder: Path) -> None:
    """A policy bundle with an odd header or odd weights, which then acts."""
    place = folder / "policy"
    shutil.copytree(made.bundle, place)
    spoil(rng, place, "policy.json")
    opened = Bundle.open(place)
    assert opened.critic is not None
    policy = SequencePolicy.load(place)
    policy.reset(target_return=-100.0)
    action = policy.act(np.zeros(policy.spec.observation_space.shape or (), np.float32))
    assert np.isfinite(action).all(), "an action that is none"


def run_folder(rng: Rng, made: Materials, folder: Path) -> None:
    """A run folder with odd files, which is reported."""
    place = folder / "run"
    shutil.copytree(made.run, place)
    file = pick(rng, [path for path in place.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml")])
    if file.suffix == ".json" and rng.random() < 0.6:
        file.write_text(json.dumps(changed_tree(rng, json.loads(file.read_text()))))
    elif file.suffix == ".jsonl" and rng.random() < 0.6:
        lines = [json.dumps(changed_tree(rng, json.loads(line))) for line in file.read_text().splitlines()]
        file.write_text("\n".join(lines))
    else:
        file.write_bytes(changed_bytes(rng, file.read_bytes()))
    write_report([place], folder / "report")


def environment(rng: Rng, made: Materials, folder: Path) -> None:
    """An environment that is wrong somewhere, in which a policy is evaluated."""
    at = pick(rng, WAYS)
    chosen = {"at": at, "way": pick(rng, WAYS[at]), "after": int(rng.integers(12))}
    env = RecordedEnv.named("fuzz.environments:Odd", **chosen, max_episode_steps=int(rng.integers(5, 30)))
    result = evaluate_bundle(made.bundle, targets="-100", episodes_per_target=2, env=env)
    assert np.isfinite(result.targets[0].returns).all(), "a return that is none"


def cache(rng: Rng, made: Materials, folder: Path) -> None:
    """Data whose flat arrays in the cache have been spoiled: they are read again."""
    file = folder / "data.hdf5"
    with h5py.File(file, "w") as data:
        for name, array in made.d4rl.items():
            data[name] = array
    os.environ["RAYRL_DT_CACHE"] = str(folder / "cache")
    whole = load_dataset(f"d4rl:{file}")
    expected = [whole.trajectory(number).rewards.copy() for number in range(whole.num_episodes)]
    place = pick(rng, [path.parent for path in (folder / "cache").rglob("store.json")])
    spoil(rng, place, "store.json")
    again = load_dataset(f"d4rl:{file}")
    check_store(again)
    found = [again.trajectory(number).rewards for number in range(again.num_episodes)]
    same = len(found) == len(expected) and all(map(np.array_equal, found, expected))
    assert same, "other data than those of the file"


def arguments(rng: Rng, made: Materials, folder: Path) -> None:
    """A command with odd arguments."""
    command = pick(
        rng, ("eval", "refine", "diagnose", "export", "report", "config", "data preview", "critic", "train")
    )
    given = [*command.split()]
    options = {
        "eval": (
            "--targets",
            "--episodes",
            "--env",
            "--seed",
            "--json",
            "--context-length",
            "--action-gradient",
        ),
        "refine": ("--eta", "--n", "--env", "--targets", "--episodes", "--seed"),
        "diagnose": ("--dataset", "--env", "--out"),
        "export": ("--format", "--out"),
        "report": ("--out",),
        "config": (),
        "data preview": ("--out",),
        "critic": ("--steps", "--dataset", "--seed"),
        "train": ("--set", "--seed", "--out"),
    }[command]
    wrong = folder / "wrong"
    wrong.write_text("x")
    given.append(
        str(pick(rng, (wrong, folder, folder / "absent", made.store, odd(rng), "store:" + str(wrong))))
    )
    for name in options:
        if rng.random() < 0.5:
            given += [name, str(pick(rng, (odd(rng), word(rng), wrong)))]
    typed(given)


def typed(given: list[str]) -> None:
    """Call the command line as it is called from a shell; what is refused there is refused here."""
    before, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["rayrl-dt", *(each.replace("\0", "") for each in given)]  # no system passes that on
    status: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command_line()
    except SystemExit as ended:
        status = ended.code
    finally:
        sys.argv = before
    assert status in (0, None, 2), f"status {status}: {err.getvalue()[-300:]}"
    assert "Traceback" not in err.getvalue(), err.getvalue()[-300:]


def spoil(rng: Rng, folder: Path, header: str) -> None:
    """Change the header, or one of the files beside it."""
    if rng.random() < 0.5:
        file = folder / header
        file.write_text(json.dumps(changed_tree(rng, json.loads(file.read_text()))))
        return
    file = pick(rng, sorted(folder.iterdir()))
    if file.suffix == ".npy" and rng.random() < 0.5:
        np.save(file, changed_array(rng, np.load(file)))
    else:
        file.write_bytes(changed_bytes(rng, file.read_bytes()))


def check_store(store: Any) -> None:
    """Whatever was read in is whole: finite numbers, episodes within the steps."""
    for episode in range(store.num_episodes):
        each = store.trajectory(episode)
        assert len(each) > 0 and all(np.isfinite(getattr(each, name)).all() for name in TRIPLE), (
            "no whole episode"
        )


KINDS: dict[str, Callable[[Rng, Materials, Path], None]] = {
    each.__name__: each
    for each in (
        config,
        key,
        yaml_bytes,
        override,
        targets,
        refinement,
        d4rl_file,
        minari_set,
        store,
        replay,
        bundle,
        run_folder,
        environment,
        cache,
        arguments,
    )
}


class Hung(Exception):
    """The input took too long."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise Hung where something takes too long."""

    def late(*_: Any) -> None:
        raise Hung

    # A loaded machine makes nothing hang: it counts what the process itself has computed.
    timers = {
        signal.SIGPROF: (signal.ITIMER_PROF, LONGEST_S),
        signal.SIGALRM: (signal.ITIMER_REAL, LONGEST_WAIT_S),
    }
    before = {number: signal.signal(number, late) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def fault(kind: str, seed: int, made: Materials) -> str | None:
    """Try an input; return what was wrong with what happened, if anything was."""
    rng = np.random.default_rng([seed, *kind.encode()])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with limited():
                KINDS[kind](rng, made, Path(folder))
        except UserError as error:
            message = str(error)
            if "\n" in message or "Traceback" in message:
                return f"not one line: {message[:300]!r}"
            return f"{len(message)} characters: {message[:200]!r}" if len(message) > LONGEST_LINE else None
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:300]!r}"
    return None


def main() -> int:
    """Run a campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=KINDS, help="one kind of input; all by default")
    parser.add_argument("--count", type=int, default=1000, help="inputs in total")
    parser.add_argument("--seed", type=int, default=0, help="of the first input of each kind")
    chosen = parser.parse_args()
    kinds = [chosen.kind] if chosen.kind else list(KINDS)
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"MINARI_DATASETS_PATH": f"{folder}/minari", "RAYRL_DT_CACHE": f"{folder}/cache"}
        made = Materials(Path(folder))
        for kind in kinds:
            for seed in range(chosen.seed, chosen.seed + -(-chosen.count // len(kinds))):
                found = fault(kind, seed, made)
                if found is not None:
                    faults += 1
                    print(f"--kind {kind} --count 1 --seed {seed}: {found}", flush=True)
    print(f"{chosen.count} inputs, {faults} of them neither taken nor refused in one line")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
