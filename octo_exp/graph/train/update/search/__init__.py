"""Search of what to train under a memory budget: contributions of single layers, then the best that fit together."""

from octo_exp.graph.train.update.search.contribution import Contributions
from octo_exp.graph.train.update.search.dynamic import Exact
from octo_exp.graph.train.update.search.evolve import Evolution
from octo_exp.graph.train.update.search.probe import ProbeSettings
from octo_exp.graph.train.update.search.scheme_search import SearchResult, SearchSettings, search_scheme

__all__ = [
    "Contributions",
    "Evolution",
    "Exact",
    "ProbeSettings",
    "SearchResult",
    "SearchSettings",
    "search_scheme",
]
