"""An out-of-core engine for tasks over tensors: graph, schedule, budget, run, storage.

It knows no configuration format, no model architecture and no method name. Nothing here
imports torch when it is imported: planning reads headers only.
"""
