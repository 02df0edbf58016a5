"""The worker process: owns the device, mirrors the manager's slot table and executes steps."""
