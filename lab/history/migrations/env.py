"""Run by alembic, on the connection that :mod:`lab.history.store` hands over."""

from alembic import context

from lab.history import schema

context.configure(connection=context.config.attributes["connection"], target_metadata=schema.metadata)
context.run_migrations()
