"""The acceptance tests as they are, with landing zone and output in a real S3 store (SeaweedFS)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from healthingest_tests.conftest import REPO
from healthingest_tests.stores import BUCKET, seaweedfs

#: Labelled data, histories in any order (fewer), everything a delivery can meet, and processes killed at any moment.
ACCEPTANCE = {
    "labelled": ["unit/test_labelled.py"],
    "deliveries": ["unit/test_ingest.py"],
    "histories": ["properties/test_histories.py", "-k", "sorted_order"],
    "kills": ["faults/test_kills.py"],
}


@pytest.mark.parametrize("part", ACCEPTANCE)
def test_the_acceptance_tests_pass_in_an_object_store(tmp_path: Path, part: str) -> None:
    file, *chosen = ACCEPTANCE[part]
    with seaweedfs(tmp_path) as store:
        env = os.environ | store | {"HEALTHINGEST_TEST_STORE": f"s3://{BUCKET}"}
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", str(REPO / "healthingest_tests" / file), *chosen]
        done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
