"""`python -m robot_rl.nodes <node> [--ros-args ...]`."""

import sys

from robot_rl.nodes.main import main

sys.exit(main())
