"""The page about how policies use their return-to-go: on real bundles, real data and short rollouts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from builders import build_model, store_for

from rayrl_dt.data import windows
from rayrl_dt.data.filters import below_return
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.diagnosis import attention, conditioning, cost
from rayrl_dt.diagnosis import plots as diagnosis_plots
from rayrl_dt.diagnosis.attention import AttentionSummary, LayerAttention, SeqRAUse
from rayrl_dt.diagnosis.conditioning import Course, Sensitivity
from rayrl_dt.diagnosis.examine import Examination, examine
from rayrl_dt.diagnosis.page import write_diagnosis
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.targets import ReturnRange
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.seeding import numpy_generator

PNG = b"\x89PNG\r\n\x1a\n"
Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings need no precision here."""
    monkeypatch.setattr(cost, "measure", partial(cost.measure, repeats=1, seconds=0.0))


def pendulum_store(folder: Path, *, seed: int = 0) -> TrajectoryStore:
    """Random data of Pendulum with episodes of 15 steps."""
    env = gym.make("Pendulum-v1", max_episode_steps=15)
    store = store_for(env, episodes=6, steps=15, seed=seed)
    store.info = DatasetInfo(f"store:{folder}", env.observation_space, env.action_space, env.spec)
    store.save(folder)
    return store


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Returns a function that saves an untrained policy of Pendulum in a run folder, and its data."""

    def build(name: str, *, data: str = "data", env: Any = None, **config: Any) -> Path:
        folder = tmp_path / data
        store = pendulum_store(folder, seed=len(data))
        if env == "unknown":
            store.info = DatasetInfo(store.info.source, store.info.observation_space, store.info.action_space)
        model = build_model(store, **config)
        run = tmp_path / name
        save_bundle(model.spec, model.state_dict(), run / "policy", gradient_steps=1234)
        return run

    return build


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", " ", page.read_text())


@pytest.mark.slow
def look(runs: list[Path], **options: Any) -> Examination:
    return examine(runs, **{"episodes": 1, "num_windows": 5, "targets": "-40,-10", **options})


def test_a_page_about_two_policies_stands_alone(make: Make, tmp_path: Path) -> None:
    runs = [make("dt"), make("radt", backbone="radt")]
    page = write_diagnosis(look(runs), tmp_path / "out")
    assert page == tmp_path / "out/diagnosis.html"
    html, markdown = page.read_text(), (tmp_path / "out/diagnosis.md").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', html), "the page must need no other file"
    pictures = ["attention.png", "return-ages.png", "return-to-go.png", "sensitivity.png"]
    assert sorted(path.name for path in page.parent.iterdir()) == sorted(
        [*pictures, "diagnosis.html", "diagnosis.md"]
    )
    assert html.count("data:image/png;base64,") == 4
    for name in pictures:
        assert (page.parent / name).read_bytes().startswith(PNG) and f"]({name})" in markdown
    assert "How dt and radt use the return-to-go" in text_of(page)
    for words in ("Cost", "What is attended to", "How far the action moves", "within an episode", "1,234"):
        assert words in text_of(page), words


def test_the_figures_are_those_of_the_parts(make: Make) -> None:
    run = make("radt", backbone="radt")
    model, store = Bundle.open(run).model, TrajectoryStore.open(run.parent / "data")
    model.spec = model.spec.acting(context_length=2, action_selection=None)
    save_bundle(model.spec, model.state_dict(), run / "policy", gradient_steps=1234)
    (found,) = look([run], seed=3).policies
    window = windows.sample(store, numpy_generator(3, "diagnosis/windows"), 5, 2).to_torch()
    assert found.attention == attention.summarize(model, [window])
    assert found.attention is not None and len(found.attention.uniform_ages) == 2
    assert found.sensitivity == conditioning.sensitivity(
        model, [window], ReturnRange.of(store.episode_returns)
    )
    assert found.courses == conditioning.return_courses(model, (-40.0, -10.0), episodes_per_target=1, seed=3)
    assert found.cost.parameters == sum(value.numel() for value in model.parameters())
    assert (found.label, found.backbone, found.env) == ("radt", "radt", "Pendulum-v1")
    assert found.dataset == f"store:{run.parent / 'data'}" and found.gradient_steps == 1234
    gaps = [abs(course.left_mean) for course in found.courses]
    assert found.left == pytest.approx(np.mean(gaps) / found.sensitivity.span)


@pytest.mark.slow
def test_the_table_of_the_page_holds_the_figures(make: Make, tmp_path: Path) -> None:
    examination = look([make("dt"), make("radt", backbone="radt")])
    write_diagnosis(examination, tmp_path / "out")
    markdown = (tmp_path / "out/diagnosis.md").read_text()
    for policy in examination.policies:
        assert policy.attention is not None and policy.sensitivity is not None
        share, felt = policy.attention.return_share, policy.sensitivity.at_data
        row = f"| {policy.label} | {policy.backbone} | 1,234 | {share:.2f} | {felt:.3f} | {policy.left:.3f} |"
        assert row in markdown
        for index, layer in enumerate(policy.attention.layers, start=1):
            assert f"| {policy.label}, layer {index} | " in markdown
            assert f"| {layer.shares['state']:.3f} | {layer.shares['action']:.3f} |" in markdown
            if layer.seqra is not None:
                assert f"| {layer.seqra.lambda_size:.3f} | {layer.seqra.relative_size:.3f} |" in markdown


def test_policies_of_other_data_have_a_section_of_their_own(make: Make, tmp_path: Path) -> None:
    runs = [make("dt"), make("other", data="more-data"), make("radt", backbone="radt")]
    page = write_diagnosis(look(runs, episodes=0), tmp_path / "out")
    text = text_of(page)
    first, second = (text.index(f"Policies of store:{tmp_path / name}") for name in ("data", "more-data"))
    assert first < second and text[first:second].count("radt, layer 1") == 1
    assert "radt" not in text[second:] and "other, layer 1" in text[second:]
    names = {path.name for path in page.parent.glob("*.png")}
    assert names == {
        f"{n}-{what}.png" for n in (1, 2) for what in ("attention", "return-ages", "sensitivity")
    }, "no rollouts were asked for"


def test_a_policy_is_examined_on_the_episodes_that_it_learned_from(make: Make, tmp_path: Path) -> None:
    """A run knows of `below_return`, and so does its copy; an older bundle does not, and the page says so."""
    whole = make("whole")
    store = TrajectoryStore.open(tmp_path / "data")
    limit = float(np.median(store.episode_returns))
    model = build_model(below_return(store, limit))
    run = tmp_path / "poor"
    save_bundle(model.spec, model.state_dict(), run / "policy")
    (run / "config.yaml").write_text(f"offline_data: {{below_return: {limit}}}\n")
    (run / "run.json").write_text("{}")
    bare = save_bundle(model.spec, model.state_dict(), tmp_path / "bare")
    copy = Bundle.open(run).copy_to(tmp_path / "copy")
    all_of_it, poor, other, copied = look([whole, run, bare, copy], targets="dataset:2").policies
    assert copied.dataset == poor.dataset and copied.sensitivity == poor.sensitivity
    asked = [[course.target for course in found.courses] for found in (all_of_it, poor, other)]
    assert asked[1] == pytest.approx([model.spec.data_returns["p5"], model.spec.data_returns["p95"]])
    assert asked[0] == asked[2] != asked[1]
    assert poor.dataset.endswith(f", returns below {limit:g}") and poor.dataset.startswith(other.dataset)
    assert poor.sensitivity is not None and all_of_it.sensitivity is not None
    assert poor.sensitivity.span < all_of_it.sensitivity.span
    assert [
        any("it learned from returns of" in line for line in found.remarks) for found in (all_of_it, poor)
    ] == [
        False,
        False,
    ]
    assert any("it learned from returns of" in line for line in other.remarks)


def test_other_data_can_be_named(make: Make, tmp_path: Path) -> None:
    runs = [make("dt"), make("other", data="more-data")]
    source = f"store:{tmp_path / 'more-data'}"
    assert {policy.dataset for policy in look(runs, dataset=source).policies} == {source}
    with pytest.raises(UserError, match="with --dataset"):
        look(runs, dataset=f"store:{tmp_path / 'nowhere'}")
    foreign = store_for(gym.make("CartPole-v1"))
    foreign.save(tmp_path / "cartpole")
    with pytest.raises(UserError, match="another task"):
        look(runs, dataset=f"store:{tmp_path / 'cartpole'}")


def test_what_cannot_be_measured_is_named_and_the_rest_is_shown(make: Make, tmp_path: Path) -> None:
    run = make("bc", backbone="mlp", env="unknown")
    examination = look([run])
    (policy,) = examination.policies
    assert policy.attention is None and policy.courses == () and policy.left is None
    assert policy.sensitivity is not None and policy.sensitivity.at_data == 0.0
    text = text_of(write_diagnosis(examination, tmp_path / "out"))
    assert "backbone &#x27;mlp&#x27; has no attention" in text and "name one with --env" in text
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["sensitivity.png"]
    assert look([run], env="Pendulum-v1").policies[0].courses[0].lengths == (200,)


def test_delayed_rewards_and_targets_out_of_reach_are_kept_in_mind(make: Make, tmp_path: Path) -> None:
    examination = look([make("dt", target_rule="constant")], targets="1e6")
    (policy,) = examination.policies
    assert any("extrapolate" in remark for remark in policy.remarks)
    assert any("shown its target unchanged" in remark for remark in policy.remarks)
    assert "Keep in mind" in text_of(write_diagnosis(examination, tmp_path / "out"))


def test_a_policy_that_predicts_its_returns_is_not_rolled_out(make: Make) -> None:
    (policy,) = look([make("rf", backbone="reinformer")]).policies
    assert policy.courses == () and policy.attention is None
    assert policy.sensitivity is not None and policy.sensitivity.at_data > 0
    assert any("it predicts its own returns" in remark for remark in policy.remarks)


def test_windows_are_of_delayed_rewards_where_the_policy_learned_from_them(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    summarize = attention.summarize

    def spy(model: Any, batches: Any) -> Any:
        seen.append(all(bool((b.returns_to_go[:, -1] == b.returns_to_go[:, -2]).all()) for b in batches))
        return summarize(model, batches)

    monkeypatch.setattr(attention, "summarize", spy)
    monkeypatch.setattr(windows, "sample", partial(windows.sample, starts="full"))
    look([make("delayed", target_rule="constant"), make("paid")], episodes=0)
    assert seen == [True, False]


def test_progress_counts_the_episodes(make: Make) -> None:
    said: list[tuple[str, int, int]] = []
    look([make("dt")], episodes=2, progress=lambda *news: said.append(news))
    assert [news for news in said if news[0] == "dt: episodes"][-1] == ("dt: episodes", 4, 4)
    assert any(news[0].startswith("loading store:") for news in said)


def test_labels_are_short_and_distinct(make: Make, tmp_path: Path) -> None:
    make("a/run")
    make("b/run")
    labels = [policy.label for policy in look([tmp_path / "a/run", tmp_path / "b/run"], episodes=0).policies]
    assert labels == ["a/run", "b/run"]
    same = look([tmp_path / "a/run", tmp_path / "a/run", tmp_path / "a/run/policy"], episodes=0)
    assert [policy.label for policy in same.policies] == ["run", "policy"], "one path is examined once"


@pytest.mark.parametrize("options", [{"num_windows": 0}, {"episodes": -1}, {"targets": "many"}])
def test_options_out_of_range_are_refused(make: Make, options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        look([make("dt")], **options)


def test_no_policy_is_a_user_error(tmp_path: Path) -> None:
    for runs in ([], [tmp_path / "nowhere"]):
        with pytest.raises(UserError):
            look(runs)


def test_json_holds_every_policy(make: Make) -> None:
    examination = look([make("dt"), make("bc", backbone="mlp")])
    values = json.loads(json.dumps(examination.to_json()))
    assert values["windows"] == 5 and [each["label"] for each in values["policies"]] == ["dt", "bc"]
    first, second = values["policies"]
    assert first["attention"]["layers"][0]["shares"].keys() == {"return", "state", "action"}
    assert second["attention"] is None and len(first["sensitivity"]["values"]) == 9
    assert [course["target"] for course in first["courses"]] == [-40.0, -10.0]
    assert first["cost"]["acting_ms"].keys() == {"1", "32"}


def test_out_must_be_a_folder(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        write_diagnosis(look([make("dt")], episodes=0), tmp_path / "file")


DT = AttentionSummary(
    "dt",
    (
        LayerAttention({"return": 0.2, "state": 0.3, "action": 0.5}, (0.15, 0.05), 0.2, None),
        LayerAttention({"return": 0.0, "state": 0.5, "action": 0.5}, (0.0, 0.0), 0.0, None),
    ),
    {"return": 0.4, "state": 0.4, "action": 0.2},
    (0.3, 0.1),
    0.25,
    7,
)
RADT = AttentionSummary(
    "radt",
    (LayerAttention({"state": 0.7, "action": 0.3}, (0.9, 0.1), 0.5, SeqRAUse(1.0, 0.1, 0.2)),),
    {"state": 0.6, "action": 0.4},
    (0.75, 0.25),
    1.5,
    7,
)
BC = AttentionSummary(
    "no-return", (LayerAttention({"state": 0.7, "action": 0.3}, (), None, None),), {"state": 0.6}, (), None, 7
)


def bars(axes: Any) -> list[list[float]]:
    return [[patch.get_height() for patch in container] for container in axes.containers]


def test_attention_bars_stack_to_one_side_by_side() -> None:
    figure = diagnosis_plots.attention_shares({"DT": DT, "RADT": RADT})
    left, right = figure.axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["DT", "RADT"]
    np.testing.assert_allclose(bars(left), [[0.15, 0.0], [0.05, 0.0], [0.3, 0.5], [0.5, 0.5]])
    # Self-attention in the first bar, SeqRA in the second.
    np.testing.assert_allclose(bars(right), [[0.0, 0.9], [0.0, 0.1], [0.7, 0.0], [0.3, 0.0]])
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["1\nself", "1\nSeqRA"]
    for axes in (left, right):  # on top of one another
        assert max(patch.get_y() + patch.get_height() for patch in axes.patches) == pytest.approx(1.0)
    assert [line.get_ydata()[0] for line in left.get_lines()] == [0.4] and not right.get_lines()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:4] == ["return of the same step", "earlier returns", "states", "actions"]


def test_ages_are_drawn_as_shares_of_the_attention_to_returns() -> None:
    figure = diagnosis_plots.return_ages({"DT": DT, "BC": BC, "RADT": RADT})
    left, right = figure.axes
    np.testing.assert_allclose(
        [line.get_ydata() for line in left.get_lines()], [[0.75, 0.25], [0, 0], [0.75, 0.25]]
    )
    np.testing.assert_allclose([line.get_ydata() for line in right.get_lines()], [[0.9, 0.1], [0.75, 0.25]])
    assert left.get_ylim() == right.get_ylim(), "one scale"


def test_curves_and_courses_are_drawn_as_they_are() -> None:
    curve = Sensitivity((-1.0, 0.0, 1.0), (0.1, 0.2, 0.4), 0.1, 2.0, 3)
    (axes,) = diagnosis_plots.sensitivity_curves({"DT": curve}).axes
    drawn = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_array_equal(drawn["DT"].get_xydata(), [[-1, 0.1], [0, 0.2], [1, 0.4]])
    assert axes.get_ylim()[0] == 0 and "(raw return)" in axes.get_xlabel()
    courses = [Course(9.0, (9.0, 5.0, 1.0), (1.0,), (2,)), Course(3.0, (3.0, -2.0), (-2.0,), (1,))]
    figure = diagnosis_plots.return_courses({"DT": courses, "RADT": courses[1:]})
    left, right = figure.axes
    drawn = {line.get_label(): line.get_ydata() for line in left.get_lines()}
    np.testing.assert_array_equal(drawn["target 9"], [9, 5, 1])
    np.testing.assert_array_equal(drawn["target 3"], [3, -2])
    np.testing.assert_array_equal(drawn["target used up"], [0, 0])
    assert left.get_xlim() == right.get_xlim() and left.get_xlim()[1] >= 2, "one scale"
    assert left.get_ylim() == right.get_ylim() and left.get_ylim()[0] < -2 and left.get_ylim()[1] > 9


def test_many_policies_get_rows_of_panels() -> None:
    shown = [
        [
            axes.get_visible()
            for axes in diagnosis_plots.attention_shares({str(n): DT for n in range(count)}).axes
        ]
        for count in (4, 5)
    ]
    assert shown == [[True] * 4, [True] * 5 + [False]]
