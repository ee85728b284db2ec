"""What models are asked in studies: tasks by name, and a model on a task's prompts."""

from resval_lens.analyses.tasks.icl import InContext
from resval_lens.analyses.tasks.ioi import IndirectObjects
from resval_lens.analyses.tasks.task import Asked, Task

TASKS: dict[str, Task] = {task.name: task for task in (IndirectObjects(), InContext())}
"""Every task, by name; a model that is asked nothing else gets the first that it can read.

A new one is a class in a file of its own and its place here: commands, their help and completion
and the tests' sweeps read it from here, without torch.
"""

__all__ = ["TASKS", "Asked", "Task"]
