"""The grids that come with the package: ``smoke``, ``laptop``, ``paper``."""
