"""A contender's own process: `python -m benchmarks.contenders NAME FOLDER FILE...` prints what it did as JSON.

Without files it prints how many rows the contender's table has.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.contenders import contenders

if __name__ == "__main__":
    name, folder, *files = sys.argv[1:]
    contender = contenders()[name]
    if files:
        said = asdict(contender.load(Path(folder), [Path(file) for file in files]))
    else:
        from deltalake import DeltaTable

        said = {"rows_out": DeltaTable(str(Path(folder) / contender.table)).count()}
    print("\n" + json.dumps(said))
