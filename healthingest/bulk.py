"""Many landed files, or all of bronze, in one process: in the order of the sequence, a few dozen files to a commit.

An error with one file must not keep the others out: a group that cannot be done together is done one by one.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from healthingest.errors import EngineError, HealthingestError, UnroutableError, scrubbed, system_sentence, unexpected
from healthingest.ingest import ingest_many, landed_before, record_unroutable, register, undecided
from healthingest.landing.discovery import look, settle
from healthingest.landing.names import printable
from healthingest.model import Delivery, Outcome
from healthingest.platform import Platform

#: Files that are taken in together, at most: what a crash repeats, and how often progress shows.
GROUP = 64
_UNFINISHED = "The file is still being written, or is hidden or a link."
OnFile = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """A file that came to no outcome, and why."""

    file: str
    #: waiting, unroutable, superseded, error.
    status: str
    message: str


Done = Outcome | Problem


def ingest_paths(
    platform: Platform, paths: Sequence[Path], *, run_id: str, on_stage: OnFile | None = None
) -> Iterator[list[Done]]:
    """Take landed files in, group by group; yields what became of each group's files."""
    complete = {f.path for f in settle([f for f in map(look, paths) if f is not None])}
    for _, group in groupby(in_sequence(platform, paths), key=lambda p: _order(platform, p)[0]):
        for part in _parts(list(group)):
            yield _take(platform, part, complete, run_id, on_stage)


def ingest_bronze(platform: Platform, *, run_id: str, on_stage: OnFile | None = None) -> Iterator[list[Done]]:
    """Bring every delivery that bronze holds to its end state: whatever table is gone is built again."""
    for client_id in platform.lake.bronze.clients():
        found = sorted((r.delivery for r in platform.lake.bronze.of_client(client_id)), key=lambda d: d.rank)
        for part in _parts(found):
            yield list(_decide(platform, part, run_id, on_stage))


def ingest_undecided(
    platform: Platform, client_ids: Iterable[str], but: Collection[str] = (), *, run_id: str,
    on_stage: OnFile | None = None,
) -> Iterator[list[Done]]:  # fmt: skip
    """Bring what somebody registered, and died before deciding, to its end state.

    `but`: names of files that were just tried, as the caller finds out before this is gone through.
    """
    for client_id in client_ids:
        found = [d for d in undecided(platform, client_id) if d.file_name not in but]
        for part in _parts(sorted(found, key=lambda d: d.rank)):
            yield list(_decide(platform, part, run_id, on_stage))


def in_sequence(platform: Platform, paths: Iterable[Path]) -> list[Path]:
    """Paths by client, then as the sequence orders their deliveries; those that lead nowhere come first."""
    return sorted(paths, key=lambda path: _order(platform, path))


def _take(
    platform: Platform, paths: Iterable[Path], complete: set[Path], run_id: str, on_stage: OnFile | None
) -> list[Done]:
    done: list[Done] = []
    taken: list[Delivery] = []
    for path in paths:
        if on_stage:
            on_stage(f"{printable(path.name)}: register")
        if path not in complete:
            done.append(Problem(printable(path.name), "waiting", _UNFINISHED))
            continue
        registered = _register(platform, path, run_id)
        if isinstance(registered, Problem):
            done.append(registered)
        else:
            taken.append(registered)
    return done + [_remarked(platform, d) for d in _decide(platform, taken, run_id, on_stage)]


def _register(platform: Platform, path: Path, run_id: str) -> Delivery | Problem:
    name = printable(path.name)
    try:
        return register(platform, path)
    except UnroutableError as error:
        if broken := platform.waits_for(path.name):
            return Problem(name, "waiting", f"Its client's config is broken. {broken}")
        try:
            record_unroutable(platform, path, error, run_id=run_id)
        except UnroutableError:  # it vanished meanwhile
            return Problem(name, "waiting", str(error))
        return Problem(name, "unroutable", str(error))
    except BaseException as error:
        if not unexpected(error):
            raise
        return _problem(name, error)


def _decide(platform: Platform, deliveries: Sequence[Delivery], run_id: str, on_stage: OnFile | None) -> Sequence[Done]:
    """The outcomes of some deliveries; if they cannot be had together, one by one."""
    first = deliveries[0].file_name if deliveries else ""
    what = first if len(deliveries) == 1 else f"{first} and {len(deliveries) - 1} more"
    shown = (lambda stage: on_stage(f"{what}: {stage}")) if on_stage else None
    try:
        return ingest_many(platform, deliveries, run_id=run_id, on_stage=shown)
    except BaseException as error:
        if not unexpected(error):
            raise
        if len(deliveries) > 1:
            return [done for d in deliveries for done in _decide(platform, [d], run_id, on_stage)]
        return [_problem(printable(first), error)]


def _remarked(platform: Platform, done: Done) -> Done:
    """Say so where the bytes of an earlier delivery lie in the landing zone again."""
    if isinstance(done, Problem) or done.fresh or not (remark := landed_before(platform, done.delivery)):
        return done
    return Problem(done.delivery.file_name, "superseded", remark)


def _problem(name: str, error: BaseException) -> Problem:
    if isinstance(error, EngineError):  # the file is not at fault, and is taken in once the engine is back
        return Problem(name, "waiting", str(error))
    if isinstance(error, HealthingestError):
        return Problem(name, "error", str(error))
    if isinstance(error, OSError):
        return Problem(name, "error", system_sentence(error))
    return Problem(name, "error", scrubbed(error))  # its text may hold a record's values


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for at in range(0, len(items), GROUP):
        yield items[at : at + GROUP]


def _order(platform: Platform, path: Path) -> tuple[str, str, str, str]:
    try:
        name = platform.route(path.name)
    except UnroutableError:
        return "", "", "", path.name
    return name.client_id, name.creation_date.isoformat(), name.suffix, path.name
