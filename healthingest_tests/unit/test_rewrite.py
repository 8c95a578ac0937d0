"""Commits by copy on write: what they touch and tell the change feed, what they refuse, and what beats them."""

import contextlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, Field, TableFeatures, write_deltalake
from deltalake.exceptions import CommitFailedError

from healthingest.errors import AccountingError, HealthingestError
from healthingest.lake import log_entry, rewrite
from healthingest.lake.rewrite import CHANGED, GONE, NEW, Rewrite, files_in

PARTITION = {"client": "acme"}
SCHEMA = pl.Schema({"client": pl.String(), "key": pl.String(), "n": pl.Int64(), "rank": pl.String()})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A table with a change feed, and one file each of acme (a, b), acme (c, d) and globex (a)."""
    path = tmp_path / "t"
    settings = {"delta.enableChangeDataFeed": "true", "delta.dataSkippingStatsColumns": "rank"}
    for client, keys in (("acme", "ab"), ("acme", "cd"), ("globex", "a")):
        write_deltalake(path, rows(client, keys), mode="append", partition_by=["client"], configuration=settings)
    return path


def rows(client: str, keys: str, n: int = 0) -> pl.DataFrame:
    return pl.DataFrame([(client, key, n, f"r{key}") for key in keys], schema=SCHEMA, orient="row")


def change(table: DeltaTable, root: Path, said: dict[str, str], n: int = 1) -> Rewrite:
    """Changes gathered: key -> what happens to it."""
    rewriting = Rewrite(root, table, PARTITION, key="key", bounds="rank")
    for key, kind in said.items():
        rewriting.add(rows("acme", key, n).with_columns(_change=pl.lit(kind)))
    return rewriting


def commit(root: Path, said: dict[str, str], n: int = 1, table: DeltaTable | None = None) -> int:
    handle = table or DeltaTable(root)
    return change(handle, root, said, n).commit({"acme": handle.version() + 1}, {"told": "x"})


def content(root: Path) -> dict[tuple[str, str], int]:
    """(client, key) -> n, as polars reads it; no key twice."""
    frame = pl.scan_delta(str(root)).collect()
    assert frame.select("client", "key").is_unique().all()
    return {(client, key): n for client, key, n in frame.select("client", "key", "n").rows()}


def feed(root: Path, version: int) -> Counter[tuple[str, str, int]]:
    """(key, kind of change, n) in the change feed of one version."""
    told = pl.DataFrame(DeltaTable(root).load_cdf(starting_version=version, ending_version=version))
    return Counter(told.select("key", "_change_type", "n").rows())


def on_disk(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


# --- what a commit does ---------------------------------------------------------------------------------------


def test_changes_of_every_kind_are_in_the_table_and_its_feed_and_nothing_else_is(root: Path) -> None:
    version = commit(root, {"a": CHANGED, "c": GONE, "e": NEW}, n=7)
    assert content(root) == {
        ("acme", "a"): 7, ("acme", "b"): 0, ("acme", "d"): 0, ("acme", "e"): 7, ("globex", "a"): 0
    }  # fmt: skip
    assert feed(root, version) == Counter(
        [("a", "update_preimage", 0), ("a", "update_postimage", 7), ("c", "delete", 0), ("e", "insert", 7)]
    )


def test_only_files_that_hold_a_changed_row_are_written_anew(root: Path) -> None:
    before = {file.path for file in files_in(DeltaTable(root), PARTITION)}
    others = set(DeltaTable(root).file_uris())
    commit(root, {"a": CHANGED})
    after = {file.path for file in files_in(DeltaTable(root), PARTITION)}
    assert len(before & after) == 1
    assert len(set(DeltaTable(root).file_uris()) & others) == 2


def test_new_rows_alone_need_no_change_data(root: Path) -> None:
    version = commit(root, {"e": NEW, "f": NEW})
    assert not (root / "_change_data").exists()
    assert feed(root, version) == Counter([("e", "insert", 1), ("f", "insert", 1)])


def test_a_few_new_rows_go_into_a_file_that_is_written_anyway(root: Path) -> None:
    version = commit(root, {"a": CHANGED, "e": NEW})
    assert sorted(file.rows or 0 for file in files_in(DeltaTable(root), PARTITION)) == [2, 3]
    assert feed(root, version)["e", "insert", 1] == 1


def test_new_rows_fill_files_one_by_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "FILE_ROWS", 2)
    version = commit(root, dict.fromkeys("efghi", NEW) | {"a": CHANGED})
    assert sorted(file.rows or 0 for file in files_in(DeltaTable(root), PARTITION)) == [1, 2, 2, 2, 2]
    assert content(root).keys() >= {("acme", key) for key in "abcdefghi"}
    assert feed(root, version).total() == 7


def test_a_file_whose_rows_are_all_gone_leaves_nothing(root: Path) -> None:
    commit(root, {"a": GONE, "b": GONE})
    assert content(root) == {("acme", "c"): 0, ("acme", "d"): 0, ("globex", "a"): 0}
    assert len(files_in(DeltaTable(root), PARTITION)) == 1


def test_a_commit_without_rows_records_its_transactions(root: Path) -> None:
    version = commit(root, {})
    table = DeltaTable(root)
    assert table.version() == version == table.transaction_version("acme")
    assert table.history(1)[0]["told"] == "x"


def test_the_log_says_rows_and_bounds_of_the_named_column_alone(root: Path) -> None:
    commit(root, {"a": CHANGED})
    added = pl.DataFrame(DeltaTable(root).get_add_actions(flatten=True))
    assert [c for c in added.columns if c.startswith(("min.", "max."))] == ["min.rank", "max.rank"]
    assert sorted(added.select("num_records", "min.rank", "max.rank").rows()) == [
        (1, "ra", "ra"), (2, "ra", "rb"), (2, "rc", "rd")
    ]  # fmt: skip


def test_rows_from_before_a_column_was_added_are_kept_without_it(root: Path) -> None:
    DeltaTable(root).alter.add_columns([Field("more", "string")])
    table = DeltaTable(root)
    changes = Rewrite(root, table, PARTITION, key="key", bounds="rank")
    changes.add(rows("acme", "a", 2).with_columns(_change=pl.lit(CHANGED), more=pl.lit("x")))
    changes.commit({"acme": 9}, {})
    got = pl.scan_delta(str(root)).filter(client="acme").select("key", "more").collect()
    assert dict(got.rows()) == {"a": "x", "b": None, "c": None, "d": None}


def test_the_log_is_summed_up_now_and_then(root: Path) -> None:
    while commit(root, {}) < 100:
        pass
    assert list((root / "_delta_log").glob("*100.checkpoint*.parquet"))
    assert content(root).keys() == {("acme", k) for k in "abcd"} | {("globex", "a")}


# --- what a commit refuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "why"), [({"x": CHANGED}, "not in the table"), ({"x": GONE, "a": CHANGED}, "not in the table")]
)
def test_a_row_to_change_that_is_not_there_is_an_error_and_nothing_is_left(
    root: Path, said: dict[str, str], why: str
) -> None:
    before, files = content(root), on_disk(root)
    with pytest.raises(AccountingError, match=why):
        commit(root, said)
    assert content(root) == before
    assert on_disk(root) == files


def test_two_changes_of_one_row_are_an_error(root: Path) -> None:
    changes = change(DeltaTable(root), root, {"a": CHANGED})
    changes.add(rows("acme", "a", 3).with_columns(_change=pl.lit(CHANGED)))
    with pytest.raises(AccountingError, match="twice"):
        changes.commit({}, {})


def test_a_key_that_the_table_has_twice_is_an_error(root: Path) -> None:
    write_deltalake(root, rows("acme", "ee"), mode="append")
    with pytest.raises(AccountingError, match="one key"):
        commit(root, {"e": CHANGED})


def test_a_table_of_a_later_protocol_is_refused_in_words(root: Path) -> None:
    DeltaTable(root).alter.add_feature([TableFeatures.AppendOnly], allow_protocol_versions_increase=True)
    with pytest.raises(HealthingestError, match="writer version 7"):
        commit(root, {"b": NEW})


# --- others' commits ------------------------------------------------------------------------------------------


def of_another_client(root: Path) -> None:
    write_deltalake(root, rows("globex", "b"), mode="append")


def merged_for_another_client(root: Path) -> None:
    merge = DeltaTable(root).merge(
        rows("globex", "a", 5), "t.client = 'globex' AND s.key = t.key", source_alias="s", target_alias="t"
    )
    merge.when_matched_update_all().execute()


@pytest.mark.parametrize("meanwhile", [of_another_client, merged_for_another_client])
def test_commits_of_other_partitions_are_passed_over(root: Path, meanwhile: Any) -> None:
    stale = DeltaTable(root)
    meanwhile(root)
    assert commit(root, {"a": CHANGED}, table=stale) == stale.version() + 2
    assert content(root)["acme", "a"] == 1


def appended(root: Path) -> None:
    write_deltalake(root, rows("acme", "e"), mode="append")


@pytest.mark.parametrize("rewritten_too", [False, True])
def test_new_rows_alone_may_stand_beside_whatever_others_add(root: Path, rewritten_too: bool) -> None:
    stale = DeltaTable(root)
    appended(root)
    if rewritten_too:
        rewritten(root)
    change(stale, root, {"f": NEW}).commit({"f": 1}, {}, blind=True)
    assert content(root).keys() == {("acme", key) for key in "abcdef"} | {("globex", "a")}
    with pytest.raises(CommitFailedError):
        change(stale, root, {"g": NEW}).commit({"f": 1}, {}, blind=True)


def rewritten(root: Path) -> None:
    commit(root, {"d": CHANGED})


def emptily_committed(root: Path) -> None:
    Rewrite(root, DeltaTable(root), PARTITION, key="key", bounds="rank").commit({"acme": 4}, {})


def compacted(root: Path) -> None:
    DeltaTable(root).optimize.compact()


def with_a_column_more(root: Path) -> None:
    # JSON leaves the line separators of Unicode as they are, and a contract's author may copy one into a description.
    metadata = {"comment": "one\u2028two\x85"}
    DeltaTable(root).alter.add_columns([Field("more", "string", metadata=metadata)])


@pytest.mark.parametrize("meanwhile", [appended, rewritten, emptily_committed, compacted, with_a_column_more])
@pytest.mark.parametrize("said", [{"a": CHANGED}, {"f": NEW}, {}], ids=["change", "new", "empty"])
def test_whatever_concerns_the_same_partition_conflicts_and_leaves_nothing(
    root: Path, meanwhile: Any, said: dict[str, str]
) -> None:
    stale = DeltaTable(root)
    transactions = {"acme": stale.version() + 1} if meanwhile is not emptily_committed else {"acme": 4}
    meanwhile(root)
    before, files = content(root), on_disk(root)
    with pytest.raises(CommitFailedError):
        change(stale, root, said).commit(transactions, {})
    assert content(root) == before
    assert on_disk(root) == files


def test_a_writer_of_the_library_that_was_overtaken_by_such_a_commit_conflicts(root: Path) -> None:
    stale = DeltaTable(root)
    merge = stale.merge(rows("acme", "a", 5), "t.client = 'acme' AND s.key = t.key", source_alias="s", target_alias="t")
    commit(root, {"a": CHANGED})
    with pytest.raises(CommitFailedError):
        merge.when_matched_update_all().execute()
    with pytest.raises(CommitFailedError):
        DeltaTable(root, version=stale.version()).delete("client = 'acme' AND n = 0")
    with pytest.raises(CommitFailedError):
        DeltaTable(root, version=stale.version()).optimize.compact()
    assert content(root)["acme", "a"] == 1


def test_files_are_put_together_beside_rows_that_are_only_added(root: Path) -> None:
    stale = DeltaTable(root)
    change(DeltaTable(root), root, {"f": NEW}).commit({"f": 1}, {}, blind=True)
    stale.optimize.compact()
    assert content(root).keys() == {("acme", key) for key in "abcdf"} | {("globex", "a")}
    assert len(files_in(DeltaTable(root), PARTITION)) == 2


def test_a_handle_older_than_the_log_conflicts(root: Path) -> None:
    stale = DeltaTable(root)
    for _ in range(2):
        commit(root, {})
    (root / "_delta_log" / f"{stale.version():020d}.json").rename(root / "gone")
    with pytest.raises(CommitFailedError, match="no longer in the log"):
        commit(root, {}, table=stale)


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (os, "link", KeyboardInterrupt), (Path, "unlink", KeyboardInterrupt), (Path, "unlink", OSError),
        (DeltaTable, "create_checkpoint", KeyboardInterrupt), (DeltaTable, "create_checkpoint", Exception),
    ],
)  # fmt: skip
def test_no_file_of_an_entry_that_stands_in_the_log_is_deleted_whatever_comes_after_it(
    root: Path, place: Any, name: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_entry, "CHECKPOINT_EVERY", 1)
    done = getattr(place, name)

    def stopped_after(*given: Any, **named: Any) -> None:
        done(*given, **named)
        raise error

    changes = change(DeltaTable(root), root, {"a": CHANGED})
    with monkeypatch.context() as patch, contextlib.suppress(error), changes:
        patch.setattr(place, name, stopped_after)
        changes.commit({"acme": 9}, {})
    assert DeltaTable(root).transaction_version("acme") == 9
    assert content(root)["acme", "a"] == 1
    assert feed(root, DeltaTable(root).version())["a", "update_postimage", 1] == 1


def test_what_was_gathered_and_never_committed_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "FILE_ROWS", 1)
    files = on_disk(root)
    with change(DeltaTable(root), root, {"e": NEW, "f": NEW}):
        assert on_disk(root) > files
    assert on_disk(root) == files


def test_every_line_of_an_entry_is_one_action(root: Path) -> None:
    version = commit(root, {"a": CHANGED, "e": NEW})
    text = (root / "_delta_log" / f"{version:020d}.json").read_text()
    kinds = [list(json.loads(line)) for line in text.splitlines()]
    assert all(len(kind) == 1 for kind in kinds)
    assert Counter(kind[0] for kind in kinds) == Counter(commitInfo=1, add=1, remove=1, cdc=1, txn=1)


def test_an_entry_says_of_its_files_what_the_protocol_asks_for(root: Path) -> None:
    version = commit(root, {"a": CHANGED, "e": NEW})
    text = (root / "_delta_log" / f"{version:020d}.json").read_text()
    said = {kind: fields for action in map(json.loads, text.splitlines()) for kind, fields in action.items()}
    assert {kind: said[kind]["dataChange"] for kind in ("add", "remove", "cdc")} == {
        "add": True, "remove": True, "cdc": False
    }  # fmt: skip
    for kind in ("add", "remove", "cdc"):
        assert said[kind]["partitionValues"] == PARTITION
        assert said[kind]["size"] == (root / said[kind]["path"]).stat().st_size
