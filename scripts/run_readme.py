"""Run the first Python program of a Markdown file, such as `python scripts/run_readme.py README.md`."""

import re
import sys
from pathlib import Path

program = re.search(r"```python\n(.*?)```", Path(sys.argv[1]).read_text(), re.DOTALL)
if program is None:
    raise SystemExit(f"{sys.argv[1]}: expected a Python program, got none.")
exec(compile(program[1], sys.argv[1], "exec"))
