"""A process that draws faces for `stream.draw_all` and writes them to its standard output."""

import json
import sys

import cv2

from ferjax.datasets.synthetic_faces.drawing import sample, stream


def main() -> None:
  task = json.loads(sys.argv[1])
  cv2.setNumThreads(1)
  config = sample.Config(**task['config'])
  out = sys.stdout.buffer
  try:
    for row in stream.share(sample.rows(config), task['processes'], task['which']):
      stream.write(stream.encode(sample.draw(config, row)), out)
    out.flush()
  except BrokenPipeError:
    sys.stderr.close()


if __name__ == '__main__':
  main()
