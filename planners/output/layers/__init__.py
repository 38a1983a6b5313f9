"""The part of an output's ``config.json`` that concerns layers.

A model whose layers were stacked, dropped, reordered or taken from several models needs a new
depth, new lists with one entry per layer, new lists of layer numbers and, if a rule determines the
kind of each layer, a rule that still fits, a list instead, or a refusal. Everything here is a pure
function of configurations and of the source of each output layer.
"""
