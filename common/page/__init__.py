"""The page beside every run: one HTML file that shows what a model got wrong. It opens offline, in any browser."""
