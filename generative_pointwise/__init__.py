"""Scored responses to a judge that scores: run_pointwise.sh trains, prompt.py and reward.py are to be edited."""
