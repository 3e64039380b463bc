"""Where everything lies on GPUs, and what that is worth: planned from a manifest and machine rates alone."""
