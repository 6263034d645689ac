"""The backends that run a bundle's graph, and the choice among them.

Importing this package loads none of them: each imports its library when it is opened.
"""
