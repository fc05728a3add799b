"""ClickHouse in this process, and what only serves it: who runs, forks, errors, literals, Arrow, Native, memory."""
