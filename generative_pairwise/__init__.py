"""Compared responses to a judge that prefers: run_pairwise.sh trains, prompt.py and reward.py are to be edited."""
