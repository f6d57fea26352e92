"""What runs beside the arm: no ROS, no torch."""
