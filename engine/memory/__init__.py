"""What a byte in memory is: pages, blocks, and the ledger that grants them."""
