"""The ready policies for clouds: what each principal may read and write. AWS's are enforced by moto's IAM and S3."""

import fnmatch
import json
import re
from collections.abc import Callable

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
