"""Turn a catalogue of image URLs into feature vectors, once per image and model."""

__version__ = "0.1.0"
