"""From configurations and headers to graphs. Reads headers only and does not import torch."""
