"""What a chapter shows of the package's own code."""

import inspect

from recsys_helpers.metrics import recall
from recsys_helpers.pages import code_of
from recsys_helpers.splits import Split


def test_code_is_shown_as_it_runs_without_its_docstring():
    shown = code_of(Split.targets, recall).data
    assert shown.startswith("```python\n# Split.targets\ndef targets(self, target: str)")
    assert "# recsys_helpers.metrics.recall\n" in shown and "Args:" not in shown
    source = inspect.getsource(Split.targets)
    for line in source[source.rindex('"""') + 3 :].split("\n"):
        assert line.removeprefix("    ") in shown
