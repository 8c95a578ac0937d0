"""What the run's process and an engine's workers hand each other: sealed files in the output folder, and a `Job`.

An engine's own plans, shuffles and logs hold names and counts only, so that it sees neither a record nor a key: workers
open the keyring of their own environment. What whoever died leaves opens with the client's keys alone, as bronze does.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from healthingest.places import Places
from healthingest.platform import Platform
from healthingest.privacy.keyring import Keyring
from healthingest.privacy.keyring_file import load_keyring
from healthingest.privacy.seal import open_value, seal_values
from healthingest.storage.files import put
from healthingest.storage.jobs import own_folder
from healthingest.storage.objects import place_of


@dataclass(frozen=True)
class Job:
    """What a worker must know; travels in an engine's plan, and so holds no value and no key."""

    client_id: str
    #: The output folder and the configs, as workers reach them too.
    output: str
    configs: str
    #: The folder of this job's files, below `jobs_of` the output folder.
    name: str
    #: The generation that the client's tokens are made with, while its keys are being rotated.
    in_force: int | None

    def places(self) -> Places:
        """Places as a worker has them: data where the job says, the keyring where its environment does."""
        return replace(Places.from_env(os.environ), output=place(self.output), configs=Path(self.configs))

    def exchange(self) -> "Exchange":
        """The job's files, as a worker opens them."""
        keyring = load_keyring(self.places())
        if self.in_force is not None:
            keyring = replace(keyring, in_force={self.client_id: self.in_force})
        return Exchange(self, keyring)


class Exchange:
    """A job's files, each sealed and bound to its name: no other can be put in its place."""

    def __init__(self, job: Job, keyring: Keyring) -> None:
        """Of a job, with the client's keys."""
        self.job, self.keyring = job, keyring
        self._folder = jobs_of(place(job.output)) / job.name

    def put(self, name: str, content: Any) -> None:  # noqa: ANN401 - whatever can be pickled
        """Write a file as a whole; a task that is run again writes the same once more."""
        key = self.keyring.derive("bronze", self.job.client_id, "exchange", self.job.name)
        packed = _packed(pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL))
        put(self._folder / name, seal_values(key, [packed], [self._bound_to(name)])[0])

    def get(self, name: str) -> Any:  # noqa: ANN401
        """What was put there. Only who holds the client's keys can have made it, so that it may be unpickled."""
        keys = self.keyring.derive_all("bronze", self.job.client_id, "exchange", self.job.name)
        packed = open_value(keys, (self._folder / name).read_bytes(), self._bound_to(name))
        return pickle.loads(_unpacked(packed))  # noqa: S301

    def _bound_to(self, name: str) -> bytes:
        return f"healthingest/exchange\x1f{self.job.client_id}\x1f{self.job.name}\x1f{name}".encode()


@contextmanager
def exchange_of(platform: Platform, client_id: str) -> Iterator[Exchange]:
    """A new job's files, gone at the end; those of a process that is killed go with maintenance."""
    places, in_force = platform.places, platform.keyring.in_force.get(client_id)
    with own_folder(jobs_of(places.output)) as folder:
        job = Job(client_id, str(places.output), str(places.configs), folder.name, in_force)
        yield Exchange(job, platform.keyring)


def _packed(plain: bytes) -> bytes:
    """Compressed, a batch to a seventh: what it takes is less than writing and sealing the rest would. Size first."""
    import pyarrow as pa  # not by whoever only needs `jobs_of`

    return len(plain).to_bytes(8, "big") + bytes(pa.Codec("zstd", compression_level=1).compress(plain, asbytes=True))


def _unpacked(packed: bytes) -> bytes:
    import pyarrow as pa

    return bytes(pa.Codec("zstd").decompress(packed[8:], int.from_bytes(packed[:8], "big"), asbytes=True))


def jobs_of(output: Path) -> Path:
    """Where the folders of jobs are (`storage.jobs`)."""
    return output / "checkpoint" / "exchange"


def place(text: str) -> Path:
    """A folder, or a place in an object store."""
    return place_of(text) if "://" in text else Path(text)
