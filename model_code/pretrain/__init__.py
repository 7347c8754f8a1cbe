"""The shipped base, trained once on procedural footage: `python -m model_code.pretrain`."""
