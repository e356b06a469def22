"""RAF-DB, basic expressions: faces from the web, each labelled by about 40 people."""

from ferjax.datasets import builder
from ferjax.datasets.raf_db import parser


class Builder(builder.FaceBuilder):
  """RAF-DB, basic expressions: faces from the web, each labelled by about 40 people."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask Weihong Deng (Beijing University of Posts and Telecommunications,
  http://www.whdeng.cn/RAF/model1.html) for RAF-DB, with the agreement signed by a member of the
  academic staff; unpack its folder `basic` into `<manual_dir>/raf_db`.
  Terms: for non-commercial research only; do not pass on any picture.
  """


make = builder.maker(Builder, parser.parse)
