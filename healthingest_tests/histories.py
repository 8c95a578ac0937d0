"""Random histories of deliveries, and by plain Python what they must lead to: the oracle of the convergence tests."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from healthingest.export import export_frame
from healthingest.ingest import ingest_many, register
from healthingest.lake.silver import Silver
from healthingest.model import Delivery
from healthingest.platform import Platform
from healthingest_tests.conftest import HEADER, drop, install, line

#: A file name and its text; of one name the earlier came first.
File = tuple[str, str]
#: A delivery that somebody takes back or gives again: file name and delivery number.
Word = tuple[str, int]
CONFIGS = {
    "acme": "client_id: acme\nquality: {max_invalid_ratio: 1.0}\n",
    "globex": "client_id: globex\nquality: {max_invalid_ratio: 0.3, on_breach: hold}\n",
    "hist": "client_id: hist\nsource: {creation_date: {from: column, column: creation_date}}\n"
    "quality: {max_invalid_ratio: 1.0}\n",
}
_CITIES = ["Boston", "Salem", "Lynn"]
_HOLDS = {"globex": 0.3}


def history_of(chance: random.Random) -> list[File]:
    """Two or three clients; days and suffixes; overlapping members, bad records, files sent again, changed and cut."""
    files: list[File] = []
    for client in chance.sample(sorted(CONFIGS), chance.choice([1, 2, 3])):
        for day in range(6, 6 + chance.choice([1, 2, 3])):
            for suffix in chance.sample(["", "_1", "_2"], chance.choice([1, 2])):
                base = [f"M{i}" for i in range(6) if chance.random() < 0.8]
                times = chance.choice([1, 1, 1, 2, 3])
                name = f"{client}_2025010{day}{suffix}.csv"
                files += [(name, _text(client, day, base, chance)) for _ in range(times)]
                if chance.random() < 0.2:  # the very same bytes, some time later
                    files.append(chance.choice([file for file in files if file[0] == name]))
    return files


def _text(client: str, day: int, base: list[str], chance: random.Random) -> str:
    rows = []
    for member in [m for m in base if chance.random() < 0.85] + chance.choices(
        base or ["M0"], k=chance.choice([0, 0, 1])
    ):
        bad = chance.random() < 0.15
        row = line(member, city=chance.choice(_CITIES), **({"zip": "12"} if bad else {}))
        rows.append(row + (f",2025-01-0{chance.randint(1, day)}" if client == "hist" else ""))
    header = HEADER + (",creation_date" if client == "hist" else "")
    return "\n".join([header, *rows]) + "\n"


@dataclass
class Expected:
    """What a history must lead to, whatever the order of the work."""

    #: (client, member, city, last seen), sorted.
    members: list[tuple[str, str, str, str]] = field(default_factory=list)
    #: (file name, delivery number) -> status, records, accepted, rejected, duplicates.
    deliveries: dict[tuple[str, int], tuple[str, int, int, int, int]] = field(default_factory=dict)
    #: (file name, record number) of rejected records.
    quarantine: Counter[tuple[str, int]] = field(default_factory=Counter)


@dataclass
class _Parsed:
    #: member -> (sequence, city): its last valid record.
    members: dict[str, tuple[tuple[object, ...], str]] = field(default_factory=dict)
    records: int = 0
    accepted: int = 0
    rejected: list[int] = field(default_factory=list)


def expected(files: Sequence[File | Word]) -> Expected:
    """By definition: of each name the last delivery that was applied counts; of these the greatest sequence wins.

    A `Word` among the files toggles whether a delivery that silver took counts at all.
    """
    result = Expected()
    seen: dict[str, list[str]] = {}
    applied: dict[str, dict[int, _Parsed]] = {}
    gone: set[Word] = set()
    for name, text in files:
        if isinstance(text, int):
            gone ^= {(name, text)}
            continue
        versions = seen.setdefault(name, [])
        if text in versions:
            continue
        versions.append(text)
        parsed, number = _parse(name, text, len(versions)), len(versions)
        limit = _HOLDS.get(name.split("_")[0])
        over = limit is not None and parsed.records and len(parsed.rejected) / parsed.records > limit
        left = [parsed for n, parsed in applied.get(name, {}).items() if (name, n) not in gone]
        before = left[-1].members.keys() if left else set()
        held = over or len(before - parsed.members.keys()) > len(parsed.members)
        if not held:
            applied.setdefault(name, {})[number] = parsed
        duplicates = 0 if held else parsed.accepted - len(parsed.members)
        counted = (parsed.records, parsed.accepted, len(parsed.rejected), duplicates)
        result.deliveries[name, number] = ("held" if held else "succeeded", *counted)
        result.quarantine.update((name, record_no) for record_no in parsed.rejected)
    winners: dict[tuple[str, str], tuple[tuple[object, ...], str]] = {}
    for word in gone:
        result.deliveries[word] = ("reverted", *result.deliveries[word][1:])
    for name, took in applied.items():
        left = [parsed for n, parsed in took.items() if (name, n) not in gone]
        for member, (sequence, city) in left[-1].members.items() if left else ():
            key = (name.split("_")[0], member)
            winners[key] = max(winners.get(key, ((), "")), (sequence, city))
    result.members = sorted((c, m, city, str(sequence[0])) for (c, m), (sequence, city) in winners.items())
    return result


def _parse(name: str, text: str, number: int) -> _Parsed:
    client, day, suffix = (
        name.split("_", maxsplit=1)[0],
        f"{name.split('_')[1][:4]}-01-{name.split('_')[1][6:8]}",
        name[-5:-4],
    )
    suffix = suffix if name.count("_") == 2 else ""
    parsed = _Parsed()
    for record_no, row in enumerate(text.splitlines()[1:], 1):
        fields = row.split(",")
        parsed.records += 1
        if fields[8] == "12":
            parsed.rejected.append(record_no)
            continue
        parsed.accepted += 1
        record_day = fields[11] if client == "hist" else day
        sequence = (record_day, day, suffix, name, number, record_no)
        parsed.members[fields[0]] = max(parsed.members.get(fields[0], ((), "")), (sequence, fields[6]))
    return parsed


def found(home: Platform) -> Expected:
    """What an installation holds, in the oracle's form; and the invariants that hold whatever it holds."""
    lake = home.lake
    shown = export_frame(home).select("client_id", "member_id", "city", pl.col("last_seen").cast(pl.String))
    audit = lake.audit.frame()
    assert audit["file_id"].n_unique() == audit.height, "one audit row per delivery"
    for row in audit.to_dicts():
        parts = ("duplicates", "suppressed", "stale", "unchanged", "inserted", "updated")
        assert sum(row[p] for p in parts) == (row["accepted"] if row["status"] in {"succeeded", "reverted"} else 0), (
            row["file_name"]
        )
    names = ("file_name", "delivery_no", "status", "records", "accepted", "rejected", "duplicates")
    return Expected(
        members=shown.sort(pl.all()).rows(),
        deliveries={(n, d): tuple(rest) for n, d, *rest in audit.select(names).rows()},
        quarantine=Counter(lake.quarantine.frame(["file_name", "record_no"]).rows())
        if lake.quarantine.exists()
        else Counter(),
    )


def change_feed_is_real(home: Platform) -> None:
    """The change feed, replayed from the beginning, gives silver, and none of its updates changes nothing."""
    for silver in home.lake.silvers():
        if silver.exists():
            _feed_is_real(silver)


def _feed_is_real(table_of: Silver) -> None:
    table = table_of.snapshot()
    feed = pl.DataFrame(table.load_cdf(starting_version=0)).sort("_commit_version", maintain_order=True)
    state: dict[tuple[str, str], str] = {}
    before: dict[tuple[str, str], str] = {}
    order = {"delete": 0, "update_preimage": 1, "update_postimage": 2, "insert": 3}
    changes: list[dict[str, Any]] = sorted(
        feed.to_dicts(), key=lambda r: (r["_commit_version"], order[r["_change_type"]])
    )
    for row in changes:
        key, content = (row["client_id"], row["member_token"]), row["_content_hash"]
        match row["_change_type"]:
            case "insert":
                assert key not in state
                state[key] = content
            case "delete":
                assert state.pop(key) == content
            case "update_preimage":
                before[key] = content
            case "update_postimage":
                assert before[key] == state[key] != content, "a real change"
                state[key] = content
    silver = table_of.frame(["client_id", "member_token", "_content_hash"])
    assert state == {(c, t): h for c, t, h in silver.rows()}


def in_any_order(
    root: Path, files: list[File], chance: random.Random, configs: Mapping[str, str] = CONFIGS
) -> Expected:
    """Landed in any order that keeps each name's own, worked on in any order, in groups, some of it again and again."""
    home = install(root, configs)
    names = [name for name, _ in files]
    chance.shuffle(names)
    waiting = {name: [text for other, text in files if other == name] for name in names}
    known: list[Delivery] = []
    for name in names:
        known.append(register(home, drop(home, name, waiting[name].pop(0))))
        if chance.random() < 0.6:
            group = chance.sample(known, chance.randint(1, len(known)))
            ingest_many(home, list(dict.fromkeys(group)), run_id="any")
    rest = list(dict.fromkeys(chance.sample(known, len(known))))
    ingest_many(home, rest, run_id="rest")
    tables = (*home.lake.silvers(), home.lake.quarantine, home.lake.sightings)
    versions = [table.version() for table in tables]
    ingest_many(home, chance.sample(rest, len(rest)), run_id="again")
    assert versions == [table.version() for table in tables]
    change_feed_is_real(home)
    return found(home)


def new_home(root: Path) -> Platform:
    """An installation with the histories' clients."""
    return install(root, CONFIGS)
