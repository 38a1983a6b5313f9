"""The mathematics of merging: one file per method or family of methods.

A method declares its parameters and inputs, and turns the resolved parameters of one tensor into
a kernel. It never opens a file and never sees more of a tensor than its access pattern requires.
Nothing here imports torch before arithmetic runs.
"""
