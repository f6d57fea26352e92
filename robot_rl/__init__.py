"""robot_rl: give a robot arm a skill and keep making it better."""

__version__ = '0.1.0'
