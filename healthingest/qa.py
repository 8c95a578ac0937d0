"""Generated deliveries for trying things out: the shape of the real ones, and nothing of any member.

Taken over are counts that the audit table holds (records, filled fields, broken rules, new and changed members) and the
client's own config. Every value is invented from a random seed. The pipeline reads them as it reads real ones.
"""

import csv
import gzip
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.contracts.contract import Column
from healthingest.contracts.source import Transform, normal_header
from healthingest.errors import UsageError
from healthingest.platform import Platform

_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wu", "za")
_STREETS = ("Sample St", "Example Ave", "Test Rd", "Specimen Ln")
_TOWNS = ("Testville", "Sampleton", "Mockford", "Demo Falls")
_AREAS = ("617", "212", "415", "312", "206", "303")
_STATES = ("MA", "NY", "CA", "IL", "WA", "CO", "TX", "FL")
#: Forms of member ids, tried in this order against the contract's and the client's patterns; {} takes a number.
_IDS = ("QA{:08d}", "{:08d}", "{:09d}", "{:010d}", "M{:08d}", "A{:07d}", "{:06d}", "{:012d}", "QA-{:06d}")
#: Breaks any rule that is not about its being there.
_BAD: Mapping[str, str] = {"length": "x" * 300, "in": "no such value", "number": "many"}


@dataclass(frozen=True)
class Made:
    """One generated delivery."""

    file: Path
    records: int
    #: Of them those that break a rule on purpose.
    bad: int


#: The invented members of one client, as far as deliveries have named them: number -> version of its values.
_Members = dict[int, int]


def generate(platform: Platform, target: Path, *, clients: Sequence[str] | None, seed: int) -> Iterator[Made]:
    """Write a delivery like each one of the audit table into a new folder, under the same names; yields each.

    Raises:
        UsageError: the folder is not empty, or lies in the output folder or landing zone.
    """
    for place in (platform.places.output, platform.places.landing):
        if target.resolve().is_relative_to(place):
            raise UsageError(f"--out must not lie in {place}: generated files must not be taken for real ones.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"--out {target} must be a new or an empty folder.")
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    members: dict[str, _Members] = {}
    rows = platform.lake.audit.frame().filter(pl.col("status").is_in(["succeeded", "held"]))
    rows = rows.sort("client_id", "creation_date", "file_suffix", "file_name", "delivery_no")
    for row in rows.unique("file_name", keep="last", maintain_order=True).to_dicts():
        client = platform.clients.clients.get(row["client_id"])
        if client is None or (clients and row["client_id"] not in clients):
            continue
        chance = random.Random(f"{seed} {row['file_name']}")  # noqa: S311 - invents values, keeps no secret
        yield _write(target / row["file_name"], row, client, members.setdefault(client.client_id, {}), chance)


def _write(file: Path, row: Mapping[str, Any], client: Client, members: _Members, chance: random.Random) -> Made:
    columns = {i["column"]: i["header"] for i in row["filled"] if i["header"] or i["column"] in client.made_columns}
    share = {i["column"]: i["records"] / max(row["records"] - row["malformed"], 1) for i in row["filled"]}
    made = _Invented(client, row["creation_date"], chance)
    lines = [
        _as_sent(
            {c: made.value(c, *who) if made.fills(c, who[0], share.get(c, 1.0)) else "" for c in columns},
            columns,
            client,
        )
        for who in _named(row, members, chance)
    ]
    bad = _broken(row, columns, client, made)
    lines += bad
    chance.shuffle(lines)
    header = [h for h in columns.values() if h]
    header += [source for step in _steps(columns, client) for source in step.sources]
    file.write_bytes(_bytes(file.name, header, lines, client))
    return Made(file, len(lines), len(bad))


def _named(row: Mapping[str, Any], members: _Members, chance: random.Random) -> list[tuple[int, int]]:
    """Whom the accepted records name: as many new and changed members and repeats as the real delivery had."""
    known = list(members)
    new = max(row["inserted"], row["accepted"] - row["duplicates"] - len(known), 0)
    seen = chance.sample(known, min(row["accepted"] - row["duplicates"] - new, len(known)))
    for number in seen[: row["updated"]]:
        members[number] += 1
    fresh = range(len(known), len(known) + new)
    members |= dict.fromkeys(fresh, 0)
    named = [*seen, *fresh]
    repeats = chance.choices(named, k=row["duplicates"]) if named else []
    return [(number, members[number]) for number in [*named, *repeats]]


def _steps(columns: Mapping[str, str | None], client: Client) -> list[Transform]:
    """The client's transforms that make columns of others that nothing else fills."""
    there = {normal_header(header) for header in columns.values() if header}
    return [s for s in client.config.transform if s.sources and not there & set(map(normal_header, s.sources))]


def _as_sent(values: Mapping[str, str], columns: Mapping[str, str | None], client: Client) -> list[str]:
    """One record's fields as the client's transforms take them: a column that is joined stands in its first part."""
    fields = [values[column] for column, header in columns.items() if header]
    for step in _steps(columns, client):
        made = [values.get(column, "") for column in step.to]
        fields += [made[0], *[""] * (len(step.sources) - 1)] if step.concat else [step.separator.join(made)]
    return fields


def _broken(
    row: Mapping[str, Any], columns: Mapping[str, str | None], client: Client, made: "_Invented"
) -> list[list[str]]:
    """Records that break the rules that the real delivery's did, as often."""
    wanted = [r for r in row["rules"] for _ in range(r["records"]) if (r["severity"] or "error") == "error"]
    lines = []
    for place, broken in enumerate(wanted[: row["rejected"]]):
        values = {c: made.value(c, 10_000_000 + place, 0) for c in columns}
        line = _as_sent(values, columns, client)
        column = broken["column"]
        if column in values:
            values[column] = made.bad(column, broken["rule"], broken["kind"])
            line = _as_sent(values, columns, client)
        elif broken["rule"] == "too_many_fields":
            line = [*line, "x"]
        else:
            line = line[:-1]
        lines.append(line)
    return lines


class _Invented:
    """Values of one client's columns that its contract and rules accept, as far as those can be met by guessing."""

    def __init__(self, client: Client, day: date, chance: random.Random) -> None:
        self._client, self._day, self._chance = client, day, chance
        self._columns = client.contract.column
        self._sources = {source.to: source for source in client.config.columns.values()}
        self._id = self._form_of_ids()

    def fills(self, column: str, number: int, share: float) -> bool:
        """Whether a member has a value there, so that about that share of all have one; the same in every delivery."""
        chosen = random.Random(f"filled {column} {number}").random()  # noqa: S311
        return self._columns[column].required or chosen < share

    def value(self, column: str, number: int, version: int) -> str:
        """The value of one member's column; the same for the same number and version."""
        if column == "member_id":
            return self._id.format(number)
        chance = random.Random(f"{column} {number} {version if column in {'address', 'city'} else 0}")  # noqa: S311
        allowed = [v for rule in self._rules_of(column) for v in rule.in_ or ()]
        plain = chance.choice(allowed) if allowed else self._plain(self._columns[column], chance)
        words = {ours: theirs for theirs, ours in (self._source(column, "map") or {}).items()}
        return str(words.get(plain, plain))

    def bad(self, column: str, rule_id: str, kind: str) -> str:
        """A value that breaks the rule, and if it can be, no other."""
        if kind in {"required", "not_blank"} or rule_id == f"{column}.required":
            return ""
        if self._columns[column].type == "date" and kind in {"between", "compare", "range"}:
            return self._date(column, date(1800, 1, 1))
        if kind != "pattern":
            return _BAD.get(kind, "?")
        tried = pl.DataFrame({"value": ["bad", "bad value", "?", "!" * 300]})
        patterns = {rule.id: f"^(?:{rule.pattern})$" for rule in self._rules_of(column) if rule.pattern}
        others = [pl.col("value").str.contains(p) for other, p in patterns.items() if other != rule_id]
        breaks = tried.filter(~pl.col("value").str.contains(patterns.get(rule_id, "^$")))
        return str([*breaks.filter(*others)["value"], *breaks["value"], "?"][0])

    def _plain(self, column: Column, chance: random.Random) -> str:
        oldest = date(1930, 1, 1)
        made: dict[str, Callable[[], str]] = {
            "identifier": lambda: self._id.format(chance.randrange(10**6)),
            "name": lambda: "".join(chance.choices(_SYLLABLES, k=3)).title(),
            "gender": lambda: chance.choice("MFU"),
            "us_state": lambda: chance.choice(_STATES),
            "us_zip": lambda: f"{chance.randrange(1001, 99950):05d}",
            "phone": lambda: f"{chance.choice(_AREAS)}-555-01{chance.randrange(100):02d}",
            "email": lambda: f"{''.join(chance.choices(_SYLLABLES, k=4))}@example.com",
            "ssn": lambda: f"{chance.randrange(100, 600)}-{chance.randrange(10, 99)}-{chance.randrange(1000, 9999)}",
            "mbi": lambda: f"{chance.randrange(1, 10)}EG4-TE5-MK{chance.randrange(10)}{chance.randrange(10)}",
            "npi": lambda: _npi(chance.randrange(10**8)),
            "date": lambda: self._date(
                column.name,
                oldest + timedelta(chance.randrange((self._day - oldest).days)) if column.name == "dob" else self._day,
            ),
        }  # fmt: skip
        text = _STREETS if "address" in column.name else _TOWNS
        return made.get(column.type, lambda: f"{chance.randrange(1, 999)} {chance.choice(text)}")()

    def _date(self, column: str, day: date) -> str:
        formats = self._source(column, "date_formats")
        return day.strftime(formats[0]) if formats else day.isoformat()

    def _source(self, column: str, key: str) -> Any:  # noqa: ANN401 - whatever the config holds under it
        return getattr(self._sources.get(column), key, None)

    def _rules_of(self, column: str) -> list[Any]:
        return [rule for rule in self._client.rules if rule.column == column and rule.when is None]

    def _form_of_ids(self) -> str:
        patterns = [rule.pattern for rule in self._rules_of("member_id") if rule.pattern]
        forms = pl.DataFrame({"form": list(_IDS), "value": [form.format(7) for form in _IDS]})
        fits = [pl.col("value").str.contains(f"^(?:{pattern})$") for pattern in patterns]
        return str([*forms.filter(*fits)["form"], _IDS[0]][0])


def _npi(number: int) -> str:
    """Ten digits whose last makes the Luhn sum with the prefix 80840 (CMS, NPI standard)."""
    body = f"1{number:08d}"
    doubled = [int(d) * (2 if place % 2 == 0 else 1) for place, d in enumerate(reversed(body))]
    total = 24 + sum(d // 10 + d % 10 for d in doubled)
    return f"{body}{-total % 10}"


def _bytes(name: str, header: Sequence[str], lines: Sequence[Sequence[str]], client: Client) -> bytes:
    """The file in the client's own dialect."""
    source, text = client.config.source, io.StringIO()
    writer = csv.writer(
        text, delimiter=source.delimiter, quotechar=source.quote, lineterminator="\n",
        quoting=csv.QUOTE_MINIMAL if source.quote else csv.QUOTE_NONE,
    )  # fmt: skip
    text.write("generated\n" * source.skip_lines)
    writer.writerows([header, *lines] if source.header else lines)
    if source.trailer:
        fields = [source.trailer.starts_with, *[""] * ((source.trailer.count_field or 1) - 1)]
        if source.trailer.count_field:
            fields[source.trailer.count_field - 1] = str(len(lines))
        writer.writerow(fields)
    raw = text.getvalue().encode(source.encodings[0])
    return gzip.compress(raw) if name.endswith(".gz") else raw
