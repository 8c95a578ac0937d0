"""The ready policies for clouds: who may read and write what, enforced by moto on AWS; settings for many machines."""

import fnmatch
import json
import re
from collections.abc import Callable
from typing import Any

import boto3
import botocore.exceptions
import pytest
import yaml
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

from healthingest_tests.conftest import REPO

BUCKET = "health-data"
OUTPUT = [
    "bronze/acme/x.sealed", "checkpoint/erasures/acme/x.json", "checkpoint/locks/acme.gate", "silver/p", "vault/p",
    "gold/p",
    "quarantine/p", "checkpoint/audit/p", "checkpoint/alerts/p", "checkpoint/alert_mutes/p",
    "checkpoint/decisions/acme/p", "checkpoint/contracts/p", "checkpoint/sightings/p", "checkpoint/events/acme.jsonl",
    "keyring.id", "silver_special/p", "checkpoint/destinations/acme.json",
]  # fmt: skip
KEYS = [*(f"output/{name}" for name in OUTPUT), "input/raw/acme_20250101.csv", "client_configs/acme.yaml"]
_TABLES = {"output/silver/p", "output/gold/p", "output/vault/p",
           "output/checkpoint/sightings/p", "output/checkpoint/contracts/p",
           "output/checkpoint/events/acme.jsonl", "output/silver_special/p", "output/checkpoint/destinations/acme.json",
           "output/keyring.id", "client_configs/acme.yaml"}  # fmt: skip
READS = {
    "ingestion": set(KEYS),
    "steward": _TABLES
    | {
        f"output/{name}/p" for name in ("quarantine", "checkpoint/audit", "checkpoint/alerts", "checkpoint/alert_mutes")
    },
    "analyst": _TABLES,
}
WRITES = {
    "ingestion": {key for key in KEYS if key.startswith("output/")},
    "steward": {"output/checkpoint/events/acme.jsonl", "client_configs/acme.yaml"},
    "analyst": {"output/checkpoint/events/acme.jsonl"},
}


def allowed(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except botocore.exceptions.ClientError as error:
        if error.response["Error"]["Code"] != "AccessDenied":
            raise
        return False
    return True


@pytest.mark.parametrize("principal", sorted(READS))
def test_a_principal_on_aws_reads_and_writes_what_it_needs(principal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    policy = (REPO / "deploy" / "aws" / f"{principal}.json").read_text().replace("BUCKET", BUCKET)
    with mock_aws():
        iam, s3 = boto3.client("iam", "us-east-1"), boto3.client("s3", "us-east-1")
        s3.create_bucket(Bucket=BUCKET)
        for key in KEYS:
            s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")
        iam.create_user(UserName=principal)
        iam.put_user_policy(UserName=principal, PolicyName="healthingest", PolicyDocument=policy)
        key = iam.create_access_key(UserName=principal)["AccessKey"]
        secret = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}

        @set_initial_no_auth_action_count(0)
        def tried() -> tuple[set[str], set[str]]:
            mine = boto3.client("s3", "us-east-1", **secret)
            reads = {k for k in KEYS if allowed(lambda k=k: mine.get_object(Bucket=BUCKET, Key=k))}
            writes = {k for k in KEYS if allowed(lambda k=k: mine.put_object(Bucket=BUCKET, Key=k, Body=b"y"))}
            return reads, writes

        assert tried() == (READS[principal], WRITES[principal])


@pytest.mark.parametrize("principal", ["steward", "analyst"])
def test_a_principal_on_azure_and_google_has_the_same_reach(principal: str) -> None:
    azure = json.loads((REPO / "deploy" / "azure" / f"{principal}.json").read_text())
    clauses = dict(re.findall(r"blobs/([a-z/]+)'\}\) OR (.*?)\)(?: AND|$)", azure["assignmentCondition"]))
    patterns = {action: re.findall(r"StringLike '([^']+)'", clause) for action, clause in clauses.items()}
    google = yaml.safe_load((REPO / "deploy" / "gcp" / f"{principal}.yaml").read_text())["bindings"]
    prefixes = {
        binding["condition"]["title"]: re.findall(r"objects/([^']+)'", binding["condition"]["expression"])
        for binding in google
    }
    assert set(patterns) == {"read", "write", "add/action"}
    assert patterns["write"] == patterns["add/action"]
    for reach, like, starts in (
        (READS, patterns["read"], prefixes["reads"]),
        (WRITES, patterns["write"], prefixes["writes"]),
    ):
        assert {key for key in KEYS if any(fnmatch.fnmatchcase(key, p) for p in like)} == reach[principal]
        assert {key for key in KEYS if any(key.startswith(p) for p in starts)} == reach[principal]
    assert not any("delete" in action for action in azure["roleDefinition"]["DataActions"])


@pytest.mark.parametrize("cloud", ["aws", "azure", "gcp"])
def test_no_policy_grants_everything_or_names_a_real_account(cloud: str) -> None:
    for file in (REPO / "deploy" / cloud).iterdir():
        text = file.read_text()
        assert not re.search(r'"\*"|:\*"|[0-9]{12}|kms:\*|s3:\*', text), file


# --- several machines -----------------------------------------------------------------------------------------------


def _settings(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((REPO / "deploy" / name).read_text())
    return read


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("dagster.yaml", {"storage", "compute_logs"}),
        ("dagster.celery.yaml", {"storage", "compute_logs", "run_launcher", "run_monitoring"}),
        ("dagster.ray.yaml", {"storage", "compute_logs", "run_launcher", "run_monitoring"}),
    ],
)
def test_settings_for_several_machines_differ_from_those_for_one_in_what_they_must_and_nothing_else(
    name: str, differs: set[str]
) -> None:
    one, several = _settings("dagster.yaml"), _settings(f"distributed/{name}")
    assert {key for key in one | several if one.get(key) != several.get(key)} == differs
    assert several["storage"] == {"postgres": {"postgres_url": {"env": "DAGSTER_PG_URL"}}}


def test_workers_and_launcher_agree_on_when_a_run_leaves_the_queue_and_no_run_gets_an_old_process() -> None:
    launcher = _settings("distributed/dagster.celery.yaml")
    worker = _settings("distributed/worker.yaml")["execution"]["config"]
    config = launcher["run_launcher"]["config"]
    assert (worker["broker"], worker["backend"]) == (config["broker"], config["backend"])
    late = {name: config["config_source"][name] for name in ("task_acks_late", "task_reject_on_worker_lost")}
    assert late.items() <= worker["config_source"].items()
    assert set(late.values()) == {True}
    assert worker["config_source"]["worker_cancel_long_running_tasks_on_connection_loss"]
    assert worker["config_source"]["worker_max_tasks_per_child"] == 1
    assert launcher["run_monitoring"]["enabled"]
    assert launcher["run_monitoring"]["max_resume_run_attempts"] == 0


def _documents(folder: str) -> list[dict[str, Any]]:
    files = sorted((REPO / "deploy" / folder).glob("*.yaml"))
    return [found for file in files for found in yaml.safe_load_all(file.read_text()) if found]


def test_no_container_is_root_writes_its_own_system_or_lacks_a_look_at_its_health() -> None:
    pods = [d["spec"]["template"]["spec"] for d in _documents("kubernetes") if d.get("kind") in {"Deployment", "Job"}]
    assert len(pods) == 5
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        (container,) = pod["containers"]
        allowed = container["securityContext"]
        assert allowed["readOnlyRootFilesystem"]
        assert not allowed["allowPrivilegeEscalation"]
        assert allowed["capabilities"] == {"drop": ["ALL"]}
        assert "livenessProbe" in container or pod.get("restartPolicy") == "Never"
        assert {"configMapRef": {"name": "healthingest-env"}} in container["envFrom"]
        named = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= named


def test_telemetry_is_off_and_no_secret_stands_in_any_manifest() -> None:
    manifests = _documents("kubernetes")
    (environment,) = (d["data"] for d in manifests if d.get("kind") == "ConfigMap")
    services = _settings("compose.yaml")["services"]
    own = [s["environment"] for name, s in services.items() if name not in {"postgres", "rabbitmq"}]
    assert len(own) == 5
    for found in (environment, *own):
        assert found["DAGSTER_DISABLE_TELEMETRY"] == "1"
    assert "Secret" not in {d.get("kind") for d in manifests}
    passwords = re.findall(r"://\w+:([^@]+)@", (REPO / "deploy" / "compose.yaml").read_text())
    assert passwords
    assert all(password.startswith("${") for password in passwords)
