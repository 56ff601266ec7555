"""recsys: what holds for every recommender, from raw events to a ranked list.

The data's path, one module a step: `schema` and `readers` (events), `catalog` (ids), `sequences`
(histories), `splits` (cases), `batches`, `training`, `ranking` and `metrics`, `bundle`.
"""

from importlib.metadata import version

__version__ = version("recsys")
