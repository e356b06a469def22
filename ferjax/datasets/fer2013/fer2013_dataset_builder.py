"""FER2013: grey faces of 48 x 48 pixels from a web search."""

from ferjax.datasets import builder
from ferjax.datasets.fer2013 import parser


class Builder(builder.FaceBuilder):
  """FER2013: grey faces of 48 x 48 pixels from a web search."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download `fer2013.csv` (or `icml_face_data.csv`) of the competition "Challenges in Representation
  Learning" from Kaggle, after accepting its rules; put it into `<manual_dir>/fer2013`.
  Terms: the pictures come from a web search; their rights were not cleared.
  """


make = builder.maker(Builder, parser.parse)
