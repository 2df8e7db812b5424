"""What only a card can show, in minutes: `check` runs the parts, each of which is a module.

`same_numbers`, `speed`, `waits`, `inference` and `gate` list their tasks in the order of their
worth. `tasks` runs them, within a budget of time, and keeps what each has found: the same call goes
on where the last one ended. `report` holds the figures against the bars.
"""
