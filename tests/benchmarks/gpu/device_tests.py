"""``pytest -m gpu``, each test's outcome written at once."""

import os
import sys

import pytest

from tests.benchmarks.gpu.record import Record, wait_for_turn
from tests.benchmarks.gpu.source_tree import ROOT


class Outcomes:
    """A pytest plugin that writes down what becomes of each test."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.rpartition("::")[2]
            self.record.results[name] = {"outcome": report.outcome, "seconds": report.duration}
            if report.failed:
                self.record.results[name]["error"] = str(report.longrepr)[-2000:]
            self.record.write()


def main() -> None:
    turn = wait_for_turn()
    os.environ["RESVAL_DEVICE"] = str(turn.device)
    record = Record("tests", turn)
    arguments = ["-m", "gpu", "--quiet", "--import-mode=append", f"--rootdir={ROOT}"]
    arguments += ["-p", "no:cacheprovider", "-W", "default"]  # other versions may warn of more
    if turn.small:  # of the models one
        arguments += ["-k", "Llama or training or stopped"]
    code = pytest.main([*arguments, str(ROOT / "tests" / "test_gpu.py")], [Outcomes(record)])
    if not any(result["outcome"] == "passed" for result in record.results.values()):
        print(f"no test passed (pytest: {code})", file=sys.stderr)
        sys.exit(1)
    sys.exit(int(code))


if __name__ == "__main__":
    main()
