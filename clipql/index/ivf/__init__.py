"""The default index: k-means lists of small codes, for text queries over image vectors. See docs/ivf.md."""

from clipql.index.folder import verify
from clipql.index.ivf.build import build, lists_for, lists_for_shards
from clipql.index.ivf.forecast import Forecast, forecast
from clipql.index.ivf.growth import can_grow, grow
from clipql.index.ivf.learn import sample_for
from clipql.index.ivf.model import FILES as MODEL_FILES
from clipql.index.ivf.model import Model, identity_of, open_model
from clipql.index.ivf.opening import open_index
from clipql.index.ivf.router import FILES as ROUTER_FILES
from clipql.index.ivf.router import Router
from clipql.index.ivf.search import IvfIndex

__all__ = [
    "MODEL_FILES",
    "ROUTER_FILES",
    "Forecast",
    "IvfIndex",
    "Model",
    "Router",
    "build",
    "can_grow",
    "forecast",
    "grow",
    "identity_of",
    "lists_for",
    "lists_for_shards",
    "open_index",
    "open_model",
    "sample_for",
    "verify",
]
