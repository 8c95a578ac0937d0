"""What the Dagster UI shows of an outcome: counts, tables, schemas, lineage. Never a value of a record."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from healthingest.contracts.contract import Contract
from healthingest.lake.audit import SCHEMA as AUDIT_SCHEMA
from healthingest.lake.delta import Table
from healthingest.lake.quarantine import SCHEMA as QUARANTINE_SCHEMA
from healthingest.lake.silver import BASE, comments, readable_columns
from healthingest.model import Counts, Delivery, Outcome
from healthingest.platform import Platform
from healthingest.report.health import ClientHealth
from healthingest.report.write import report_path, report_url
from healthingest.storage.objects import ObjectPath

Metadata = dict[str, Any]
_SHOWN_RULES = 20


def column_schema(columns: Mapping[str, object], comments: Mapping[str, str]) -> dg.TableSchema:
    """A table's columns for the UI."""
    return dg.TableSchema([dg.TableColumn(n, str(t), description=comments.get(n)) for n, t in columns.items()])


def silver_definition(contract: Contract) -> Metadata:
    """Silver's schema, and from which contract columns each of its columns is made."""
    columns = dict(BASE) | readable_columns(contract)
    made_from = {target: column for target, (column, _) in contract.derived.items()} | {c: c for c in contract.kept}
    made_from["member_token"] = "member_id"  # noqa: S105 - a column's name
    bronze = dg.AssetKey("bronze_files")
    lineage = {t: [dg.TableColumnDep(asset_key=bronze, column_name=c)] for t, c in made_from.items()}
    return {
        "dagster/column_schema": column_schema(columns, comments(contract)),
        "dagster/column_lineage": dg.TableColumnLineage(lineage),
    }


def bronze_definition(contract: Contract) -> Metadata:
    """The columns that a delivered file must or may have."""
    return {
        "dagster/column_schema": dg.TableSchema(
            [
                dg.TableColumn(
                    c.name,
                    c.type,
                    description=c.description,
                    constraints=dg.TableColumnConstraints(nullable=not c.required),
                )
                for c in contract.columns
            ]
        )
    }


def quarantine_definition() -> Metadata:
    """Quarantine's schema."""
    return {"dagster/column_schema": column_schema(QUARANTINE_SCHEMA, {})}


def audit_definition() -> Metadata:
    """The audit table's schema."""
    return {"dagster/column_schema": column_schema(AUDIT_SCHEMA, {})}


def files_table(outcomes: Sequence[Outcome]) -> dg.TableMetadataValue:
    """One row per delivery: what a person on call asks first."""
    shown = ["records", "accepted", "rejected", "inserted", "updated", "unchanged", "stale", "duplicates"]
    records = [
        dg.TableRecord(
            {"file": o.delivery.file_name, "status": o.status}
            | {name: o.counts.as_dict()[name] for name in shown}
            | {"invalid %": round(100 * o.counts.invalid_ratio, 2), "limit %": round(100 * o.max_invalid_ratio, 2)}
        )
        for o in outcomes
    ]
    return dg.MetadataValue.table(records, schema=_schema_of(records))


def rules_table(outcomes: Sequence[Outcome]) -> dg.TableMetadataValue:
    """The rules that most records broke, over all outcomes; those of severity warn rejected none of theirs."""
    total = sum(o.counts.records for o in outcomes) or 1
    counted: Counter[tuple[str, str, str, str]] = Counter()
    for rule in (rule for o in outcomes for rule in o.profile.rules):
        counted[rule.rule, rule.column or "", rule.kind, rule.severity] += rule.records
    top = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_RULES]
    shown = top or [(("", "", "", ""), 0)]
    records = [
        dg.TableRecord({"rule": r, "column": c, "kind": k, "severity": s, "records": n, "%": round(100 * n / total, 2)})
        for (r, c, k, s), n in shown
    ]
    schema = _schema_of(records)
    return dg.MetadataValue.table(records if top else [], schema=schema)


def health_table(clients: Sequence[ClientHealth]) -> dg.TableMetadataValue:
    """One row per client: how it stands now."""
    records = [
        dg.TableRecord(
            {
                "client": c.client_id,
                "state": c.state,
                "last file": c.last["file_name"] if c.last else "",
                "status": c.last["status"] if c.last else "",
                "invalid %": round(100 * (c.last["invalid_ratio"] or 0), 2) if c.last else 0.0,
                "limit %": round(100 * (c.last["max_invalid_ratio"] or 0), 2) if c.last else 0.0,
                "taken at": c.taken_at.strftime("%Y-%m-%d %H:%M") if c.taken_at else "never",
                "late by h": round(c.late.total_seconds() / 3600, 1) if c.late else 0.0,
                "held": c.held,
                "files in 30 days": c.recent,
            }
        )
        for c in clients
    ]
    return dg.MetadataValue.table(records, schema=_schema_of(records))


def report_link(platform: Platform, outcomes: Sequence[Outcome]) -> Metadata:
    """Where the quality report of the latest delivery is: a link where reports are served, else the file's path."""
    if not outcomes:
        return {}
    delivery = outcomes[-1].delivery
    path = report_path(platform, delivery.client_id, delivery.file_id)
    url = report_url(platform, path)
    return {"quality report": page_at(path, url)}


def page_at(path: Path, url: str | None) -> dg.MetadataValue:
    """A page: a link where pages are served, else the file's path, or its name in an object store."""
    if url:
        return dg.MetadataValue.url(url)
    return dg.MetadataValue.text(str(path)) if isinstance(path, ObjectPath) else dg.MetadataValue.path(path)


def counts(outcomes: Sequence[Outcome]) -> Metadata:
    """The accounting, summed over outcomes."""
    return {name: sum(o.counts.as_dict()[name] for o in outcomes) for name in Counts.names()}


def stages(outcomes: Sequence[Outcome]) -> Metadata:
    """Seconds per stage, summed over outcomes."""
    total: dict[str, float] = {}
    for outcome in outcomes:
        for stage, seconds in outcome.stages.items():
            total[f"seconds/{stage}"] = round(total.get(f"seconds/{stage}", 0.0) + seconds, 3)
    return dict(total)


def of_bronze(deliveries: Sequence[Delivery], folder: Path) -> Metadata:
    """What is shown on a materialization of bronze."""
    return {
        "files": ", ".join(d.file_name for d in deliveries),
        "file ids": ", ".join(d.file_id for d in deliveries),
        "bytes": sum(d.file_bytes for d in deliveries),
        "dagster/uri": str(folder),
    }


def of_silver(outcomes: Sequence[Outcome], table: Table) -> Metadata:
    """What is shown on a materialization of silver."""
    versions = [o.silver_version for o in outcomes if o.silver_version is not None]
    summed = counts(outcomes)
    return {
        "quality": files_table(outcomes),
        "top failing rules": rules_table(outcomes),
        "dagster/uri": table.uri,
        "dagster/partition_row_count": summed["accepted"],
        **{name: summed[name] for name in ("inserted", "updated", "unchanged", "stale", "duplicates")},
        **({"delta version": max(versions)} if versions else {}),
        **stages(outcomes),
    }


def of_quarantine(outcomes: Sequence[Outcome], table: Table) -> Metadata:
    """What is shown on a materialization of quarantine."""
    summed = counts(outcomes)
    return {
        "top failing rules": rules_table(outcomes),
        "dagster/uri": table.uri,
        "dagster/partition_row_count": summed["rejected"],
        "rejected": summed["rejected"],
        "malformed": summed["malformed"],
    }


def of_audit(outcomes: Sequence[Outcome], table: Table) -> Metadata:
    """What is shown on a materialization of the audit table."""
    sentences = [f"{o.delivery.file_name}: {o.message}" for o in outcomes if o.message]
    return {
        "quality": files_table(outcomes),
        "dagster/uri": table.uri,
        "dagster/partition_row_count": len(outcomes),
        **counts(outcomes),
        **({"remarks": "\n".join(sentences)} if sentences else {}),
    }


def _schema_of(records: Sequence[dg.TableRecord]) -> dg.TableSchema:
    types = {str: "string", int: "int", float: "float"}
    first = records[0].data if records else {}
    return dg.TableSchema([dg.TableColumn(name, types.get(type(value), "string")) for name, value in first.items()])
