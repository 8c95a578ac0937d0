"""The acceptance tests as they are, with landing zone and output in a real object store: SeaweedFS (S3), Azurite."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from healthingest_tests.conftest import REPO
from healthingest_tests.stores import BUCKET, azurite, seaweedfs

STORES = {"s3": seaweedfs, "az": azurite}
#: Labelled data, histories in any order (fewer), everything a delivery can meet, and processes killed at any moment;
#: and Dagster's parts apart, their storage in Postgres, with a daemon that is killed.
ACCEPTANCE = {
    "labelled": ["unit/test_labelled.py"],
    "deliveries": ["unit/test_ingest.py"],
    "bad input": ["orchestration/test_bad_input.py", "-k", "not stands_where_people"],  # that one reads local folders
    "histories": ["properties/test_histories.py", "-k", "sorted_order"],
    "kills": ["faults/test_kills.py"],
    "postgres": ["distributed/test_postgres.py", "-k", "killed_daemon"],
}


@pytest.mark.parametrize("scheme", STORES)
@pytest.mark.parametrize("part", ACCEPTANCE)
def test_the_acceptance_tests_pass_in_an_object_store(tmp_path: Path, part: str, scheme: str) -> None:
    file, *chosen = ACCEPTANCE[part]
    with STORES[scheme](tmp_path) as store:
        env = os.environ | store | {"HEALTHINGEST_TEST_STORE": f"{scheme}://{BUCKET}"}
        command = [sys.executable, "-m", "pytest", "-n", "2", str(REPO / "healthingest_tests" / file), *chosen]
        done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    last = done.stdout.splitlines()[-1]
    if " passed" not in last:
        pytest.skip(f"{file}: {last}")
    print(last)
