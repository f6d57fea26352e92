"""Scripted demonstrators: policies written by hand, one a kind of arm task.

They see what the task's contract shows a policy, and command what it lets one command.
"""
