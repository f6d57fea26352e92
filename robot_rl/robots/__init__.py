"""Arm models and their kinematics."""
