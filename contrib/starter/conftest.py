"""xenlab's pytest plugin: the fixtures `host`, `source`, `destination` and `evidence`, markers, verdicts."""

pytest_plugins = ["lab.case.plugin"]
