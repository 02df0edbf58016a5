"""Message types, one module per receiver. Field order is the wire format: append, never reorder."""
