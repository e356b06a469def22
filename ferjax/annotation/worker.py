"""Finds faces with MediaPipe: a separate script, for a Python that does not need ferjax.

Usage: worker.py mesh, or worker.py landmarker MODEL.task

It reads requests from its standard input and answers on its standard output. A line of JSON starts
each message:

  start:      {"ready": "mediapipe 0.10.21"}, or {"error": "..."}, after which the script ends
  request:    {"height": h, "width": w}, then h * w * 3 bytes, RGB
  answer:     {"faces": n, "blendshapes": [{name: share}, ...]}, then n * 478 * 3 float32: x, y in
              pixels of the picture (centres are whole numbers), z in pixels, smaller is nearer; or
              {"error": "..."}

`mesh` is the face mesh of MediaPipe 0.10, whose wheel contains its models; it has no blendshapes.
`landmarker` is the face landmarker of MediaPipe 1.
"""

import json
import os
import sys

import numpy as np

POINTS = 478
MOST = 32  # largest number of faces in a picture
CONFIDENCE = 0.5


def pixels(landmarks, width, height):
  """Converts landmarks, in shares of the picture, to f32[478, 3] in pixels."""
  points = np.array([(point.x, point.y, point.z) for point in landmarks], np.float32)
  return points * np.float32([width, height, width]) - np.float32([0.5, 0.5, 0])


def mesh():
  """A function: picture u8[h, w, 3] -> points f32[478, 3] of each face, and no blendshapes."""
  from mediapipe.python.solutions import face_mesh

  model = face_mesh.FaceMesh(
    static_image_mode=True,
    max_num_faces=MOST,
    refine_landmarks=True,
    min_detection_confidence=CONFIDENCE,
  )

  def find(image):
    height, width = image.shape[:2]
    faces = model.process(image).multi_face_landmarks or ()
    return [pixels(face.landmark, width, height) for face in faces], []

  return find


def landmarker(path):
  """Like `mesh`, with the blendshapes of each face."""
  import mediapipe
  from mediapipe.tasks import python as tasks
  from mediapipe.tasks.python import vision

  options = vision.FaceLandmarkerOptions(
    base_options=tasks.BaseOptions(model_asset_path=path),
    num_faces=MOST,
    min_face_detection_confidence=CONFIDENCE,
    output_face_blendshapes=True,
  )
  model = vision.FaceLandmarker.create_from_options(options)

  def find(image):
    height, width = image.shape[:2]
    picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image)
    result = model.detect(picture)
    faces = [pixels(face, width, height) for face in result.face_landmarks]
    shares = [{one.category_name: one.score for one in face} for face in result.face_blendshapes]
    return faces, shares

  return find


def serve(find, requests, answers):
  """Answers requests until there are no more."""
  for line in iter(requests.readline, b''):
    request = json.loads(line)
    height, width = request['height'], request['width']
    image = np.frombuffer(requests.read(height * width * 3), np.uint8).reshape(height, width, 3)
    try:
      faces, blendshapes = find(image)
    except Exception as error:
      send(answers, {'error': f'{type(error).__name__}: {error}'})
    else:
      points = np.asarray(faces, '<f4').reshape(len(faces), POINTS, 3)
      send(answers, {'faces': len(faces), 'blendshapes': blendshapes}, points.tobytes())


def send(answers, message, content=b''):
  answers.write(json.dumps(message).encode() + b'\n' + content)
  answers.flush()


def main():
  answers = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # MediaPipe's own output must not be mixed with the answers
  try:
    import mediapipe

    find = landmarker(sys.argv[2]) if sys.argv[1] == 'landmarker' else mesh()
  except Exception as error:
    send(answers, {'error': f'{type(error).__name__}: {error}'})
    return
  send(answers, {'ready': f'mediapipe {mediapipe.__version__}'})
  serve(find, sys.stdin.buffer, answers)


if __name__ == '__main__':
  main()
