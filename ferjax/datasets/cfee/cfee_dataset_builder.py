"""CFEE: basic and compound emotions of 230 people.

The classes 02 to 07 are inferred from the paper's table.
"""

from ferjax.datasets import builder
from ferjax.datasets.cfee import parser


class Builder(builder.FaceBuilder):
  """CFEE: basic and compound emotions of 230 people."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask Aleix Martinez (The Ohio State University,
  http://cbcsl.ece.ohio-state.edu/dbform_compound.html) for the Compound Facial Expressions of
  Emotion database; unpack `CFEE_Database_230` into `<manual_dir>/cfee`.
  Terms: for non-commercial research only; do not pass on any data.
  """


make = builder.maker(Builder, parser.parse)
