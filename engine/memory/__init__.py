"""Main memory: pages, blocks, and the ledger that grants them."""
