"""Mechanistic studies of small transformers on synthetic languages: what an optimizer does to what a model knows."""

__version__ = "0.1.0"
