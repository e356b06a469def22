"""The built-in data set: faces drawn by ferjax itself, with every label known."""

from ferjax.datasets.synthetic_faces.synthetic_faces_dataset_builder import Builder, make

__all__ = ['Builder', 'make']
