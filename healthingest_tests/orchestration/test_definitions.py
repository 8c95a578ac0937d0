"""The definitions: they load whatever lies in `client_configs/`, and their public face changes only on purpose."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from healthingest.orchestration.build import build_defs
from healthingest.orchestration.partitions import NO_CLIENT, partition_key
from healthingest.places import today
from healthingest.platform import Platform
from healthingest_tests.conftest import install, places_in

REPO = Path(__file__).parents[2]
DAGSTER = str(Path(sys.executable).parent / "dagster")


def test_dagster_itself_accepts_the_definitions(home: Platform, tmp_path: Path) -> None:
    done = subprocess.run(
        [DAGSTER, "definitions", "validate", "-w", str(REPO / "workspace.yaml")],
        env=os.environ | {"DAGSTER_HOME": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "healthingest" in done.stderr + done.stdout


def test_the_assets_are_the_designs(tmp_path: Path) -> None:
    home = install(tmp_path, {"acme": "client_id: acme\n", "globex": "client_id: globex\nowners: ['team:globex']\n"})
    specs = {spec.key.to_user_string(): spec for spec in build_defs(home.places).resolve_all_asset_specs()}
    face = {
        key: (
            spec.group_name,
            list(spec.owners),
            sorted(spec.kinds),
            sorted(dep.asset_key.to_user_string() for dep in spec.deps),
        )
        for key, spec in specs.items()
    }
    team, delta = ["team:data-engineering"], ["deltalake", "polars"]
    assert face == {
        "client_feed/acme": ("client_feeds", team, ["csv"], []),
        "client_feed/globex": ("client_feeds", ["team:globex"], ["csv"], []),
        "bronze_files": ("member_files", team, ["csv"], ["client_feed/acme", "client_feed/globex"]),
        "quarantine": ("member_files", team, delta, ["bronze_files"]),
        "silver": ("member_files", team, delta, ["bronze_files"]),
        "audit": ("member_files", team, delta, ["bronze_files"]),
        "membership_by_month": ("gold", team, delta, ["silver"]),
        "installation": ("operations", [], ["healthingest"], []),
    }
    assert all(specs[key].description for key in specs)
    assert specs["client_feed/acme"].freshness_policy is not None
    assert specs["silver"].metadata["dagster/column_lineage"].deps_by_column["zip3"][0].column_name == "zip"
    assert "dagster/code_references" in specs["silver"].metadata


def test_partitions_are_client_by_date_with_today(home: Platform) -> None:
    partitions = build_defs(home.places).resolve_assets_def("silver").partitions_def
    assert partitions is not None
    assert str(partition_key("acme", today())) == f"acme|{today()}"
    assert partitions.has_partition_key(partition_key("acme", today()))
    assert not partitions.has_partition_key(partition_key("nobody", today()))


@pytest.mark.parametrize(
    "broken",
    [
        "client_id: a|b\n",
        "client_id: [",
        "client_id: acme\nrulez: 1\n",
        "- a\n",
        "\0",
        "client_id: x\ncontract: none/9\n",
    ],
)
def test_a_config_that_cannot_load_takes_out_its_own_client_only(tmp_path: Path, broken: str) -> None:
    home = install(tmp_path, {"broken": broken, "globex": "client_id: globex\n"})
    keys = {spec.key.to_user_string() for spec in build_defs(home.places).resolve_all_asset_specs()}
    assert {"client_feed/globex", "silver"} <= keys
    assert not any("acme" in key or "a|b" in key for key in keys)


def test_owners_that_dagster_would_refuse_are_a_mistake_of_that_config_alone(tmp_path: Path) -> None:
    fine = "owners: ['team:data-ops', 'ann.lee+dq@health-plan.example.org']"
    home = install(tmp_path, {"acme": "client_id: acme\nowners: [bob]\n", "globex": f"client_id: globex\n{fine}\n"})
    specs = {spec.key.to_user_string(): spec for spec in build_defs(home.places).resolve_all_asset_specs()}
    assert {"client_feed/globex", "silver"} <= set(specs)
    assert "client_feed/acme" not in specs
    assert "acme.yaml:2, key 'owners" in str(home.clients.problems[0])


def test_an_installation_without_clients_loads(tmp_path: Path) -> None:
    defs = build_defs(places_in(tmp_path))
    partitions = defs.resolve_assets_def("silver").partitions_def
    assert isinstance(partitions, dg.MultiPartitionsDefinition)
    clients = next(d.partitions_def for d in partitions.partitions_defs if d.name == "client")
    assert clients.get_partition_keys() == [NO_CLIENT]


def test_importing_the_entry_point_reads_nothing(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEALTHINGEST_")}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import healthingest.definitions"],
        env=env | {"HEALTHINGEST_ENV": "nonsense", "HEALTHINGEST_HOME": str(tmp_path / "none")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert "deltalake" not in done.stderr
    assert not (tmp_path / "none").exists()
