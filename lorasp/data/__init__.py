"""The stage `prepare`: models, data sets and tokens, each in a folder with a manifest."""
