"""The part of an output's ``config.json`` that speaks of layers.

A model whose layers were stacked, dropped, reordered or taken from several models needs another
depth, other lists with one entry a layer, other lists of layer numbers, and, where a rule says
which layer is of which kind, either a rule that still fits, a list in its place, or a refusal.
Everything here is a pure function of configurations and of where each output layer comes from.
"""
