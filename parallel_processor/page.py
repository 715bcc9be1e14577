"""Stand-in until the page is merged."""

from parallel_processor.figures import RunReport


def page_text(report: RunReport) -> str:
    """The page."""
    return repr(report)
