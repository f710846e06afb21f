"""What is found out of a model before INT8 is written into it: codes of weights, times, what stays in float."""
