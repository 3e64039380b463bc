"""From a hub checkpoint to a pack: read lazily, pad by the rule, quantize, lay out, write."""
