"""The paper's ablations at the scale of a profile: rows as data, their work, and the run over seeds."""
