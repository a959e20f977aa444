"""Make the report of a study."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened_study
from nbtl_search.engine.durable import write_durably
from nbtl_search.errors import NbtlError, SpecError
from nbtl_search.study.store import Study

if TYPE_CHECKING:
    from nbtl_search.reports.content import Content

logger = logging.getLogger(__name__)

Format = Literal["html", "md", "csv", "json"]
FORMATS: Final[tuple[Format, ...]] = ("html", "md", "csv", "json")
_STEPS: Final = 3


def report(
    name: str,
    output: Path | None = None,
    *,
    kind: Format = "html",
    figures: Path | None = None,
    home: Path | None = None,
    storage: str | None = None,
    on_step: Callable[[str, int, int], None] = lambda _what, _done, _all: None,
) -> str:
    """Make the report of a study: one HTML page, or its tables; return its text.

    Args:
        name: of the study, at any time: what is not known yet is not said.
        output: file to write it to, whole or not at all; None to write none.
        kind: 'html' for the page; 'md', 'csv' or 'json' for its tables.
        figures: folder for each figure as SVG, PNG and CSV; it is made where it is missing.
        home: see above.
        storage: see above.
        on_step: called with what is done now, and how many steps of how many are done.

    Raises:
        NbtlError: the file or folder cannot be written.
        SpecError: the name is that of final runs.
        StudyNotFoundError: no such study.
    """
    for path in (output, figures):
        _check_place(path)
    on_step("reading the study", 0, _STEPS)
    with opened_study(name, storage, home or default_home()) as study:
        content = _gathered(study)
    on_step("drawing", 1, _STEPS)
    text = _text(content, kind)
    on_step("writing", 2, _STEPS)
    _write(content, text, output, figures)
    on_step("done", _STEPS, _STEPS)
    logger.info("report made", extra={"action": "report", "study": name})
    return text


def _gathered(study: Study) -> "Content":
    from nbtl_search.reports.content import gather
    from nbtl_search.study.verdicts import verdict_of

    if study.stage is not None:
        message = f"a report is of a search, got the final runs {study.name!r}; name its study"
        raise SpecError(message)
    return gather(study, verdict_of(study))


def _text(content: "Content", kind: Format) -> str:
    from nbtl_search.reports.page import formats
    from nbtl_search.reports.page.html import page

    makers: dict[Format, Callable[[Content], str]] = {
        "html": page,
        "md": formats.markdown,
        "csv": formats.comma_separated,
        "json": formats.as_json,
    }
    return makers[kind](content)


def _write(content: "Content", text: str, output: Path | None, figures: Path | None) -> None:
    from nbtl_search.reports.drawing.pictures import pictures
    from nbtl_search.reports.drawing.plates import files_of

    try:
        if figures is not None:
            figures.mkdir(exist_ok=True)
            for name, data in files_of(pictures(content)):
                write_durably(figures / name, data)
        if output is not None:
            write_durably(output, text.encode())
    except OSError as error:
        message = (
            f"the report must have a place that can be written, got {error}; name another place"
        )
        raise NbtlError(message) from error


def _check_place(path: Path | None) -> None:
    """Refuse a place that cannot be right before any work is done."""
    if path is not None and not path.absolute().parent.is_dir():
        message = f"the folder of {str(path)!r} must exist; make it, or name another place"
        raise NbtlError(message)
