"""The on-disk formats, the only things that pass between the jobs (docs/formats.md)."""
