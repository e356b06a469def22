"""Pictures in a sub-folder for each class."""

from ferjax.datasets import builder
from ferjax.datasets.folder import parser


class Builder(builder.FaceBuilder):
  """Pictures in a sub-folder for each class."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Put pictures into FOLDER/<class>/, or FOLDER/train/<class>/, val and test, and give
  --config.data.manual_dir=FOLDER, or put them into `<manual_dir>/folder`.
  Terms: those of your pictures.
  """


make = builder.maker(Builder, parser.parse, by_content=True)
