"""Class names and landmark schemes: everything here goes by name, never by a bare integer."""

CLASSES = ('neutral', 'happiness', 'surprise', 'sadness', 'anger', 'disgust', 'fear')
CLASSES_8 = (*CLASSES, 'contempt')
