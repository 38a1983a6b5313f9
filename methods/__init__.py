"""The mathematics of merging: one method, or one family, a file.

A method declares its parameters and inputs, and turns one tensor's resolved parameters into a
kernel. It never opens a file and never sees more of a tensor than its access pattern asks for.
Nothing here imports torch before arithmetic runs.
"""
