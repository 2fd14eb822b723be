"""The paper's tables and figures (arXiv:2105.01601): its numbers beside those of the user's own runs.

results → what runs left; rows → which configuration a row is; comparison → how a
table looks; tables, figures → one function for each of the paper's.
"""
