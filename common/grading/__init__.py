"""Graders: OpenJudge's contract, calls gathered into batches, served models."""
