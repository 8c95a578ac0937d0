"""The two pages: one delivery, and one client over time. Pure functions of audit rows.

What belongs here: which numbers a page shows. What does not: how a chart is drawn (`charts`), where a page is kept
(`write`) and how it looks (`templates/`). A row is one of the audit table, column -> value.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Any

from healthingest.report.charts import Bar, bars_over_time

if TYPE_CHECKING:
    from jinja2 import Environment

Row = Mapping[str, Any]
#: Deliveries that a chart over time shows at most: the latest.
SHOWN = 60
_RULES, _MATRIX = 20, 12
#: A fill rate that falls by more than so many points stands out.
_DROP = 0.10


def delivery_page(row: Row, history: Sequence[Row], texts: Mapping[str, str]) -> str:
    """The page of one delivery; `history`: rows of its client; `texts`: rule id -> what it asks."""
    ordered = in_order(history)
    before = [r for r in ordered if _rank(r) < _rank(row) and r["status"] == "succeeded"]
    shown = [r for r in ordered if _rank(r) <= _rank(row)][-SHOWN:]
    if row["file_id"] not in {r["file_id"] for r in shown}:
        shown.append(row)
    return render(
        "delivery.html",
        row=row,
        sums=_sums(row),
        counts_chart=_counts_chart(shown),
        ratio_chart=_ratio_chart(shown),
        rules=_rules([row], texts),
        matrix=_matrix([row]),
        filled=_filled(row, before[-1:]),
        against="the delivery before" if before else "",
    )


def client_page(client_id: str, history: Sequence[Row], texts: Mapping[str, str], links: Mapping[str, str]) -> str:
    """The page of one client; `links`: file_id -> the page of that delivery, relative to this one."""
    ordered = in_order(history)
    shown = ordered[-SHOWN:]
    taken = [r for r in ordered if r["filled"]]
    return render(
        "client.html",
        client_id=client_id,
        rows=[{"row": r, "link": links.get(r["file_id"])} for r in reversed(ordered)],
        counts_chart=_counts_chart(shown),
        ratio_chart=_ratio_chart(shown),
        rules=_rules(shown, texts),
        matrix=_matrix(shown),
        filled=_filled(taken[-1], taken[:-1]) if taken else [],
        against="the median of the earlier deliveries" if len(taken) > 1 else "",
    )


def in_order(history: Sequence[Row]) -> list[Row]:
    """Rows in the order of the sequence."""
    return sorted(history, key=_rank)


def _rank(row: Row) -> tuple[str, str, int, str]:
    return str(row["creation_date"]), row["file_suffix"] or "", row["delivery_no"] or 0, row["file_id"]


def render(template: str, **values: object) -> str:
    """One of the templates, filled."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return _templates().get_template(template).render(made=made, **values)


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("healthingest.report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def _name(row: Row) -> str:
    return f"{row['file_name']}, delivery {row['delivery_no']}"


def _counts_chart(rows: Sequence[Row]) -> str:
    marks = {"failed": "✕", "held": "‖", "discarded": "⌫", "reverted": "↶"}
    return bars_over_time([
        Bar(
            str(row["creation_date"])[5:],
            f"{_name(row)}: {row['accepted'] or 0:,} accepted, {row['rejected'] or 0:,} rejected ({row['status']})",
            [("accepted", row["accepted"] or 0), ("rejected", row["rejected"] or 0)],
            marks.get(row["status"], ""),
        )
        for row in rows
    ])  # fmt: skip


def _ratio_chart(rows: Sequence[Row]) -> str:
    return bars_over_time(
        [
            Bar(
                str(row["creation_date"])[5:],
                f"{_name(row)}: {row['invalid_ratio'] or 0:.2%} rejected, limit {row['max_invalid_ratio'] or 0:.2%}",
                [("rejected", row["invalid_ratio"] or 0)],
                limit=row["max_invalid_ratio"] if row["records"] else None,
            )
            for row in rows
        ],
        percent=True,
    )


def _sums(row: Row) -> list[dict[str, Any]]:
    """The accounting as sums: a whole and its parts."""
    wholes = {
        "physical_lines": ("header_lines", "record_lines", "blank_lines", "trailer_lines"),
        "records": ("accepted", "rejected"),
        "accepted": ("inserted", "updated", "unchanged", "stale", "suppressed", "duplicates"),
    }
    return [
        {
            "whole": whole.replace("_", " "),
            "count": row[whole] or 0,
            "parts": [{"name": part.replace("_", " "), "count": row[part] or 0} for part in parts],
        }
        for whole, parts in wholes.items()
    ]


def _rules(rows: Sequence[Row], texts: Mapping[str, str]) -> list[dict[str, Any]]:
    counted: Counter[tuple[str, str, str]] = Counter()
    for rule in (rule for row in rows for rule in row["rules"] or ()):
        counted[rule["rule"], rule["column"] or "", rule["severity"]] += rule["records"]
    records = sum(row["records"] or 0 for row in rows) or 1
    most = max(counted.values(), default=1)
    return [
        {
            "rule": rule, "column": column, "severity": severity, "text": texts.get(rule, ""), "records": count,
            "share": count / records, "width": count / most,
        }
        for (rule, column, severity), count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:_RULES]
    ]  # fmt: skip


def _matrix(rows: Sequence[Row]) -> dict[str, Any]:
    """Which rules reject the same records: the rules that do most, and records per pair."""
    pairs: Counter[tuple[str, str]] = Counter()
    weight: Counter[str] = Counter()
    for pair in (pair for row in rows for pair in row["pairs"] or ()):
        pairs[pair["first"], pair["second"]] += pair["records"]
        weight.update({pair["first"]: pair["records"], pair["second"]: pair["records"]})
    names = [name for name, _ in weight.most_common(_MATRIX)]
    most = max(pairs.values(), default=1)
    cells = [
        [{"records": n, "heat": n / most} for other in names for n in [pairs[name, other] + pairs[other, name]]]
        for name in names
    ]
    return {"names": names, "rows": list(zip(names, cells, strict=True))}


def _rates(row: Row) -> dict[str, float]:
    well_formed = (row["records"] or 0) - (row["malformed"] or 0)
    return {item["column"]: item["records"] / well_formed if well_formed else 0.0 for item in row["filled"] or ()}


def _filled(row: Row, earlier: Sequence[Row]) -> list[dict[str, Any]]:
    """Each column's share of records with a value, and how it differs from that of earlier deliveries."""
    known = [_rates(other) for other in earlier[-SHOWN:] if other["filled"]]
    headers = {item["column"]: item["header"] for item in row["filled"] or ()}
    result = []
    for column, rate in _rates(row).items():
        usual = median(values) if (values := [rates[column] for rates in known if column in rates]) else None
        result.append(
            {
                "column": column,
                "header": headers[column] or "",
                "rate": rate,
                "usual": usual,
                "fell": usual is not None and usual - rate > _DROP,
                "absent": headers[column] is None and rate == 0,
            }
        )
    return result
