"""Search of a space of machines: axes and limits, objectives, exhaustive, random and genetic search, Pareto fronts."""
