"""What the callbacks share: the library behind a view, and errors without paths and secrets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from dash.exceptions import PreventUpdate

from dse.browse.library import Library
from dse.browse.view import View
from dse.errors import DseError

P = ParamSpec("P")
R = TypeVar("R")


class Page:
    """Views of one library; every message that leaves it is free of paths and secrets."""

    def __init__(self, library: Library) -> None:
        self.library = library

    def view(
        self, names: Sequence[str], where: str = "", selected: Sequence[int] | None = None
    ) -> View:
        """The view of these studies."""
        if not names:
            raise DseError("no study is chosen; choose one at the top of the page")
        overviews = self.library.overviews(names)
        return View.of(overviews, self.library.joined(overviews), where or "", selected)

    def said(self, error: DseError) -> str:
        """An error as the page shows it."""
        text = self.library.public(str(error))
        return text[:1].upper() + text[1:]


def quiet(function: Callable[P, R]) -> Callable[P, R]:
    """A view that cannot be made stays as it is; the banner of `_live` says why."""

    @functools.wraps(function)
    def careful(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except DseError as error:
            raise PreventUpdate from error

    return careful
