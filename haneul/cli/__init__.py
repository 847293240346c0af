"""The commands: clients of the public API, and of what `Lifecycle` offers beside it. `run` is where they come together."""
