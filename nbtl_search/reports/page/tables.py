"""All tables of a report as plain rows, the same for every format."""

from nbtl_search.reports.content import Content
from nbtl_search.reports.page import final_sheets, sheets
from nbtl_search.reports.page.fit import measures
from nbtl_search.reports.page.sheet import Sheet


def tables(content: Content) -> tuple[Sheet, ...]:
    """Return every table of the report, in its order; those without rows are left out."""
    made = (
        final_sheets.final(content),
        final_sheets.contenders(content),
        sheets.searched(content),
        sheets.trials(content),
        sheets.importance(content),
        sheets.cost(content),
        final_sheets.runs(content),
        final_sheets.readings(content),
        final_sheets.paper(content),
        measures(content),
    )
    return tuple(sheet for sheet in made if sheet.rows)
