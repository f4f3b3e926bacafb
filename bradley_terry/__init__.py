"""Preference pairs to a scalar reward: run_bt.sh trains, train.py is the loop, loss.py is to be edited."""
