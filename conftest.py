"""The plugin holds everything: fixtures, markers, verdicts."""

pytest_plugins = ["lab.case.plugin"]
