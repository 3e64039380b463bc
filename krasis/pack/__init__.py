"""The pack: a folder of memory-mappable weights, described by one strict manifest."""
