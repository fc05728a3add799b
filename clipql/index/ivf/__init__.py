"""The default index: k-means lists of small codes, for text queries over image vectors. See docs/ivf.md."""

from clipql.index.folder import verify
from clipql.index.ivf.build import build, lists_for
from clipql.index.ivf.forecast import Forecast, forecast
from clipql.index.ivf.model import FILES as MODEL_FILES
from clipql.index.ivf.model import Model, open_model
from clipql.index.ivf.router import Router
from clipql.index.ivf.search import IvfIndex, open_index

__all__ = [
    "MODEL_FILES",
    "Forecast",
    "IvfIndex",
    "Model",
    "Router",
    "build",
    "forecast",
    "lists_for",
    "open_index",
    "open_model",
    "verify",
]
