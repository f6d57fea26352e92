"""ROS 2 nodes: thin shells around control, storage and sim."""
