"""beartype as the package's annotations need it."""

from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, beartype

# An int may stand for a float, as static checkers read it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with its annotations checked at every call.

    Two exceptions. A dataclass's ``__init__`` is generated ("<string>"): its arguments are
    validated, and a list made a tuple, by ``__post_init__``. And beartype knows ``Self`` only on
    whole classes.
    """
    if function.__name__ == "__init__" and function.__code__.co_filename == "<string>":
        return function
    for name, annotation in function.__annotations__.items():
        if annotation in (Self, "Self"):
            function.__annotations__[name] = Any
    return check(function)
