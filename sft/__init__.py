"""Conversations to a model that can continue them: run_sft.sh trains, train.py is the loop, loss.py is to be edited."""
