"""Heat: which experts a workload uses, how much of it a set of experts covers."""
