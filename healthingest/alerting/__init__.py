"""Who is told what, where and how often: conditions, the state of alerts, messages and the places they go to."""
