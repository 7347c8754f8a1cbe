"""The planner on a toy graph with a real Dagster instance."""

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance.ref import InstanceRef

from xdub_platform.chain import Node, Planner, Rules, Status, Step, why_broken
from xdub_platform.instance import NO_CAPTURE

QUIET_HOME = {"compute_logs": NO_CAPTURE, "telemetry": {"enabled": False}}


@dataclass
class World:
    """What the toy assets read and count."""

    versions: dict[str, str] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    broken: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)


shards = dg.DynamicPartitionsDefinition(name="shard")
both = dg.MultiPartitionsDefinition({"shard": shards, "variant": dg.StaticPartitionsDefinition(["a", "b"])})


def toy(world: World, codes: dict[str, str] | None = None) -> dg.Definitions:
    """raw (shard) -> clips (shard) -> left, right -> pairs (shard x variant) -> model -> scores."""

    def make(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        name = context.asset_key.to_user_string()
        label = f"{name}[{context.partition_key}]" if context.has_partition_key else name
        if label in world.broken:
            raise dg.Failure(f"{label} is broken")
        world.made[label] += 1
        passed = label not in world.refused
        checks = [dg.AssetCheckResult(passed=passed, description="no consent")] if name == "clips" else []
        return dg.MaterializeResult(data_version=dg.DataVersion(world.versions.get(label, "1")), check_results=checks)

    def asset(
        name: str, deps: list[str | dg.AssetDep], partitions: dg.PartitionsDefinition | None = None
    ) -> dg.AssetsDefinition:
        gates = [dg.AssetCheckSpec("gate", asset=name, blocking=True)] if name == "clips" else []
        code = (codes or {}).get(name, "1")
        return dg.asset(name=name, deps=deps, partitions_def=partitions, code_version=code, check_specs=gates)(make)

    per_shard = dg.AssetDep("clips", partition_mapping=dg.MultiToSingleDimensionPartitionMapping("shard"))
    return dg.Definitions(
        assets=[
            asset("raw", [], shards),
            asset("clips", ["raw"], shards),
            asset("left", ["clips"]),
            asset("right", ["clips"]),
            asset("pairs", [per_shard, "left"], both),
            asset("model", ["pairs", "right"]),
            asset("scores", ["model"]),
        ]
    )


def open_home(folder: Path) -> dg.DagsterInstance:
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(folder), overrides=QUIET_HOME))


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """Two shards, nothing made."""
    with open_home(tmp_path) as home:
        home.add_dynamic_partitions("shard", ["s0", "s1"])
        yield home


@pytest.fixture(scope="module")
def first_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, everything made once."""
    folder = tmp_path_factory.mktemp("home")
    with open_home(folder) as home:
        home.add_dynamic_partitions("shard", ["s0", "s1"])
        Planner(toy(World()), home).run()
    return folder


@pytest.fixture
def made(first_home: Path, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A copy of `first_home`."""
    shutil.copytree(first_home, tmp_path / "home")
    with open_home(tmp_path / "home") as home:
        yield home


def statuses(planner: Planner, **arguments: object) -> dict[str, Status]:
    return {str(step.node): step.status for step in planner.run(**arguments)}  # type: ignore[arg-type]


def test_first_run_makes_everything_in_order_then_nothing(instance: dg.DagsterInstance) -> None:
    world = World()
    planner = Planner(toy(world), instance)
    order: list[str] = []
    steps = planner.run(watch=lambda step: order.append(str(step.node)) if step.status is Status.DONE else None)
    assert {step.status for step in steps} == {Status.DONE}
    assert order.index("raw[s1]") < order.index("clips[s1]") < order.index("left") < order.index("pairs[s0|a]")
    assert order.index("pairs[s1|b]") < order.index("model") < order.index("scores")
    assert sum(world.made.values()) == 2 + 2 + 2 + 4 + 2
    assert set(statuses(planner).values()) == {Status.FRESH}
    assert set(world.made.values()) == {1}


def test_new_shard_makes_its_own_partitions_and_what_gathers_them(made: dg.DagsterInstance) -> None:
    world = World()
    planner = Planner(toy(world), made)
    made.add_dynamic_partitions("shard", ["s2"])
    assert planner.stale(Node("clips", "s2")) == "never made"
    done = {name for name, status in statuses(planner).items() if status is Status.DONE}
    # left came out the same, so that the pairs of the old shards stay.
    assert done == {"raw[s2]", "clips[s2]", "left", "right", "pairs[s2|a]", "pairs[s2|b]", "model"}
    assert world.made["pairs[s0|a]"] == 0


def test_a_frozen_asset_outside_the_selection_is_left_alone(made: dg.DagsterInstance) -> None:
    planner = Planner(toy(World()), made)
    made.add_dynamic_partitions("shard", ["s2"])
    outcome = statuses(planner, selection=dg.AssetSelection.all() - dg.AssetSelection.assets("left", "right"))
    assert "left" not in outcome
    assert outcome["pairs[s2|a]"] is Status.DONE
    assert outcome["pairs[s0|a]"] is Status.FRESH


def test_changed_data_travels_only_as_far_as_it_differs(made: dg.DagsterInstance) -> None:
    world = World(versions={"clips[s0]": "2"})
    planner = Planner(toy(world, {"clips": "2"}), made)
    planned = {str(step.node): step.reason for step in planner.plan() if step.status is Status.RUNNING}
    assert planned["clips[s0]"] == planned["clips[s1]"] == "its settings or code changed"
    assert planned["scores"] == "model will be made again"
    done = {name for name, status in statuses(planner).items() if status is Status.DONE}
    assert done == {"clips[s0]", "clips[s1]", "left", "right", "pairs[s0|a]", "pairs[s0|b]"}


def test_failure_blocks_what_needs_it_and_nothing_else(instance: dg.DagsterInstance) -> None:
    world = World(broken={"clips[s1]"})
    planner = Planner(toy(world), instance)
    steps = {str(step.node): step for step in planner.run()}
    assert steps["clips[s1]"].status is Status.FAILED
    assert steps["clips[s1]"].reason == "clips[s1] is broken"
    assert steps["pairs[s1|a]"].status is Status.BLOCKED
    assert steps["pairs[s1|a]"].reason == "clips[s1] failed"
    assert not steps["pairs[s1|a]"].refused
    assert steps["pairs[s0|a]"].status is Status.DONE
    assert steps["scores"].status is Status.DONE
    world.broken = {"left"}
    steps = {str(step.node): step for step in Planner(toy(world, {"left": "2"}), instance).run()}
    assert steps["pairs[s1|a]"].status is Status.BLOCKED
    assert steps["right"].status is Status.DONE


def test_rules_leave_out_reject_and_miss(instance: dg.DagsterInstance) -> None:
    world = World(refused={"clips[s1]"})
    store = {"raw[s0]": "1", "raw[s1]": "1"}
    rules = Rules(
        wanted=lambda node: node != Node("pairs", "s1|b"),
        rejected=lambda node: "no consent" if str(node) in world.refused else None,
        committed=lambda node: store.get(str(node), "1"),
    )
    planner = Planner(toy(world), instance, rules)
    steps = {str(step.node): step for step in planner.run()}
    assert "pairs[s1|b]" not in steps
    assert (steps["clips[s1]"].status, steps["clips[s1]"].reason) == (Status.REJECTED, "no consent")
    assert steps["pairs[s1|a]"].reason == "clips[s1] rejected"
    assert why_broken([*steps.values()]) is None
    again = planner.run("pairs")
    assert {step.reason for step in again if step.reason} == {"clips[s1]: no consent"}
    assert why_broken(again) is None
    assert steps["model"].status is Status.DONE
    store["raw[s0]"] = "gone"
    assert planner.stale(Node("raw", "s0")) == "its data is not in the store"


def test_what_gathers_an_input_that_was_judged_otherwise_is_stale(made: dg.DagsterInstance) -> None:
    otherwise = Rules(judged=lambda node: lambda parent: (node, parent) == (Node("model"), Node("pairs", "s0|a")))
    planner = Planner(toy(World()), made, otherwise)
    assert planner.stale(Node("model")) == "pairs[s0|a] was judged otherwise"
    assert {name for name, status in statuses(planner).items() if status is Status.DONE} == {"model"}


def test_a_run_that_broke_after_an_earlier_refusal_is_told_as_broken(instance: dg.DagsterInstance) -> None:
    world = World(refused={"clips[s1]"})
    rules = Rules(rejected=lambda node: "no consent" if str(node) in world.refused else None)
    assert statuses(Planner(toy(world), instance, rules))["clips[s1]"] is Status.REJECTED
    world.broken = {"clips[s1]"}
    steps = Planner(toy(world, {"clips": "2"}), instance, rules).run()
    assert why_broken(steps) == "clips[s1] failed: clips[s1] is broken (and 2 more)"


def test_independent_runs_go_on_together(made: dg.DagsterInstance) -> None:
    planner = Planner(toy(World(), {"left": "2", "right": "2"}), made)
    together = threading.Barrier(2)

    def elsewhere(node: Node) -> Step:
        together.wait(timeout=20)
        return Step(node, Status.DONE)

    with ThreadPoolExecutor(2) as pool:
        steps = planner.run(
            "key:left or key:right", parallel=2, submit=lambda node, tags, run_id: pool.submit(elsewhere, node)
        )
    assert {step.status for step in steps} == {Status.DONE}


def test_runs_say_what_started_them(instance: dg.DagsterInstance) -> None:
    planner = Planner(toy(World()), instance, started_by="schedule weekly")
    step = planner.run("raw")[0]
    run = instance.get_run_by_id(str(step.run_id))
    assert run is not None
    assert run.tags["xdub/started_by"] == "schedule weekly"
