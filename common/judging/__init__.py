"""What judges share: judged text quoted, prompts measured, judges asked, verdicts counted. Stands on grading."""
