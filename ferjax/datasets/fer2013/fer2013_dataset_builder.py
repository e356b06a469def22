"""FER2013: 48-pixel grey faces found by web search."""

from ferjax.datasets import builder
from ferjax.datasets.fer2013 import parser


class Builder(builder.FaceBuilder):
  """FER2013: 48-pixel grey faces found by web search."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download `fer2013.csv` (or `icml_face_data.csv`) of the competition "Challenges in
  Representation Learning" from Kaggle, where its rules must be accepted; put it into
  `<manual_dir>/fer2013`.
  Terms: the pictures come from a web search, and their rights were not cleared.
  """


make = builder.maker(Builder, parser.parse)
