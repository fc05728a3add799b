"""Attempts made up: every way to spell a name, in every place of the grammar where a name stands, in every statement.

A place is written as `{}` in a statement; the names that stand there are those that the network must not reach.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

# a name as SQL may spell it: ClickHouse decodes them all to the same
SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": lambda n: n,
    "back quotes": lambda n: f"`{n}`",
    "double quotes": lambda n: f'"{n}"',
    "curly quotes": lambda n: f"“{n}”",
    "hex of the first": lambda n: f"`\\x{ord(n[0]):02x}{n[1:]}`",
    "hex of one within": lambda n: f"`{n[:1]}\\x{ord(n[1]):02X}{n[2:]}`",
    "hex of all": lambda n: "`" + "".join(f"\\x{ord(c):02x}" for c in n) + "`",
    "hex in double quotes": lambda n: '"' + "".join(f"\\x{ord(c):02x}" for c in n) + '"',
    "an escape that is no escape": lambda n: f"`\\N{n}`",
    "space around": lambda n: f" \t\n`{n}` ",
    "a comment before": lambda n: f"/* /* nested */ */`{n}`",
    "a line comment": lambda n: f"--x\n`{n}`",
    "a comment after": lambda n: f"`{n}`/**/",
}
CALLS = ("file", "url", "s3", "remote", "python", "executable", "filesystem", "mysql", "hdfs", "dictionary")
# functions that read or tell what the network must not have
FUNCTIONS = ("file", "dictGet", "joinGet", "getServerSetting", "hostName", "filesystemAvailable", "getMacro")
DATABASES = ("system", "clipql_internal")
ENGINES = ("File", "URL", "S3", "Executable", "Distributed", "MySQL", "Dictionary", "Merge", "Python")
OWN = ("_clipql_vector", "clipql_internal")

# where a table function's name stands
TABLE_PLACES = (
    "SELECT * FROM {}('x')", "SELECT * FROM plain, {}('x')", "SELECT * FROM plain JOIN {}('x') AS j USING a",
    "SELECT (SELECT count() FROM {}('x'))", "SELECT 1 WHERE 1 IN (SELECT * FROM {}('x'))",
    "WITH c AS (SELECT * FROM {}('x')) SELECT * FROM c", "SELECT 1 UNION ALL SELECT * FROM {}('x')",
    "INSERT INTO plain SELECT * FROM {}('x')", "INSERT INTO FUNCTION {}('x') SELECT 1", "DESCRIBE TABLE {}('x')",
    "INSERT INTO TABLE FUNCTION {}('x') VALUES (1)", "CREATE VIEW w AS SELECT * FROM {}('x')",
    "CREATE TABLE w ENGINE = Memory AS SELECT * FROM {}('x')", "CREATE TABLE w AS {}('x')",
    "EXPLAIN SELECT * FROM {}('x')", "EXPLAIN TABLE OVERRIDE {}('x') (a String)", "EXISTS TABLE {}('x')",
    "SELECT * FROM (SELECT * FROM {}('x')) AS i", "DELETE FROM plain WHERE a IN (SELECT * FROM {}('x'))",
    "ALTER TABLE plain UPDATE a = (SELECT * FROM {}('x')) WHERE 1", "SELECT * FROM view(SELECT * FROM {}('x'))",
)  # fmt: skip
# where a function's name stands
FUNCTION_PLACES = (
    "SELECT {}('x')", "SELECT 1 WHERE {}('x') = ''", "SELECT count() FROM plain GROUP BY {}(a)",
    "SELECT a FROM plain ORDER BY {}(a)", "SELECT a FROM plain HAVING {}(a) = ''", "SELECT [{}('x')]",
    "SELECT arrayMap(x -> {}(x), ['x'])", "SELECT a FROM plain LIMIT 1 BY {}(a)", "WITH {}('x') AS w SELECT w",
    "SELECT sumIf(1, {}('x') = '')", "SELECT * REPLACE ({}(a) AS a) FROM plain", "SELECT * APPLY {} FROM plain",
    "SELECT * APPLY (x -> {}(x)) FROM plain", "SELECT sum(1) OVER (ORDER BY {}('x'))", "SELECT arrayMap({}, ['x'])",
    "SELECT a FROM plain PREWHERE {}(a) = ''", "SELECT a FROM plain QUALIFY {}(a) = ''", "SELECT CAST({}('x'), 'Int8')",
    "SELECT a FROM plain ARRAY JOIN [{}('x')] AS j", "SELECT a FROM plain JOIN plain AS p ON {}(a) = p.a",
    "CREATE TABLE w (a String DEFAULT {}('x')) ENGINE = Memory",
    "CREATE TABLE w (a String MATERIALIZED {}('x')) ENGINE = Memory",
    "CREATE TABLE w (a String ALIAS {}('x')) ENGINE = Memory",
    "CREATE TABLE w (a String EPHEMERAL {}('x'), b String) ENGINE = Memory",
    "CREATE TABLE w (a String, CONSTRAINT c CHECK {}(a) = '') ENGINE = MergeTree ORDER BY a",
    "CREATE TABLE w (a String, CONSTRAINT c ASSUME {}(a) = '') ENGINE = MergeTree ORDER BY a",
    "CREATE TABLE w (a String, INDEX i {}(a) TYPE minmax) ENGINE = MergeTree ORDER BY a",
    "CREATE TABLE w (a String, PROJECTION p (SELECT {}(a) ORDER BY a)) ENGINE = MergeTree ORDER BY a",
    "CREATE TABLE w (a String) ENGINE = MergeTree ORDER BY {}(a)",
    "CREATE TABLE w (a String) ENGINE = MergeTree PARTITION BY {}(a) ORDER BY a",
    "CREATE TABLE w (a String) ENGINE = MergeTree ORDER BY a PRIMARY KEY {}(a)",
    "CREATE TABLE w (a String) ENGINE = MergeTree ORDER BY a SAMPLE BY {}(a)",
    "CREATE TABLE w (a String, d DateTime, s String) ENGINE = MergeTree ORDER BY a TTL d GROUP BY a SET s = {}(any(s))",
    "CREATE TABLE w (a String, d DateTime) ENGINE = MergeTree ORDER BY a TTL d WHERE {}(a) = ''",
    "CREATE TABLE w (a String, d DateTime TTL {}(d)) ENGINE = MergeTree ORDER BY a",
    "CREATE VIEW w AS SELECT {}('x')", "CREATE TABLE w ENGINE = Memory AS SELECT {}('x') AS a",
    "ALTER TABLE plain ADD COLUMN b String DEFAULT {}('x')", "ALTER TABLE plain MODIFY COLUMN a DEFAULT {}('x')",
    "ALTER TABLE plain UPDATE a = {}('x') WHERE 1", "ALTER TABLE plain DELETE WHERE {}(a) = ''",
    "ALTER TABLE plain ADD INDEX i {}(a) TYPE minmax", "ALTER TABLE plain MODIFY TTL d WHERE {}(a) = ''",
    "ALTER TABLE plain ADD CONSTRAINT c CHECK {}(a) = ''", "ALTER TABLE plain MODIFY ORDER BY {}(a)",
    "ALTER TABLE plain ADD PROJECTION p (SELECT {}(a) ORDER BY a)", "DELETE FROM plain WHERE {}(a) = ''",
    "UPDATE plain SET a = {}('x') WHERE 1", "INSERT INTO plain SELECT {}('x')", "EXPLAIN SELECT {}('x')",
    "INSERT INTO plain SELECT a FROM plain WHERE {}(a) = ''", "SELECT a FROM plain LIMIT {}('x')",
    "SELECT 1 AS x INTERSECT SELECT {}('x')", "SELECT if(1, {}('x'), '')", "SELECT ({}('x'), 1).1",
    "SELECT CASE WHEN {}('x') = '' THEN 1 END", "SELECT {}('x')::String", "SELECT a FROM plain WHERE a LIKE {}('x')",
)  # fmt: skip
# where a database's name stands
DATABASE_PLACES = (
    "USE {}", "CREATE TABLE {}.w (a String) ENGINE = Memory", "DROP TABLE {}.w", "INSERT INTO {}.w VALUES (1)",
    "ALTER TABLE {}.w DELETE WHERE 1", "TRUNCATE TABLE {}.w", "RENAME TABLE plain TO {}.w", "DROP DATABASE {}",
    "OPTIMIZE TABLE {}.w", "DELETE FROM {}.w WHERE 1", "CREATE VIEW {}.w AS SELECT 1", "EXCHANGE TABLES plain AND {}.w",
    "UPDATE {}.w SET a = 1 WHERE 1", "RENAME DATABASE {} TO w", "SELECT * FROM {}.processes",
    "SELECT * FROM {}.query_log", "DESCRIBE TABLE {}.processes", "SELECT 1 WHERE 1 IN {}.processes",
)  # fmt: skip
ENGINE_PLACES = (
    "CREATE TABLE w (a String) ENGINE = {}", "CREATE TABLE w (a String) ENGINE = {}('CSV', 'x')",
    "CREATE TABLE w (a String) ENGINE {}('CSV', 'x')", "CREATE TABLE w ENGINE = {}('CSV') AS SELECT 1 AS a",
    "CREATE TEMPORARY TABLE w (a String) ENGINE = {}('CSV')", "CREATE OR REPLACE TABLE w (a String) ENGINE = {}('CSV')",
    "CREATE DATABASE w ENGINE = {}('x')",
)  # fmt: skip
OWN_PLACES = (
    "SELECT {}('t-1/column-0', 1)", "SELECT * FROM {}.w", "SELECT arrayMap({}, ['x'])", "SHOW TABLES FROM {}",
    "DESCRIBE {}.w", "EXISTS {}.w", "SHOW CREATE TABLE {}.w", "EXISTS DATABASE {}", "SHOW CREATE DATABASE {}",
    "CREATE TABLE w AS {}.w", "SELECT 1 WHERE 1 IN {}.w",
)  # fmt: skip
NAMED_FILES = (
    "CREATE TABLE q AS {}", "SELECT * FROM {}", "DESCRIBE {}", "INSERT INTO {} VALUES (1)", "SELECT 1 WHERE 1 IN {}",
    "SELECT * FROM plain JOIN {} USING a", "EXISTS TABLE {}", "DROP TABLE {}", "ALTER TABLE {} DELETE WHERE 1",
    "RENAME TABLE plain TO {}", "CREATE TABLE {} (a String) ENGINE = Memory", "CREATE VIEW w AS SELECT * FROM {}",
)  # fmt: skip
FILES = ("/etc/passwd", "../secret.csv", "http://127.0.0.1/x")
GROUPS = (
    (TABLE_PLACES, CALLS),
    (FUNCTION_PLACES, FUNCTIONS),
    (DATABASE_PLACES, DATABASES),
    (ENGINE_PLACES, ENGINES),
    (OWN_PLACES, OWN),
    (NAMED_FILES, FILES),
)


def attempts() -> Iterator[str]:
    """All of them: each name in each place, in each spelling."""
    for places, names in GROUPS:
        for place in places:
            for name in names:
                for spelled in SPELLINGS.values():
                    yield place.format(spelled(name))


def sample(count: int, seed: int) -> list[str]:
    """Some of them."""
    return random.Random(seed).sample(list(attempts()), count)
