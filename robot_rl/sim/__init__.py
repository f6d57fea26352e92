"""MuJoCo environments and the adapters to other suites."""
