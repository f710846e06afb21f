"""One file for each verb, found by its name in one of three rooms; what verbs share lies in `pipeline/command/`."""
