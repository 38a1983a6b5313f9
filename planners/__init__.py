"""Planning: turns configurations and headers into graphs, without reading weights or using
torch."""
