"""An out-of-core engine for tensor tasks: graph, schedule, budget, run, storage.

It knows no configuration format, model architecture or method name. Importing it does not import
torch, because planning only reads headers.
"""
