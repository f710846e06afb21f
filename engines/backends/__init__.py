"""One file per runtime, the only place that names it: the file's name is the backend's name.

What each of them has to offer is said in `engines/contract.py`; what two of them share lies in rooms beside this one.
"""
