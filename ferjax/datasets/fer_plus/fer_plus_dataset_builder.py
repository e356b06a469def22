"""FER+: votes of ten people for each picture of FER2013."""

from ferjax.datasets import builder
from ferjax.datasets.fer_plus import parser


class Builder(builder.FaceBuilder):
  """FER+: votes of ten people for each picture of FER2013."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download `fer2013new.csv` from https://github.com/microsoft/FERPlus, and `fer2013.csv` from
  Kaggle (see fer2013; it may stay in `<manual_dir>/fer2013`); put it into
  `<manual_dir>/fer_plus`.
  Terms: the votes are under the MIT licence, the pictures are those of FER2013.
  """


make = builder.maker(Builder, parser.parse)
