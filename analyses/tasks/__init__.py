"""What models are asked in studies: tasks by name or in files, and a model on a task's prompts."""

from difflib import get_close_matches
from pathlib import Path

from resval_lens.analyses.tasks.files import read_task
from resval_lens.analyses.tasks.icl import InContext
from resval_lens.analyses.tasks.ioi import IndirectObjects
from resval_lens.analyses.tasks.repeated import RepeatedTokens
from resval_lens.analyses.tasks.sentences import (
    Agreement,
    Capitals,
    Docstring,
    GreaterThan,
    Pronouns,
    RepeatedWords,
)
from resval_lens.analyses.tasks.task import Asked, Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        IndirectObjects(),
        InContext(),
        GreaterThan(),
        Docstring(),
        Pronouns(),
        Agreement(),
        Capitals(),
        RepeatedTokens(),
        RepeatedWords(),
    )
}
"""Every task, by name; a model that is asked nothing else gets the first that it can read.

A new one is a class in a file of its own and its place here: commands, their help and completion
and the tests' sweeps read it from here, without torch.
"""
ENDINGS = (".jsonl", ".csv", ".yaml", ".yml")

__all__ = ["TASKS", "Asked", "Task", "find_task", "read_task"]


def find_task(task: str | Path | Task) -> Task:
    """A task by name, of a file (:func:`read_task`), or itself.

    Raises:
        ValueError: neither a task nor a file; what ``read_task`` refuses.
    """
    if isinstance(task, Task):
        return task
    if str(task) in TASKS:
        return TASKS[str(task)]
    path = Path(task)
    if path.suffix in ENDINGS or path.is_file():
        return read_task(path)
    near = get_close_matches(str(task), TASKS, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"task must be one of {', '.join(TASKS)}, or a file ({', '.join(ENDINGS)}); got "
        f"{str(task)!r}{meant}"
    )
