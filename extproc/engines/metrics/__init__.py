"""What engines say of themselves at `/metrics`: scraped, read, and how old it is."""

from extproc.engines.metrics.reading import Reading, merge, read_page
from extproc.engines.metrics.scraper import Scraper, Target

__all__ = ["Reading", "Scraper", "Target", "merge", "read_page"]
