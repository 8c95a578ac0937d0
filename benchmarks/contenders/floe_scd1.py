"""floe-python: its own CSV reader and checks, `merge_scd1` into Delta."""

from pathlib import Path

from benchmarks.contenders import Contender, Loaded

_CONFIG = """version: "0.2"
report: {{path: "{root}/report"}}
entities:
  - name: members
    incremental_mode: none
    source:
      format: csv
      path: "{source}"
      options: {{header: true, separator: ",", encoding: "utf-8", null_values: [""]}}
      cast_mode: strict
    sink:
      write_mode: merge_scd1
      accepted: {{format: delta, path: "{root}/table"}}
      rejected: {{format: csv, path: "{root}/rejected"}}
    policy: {{severity: reject}}
    schema:
      primary_key: [member_id]
      columns:
        - {{name: member_id, type: string, nullable: false}}
        - {{name: first_name, type: string, nullable: false}}
        - {{name: last_name, type: string, nullable: false}}
        - {{name: dob, type: date, nullable: false}}
        - {{name: gender, type: string}}
        - {{name: address, type: string}}
        - {{name: city, type: string}}
        - {{name: state, type: string}}
        - {{name: zip, type: string}}
        - {{name: phone_number, type: string}}
        - {{name: email, type: string}}
        - {{name: creation_date, type: date}}
"""


def load(root: Path, files: list[Path]) -> Loaded:
    """One run per file, as files come."""
    import floe

    read = rejected = 0
    for file in files:
        config = root / "floe.yml"
        config.write_text(_CONFIG.format(root=root, source=file))
        done = floe.run(str(config)).summary["results"]
        if done["files_total"] != 1 or not done["accepted_total"]:
            raise RuntimeError(f"floe took nothing of {file.name}: {done}")
        read, rejected = read + done["rows_total"], rejected + done["rejected_total"]
    return Loaded(read, rejected)


CONTENDER = Contender(
    "floe", ("floe",),
    "rules beyond types and nulls, malformed lines (they fail the file), change feed, protection, standard forms, "
    "order of files",
    load, "table", malformed=False,
)  # fmt: skip
