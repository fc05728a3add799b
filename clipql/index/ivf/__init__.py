"""The default index: k-means lists of small codes, for text queries over image vectors. See docs/ivf.md."""

from clipql.index.folder import verify
from clipql.index.ivf.build import build, lists_for
from clipql.index.ivf.forecast import Forecast, forecast
from clipql.index.ivf.search import IvfIndex, open_index

__all__ = ["Forecast", "IvfIndex", "build", "forecast", "lists_for", "open_index", "verify"]
