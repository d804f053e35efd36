"""Studies: systems that differ in one thing each, on the same dates and settings, compared by one command."""
