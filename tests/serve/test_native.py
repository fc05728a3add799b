"""Native for clients that send client_protocol_version, as clickhouse-go does, against bytes as they are documented."""

from __future__ import annotations

import pytest

from clipql.errors import QueryError
from clipql.serve import native_blocks as native
from clipql.serve import unpacking
from clipql.sql.inserts.native_types import check_type
from tests.serve.conftest import Running

INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"
NEW = "54485"


def versioned(data: bytes) -> bytes:
    """Blocks as of version 54485."""
    return native.Blocks(54485, dict).of(data)


LAST = b"\x01z\x06String"  # the column after the one that is looked at


def test_each_block_says_what_it_is_and_each_column_that_it_is_plain(server: Running) -> None:
    sql = "SELECT toUInt8(7) AS a, 'x' AS b"
    plain = server.sql(sql, default_format="Native")
    assert plain.body == b"\x02\x01\x01a\x05UInt8\x07\x01b\x06String\x01x"
    expected = INFO + b"\x02\x01\x01a\x05UInt8\x00\x07\x01b\x06String\x00\x01x"
    assert server.sql(sql, default_format="Native", client_protocol_version=NEW).body == expected
    assert server.sql(sql + " FORMAT Native", client_protocol_version=NEW).body == expected
    assert server.sql(sql, default_format="Native", client_protocol_version="54405").body == INFO + plain.body
    packed = server.sql(sql, default_format="Native", client_protocol_version=NEW, compress="1")
    assert unpacking.unpack_blocks(packed.body, 1 << 20) == expected
    assert server.sql(sql, default_format="CSV", client_protocol_version=NEW).text == '7,"x"\n'


@pytest.mark.parametrize(
    "value",
    [
        "toLowCardinality('a')",
        "toLowCardinality(toNullable('a'))",
        "[toLowCardinality('a'), toLowCardinality('b')]",
        "map('a', [1, NULL], 'b', [])",
        "tuple(1, 'x', [(1, 'y')])",
        "CAST(tuple(1, 'x'), 'Tuple(`a, \\\\`b(` UInt8, `c d` Nullable(String))')",
        "CAST([(0.5, 1.5)], 'Ring')",
        "CAST('a', 'Enum8(\\'a\\' = 1, \\'b),\\' = 2)')",
        "toFixedString('abc', 5)",
        "tuple(toDecimal64(1.5, 3), toDecimal256(2, 5), toDateTime64('2024-01-01 00:00:00', 3, 'UTC'), INTERVAL 1 DAY)",
        "tuple(toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0'), toIPv4('1.2.3.4'), toIPv6('::1'), toInt128(1), true)",
        "NULL",
        "repeat('long ', 1000)",
        "emptyArrayFloat32()",
        "CAST(if(number = 1, NULL, 5), 'Variant(Array(LowCardinality(String)), UInt8)')",
        "if(number = 1, [1, 2]::Dynamic, 'x'::Dynamic)",
        "[concat('{\"a\": 1, \"b', number, '\": [{\"c\": 1}], \"d\": \"x\"}')::JSON(a UInt8, max_dynamic_paths=1)]",
    ],
)  # fmt: skip
def test_columns_of_every_kind_end_where_the_next_begins(server: Running, value: str) -> None:
    reply = server.sql(f"SELECT {value} AS v, 'end' AS z FROM numbers(2)", default_format="Native",
                       client_protocol_version=NEW)  # fmt: skip
    assert reply.status == 200, reply.text
    assert reply.body.startswith(INFO + b"\x02\x02\x01v")
    assert reply.body.endswith(LAST + b"\x00" + b"\x03end" * 2)


def test_many_blocks_and_a_table_with_vectors(server: Running) -> None:
    given = {"default_format": "Native", "client_protocol_version": NEW}
    many = server.sql("SELECT number, toString(number) AS s FROM numbers(200000)", **given).body
    assert many.count(INFO + b"\x02") >= 2
    assert server.sql("SELECT * FROM laion", **given).body.startswith(INFO + b"\x07\xac\x02\x02id\x06UInt64\x00")
    assert server.sql("SELECT id FROM laion WHERE id > 1e9", **given).status == 200


def test_what_is_not_understood_is_refused() -> None:
    states = b"\x01\x01\x01a\x1cAggregateFunction(sum, Int8)\x01"
    packed = b"\x01\x01\x01a\x0dVariant(Int8)\x01" + bytes(7)
    for data, said in ((states, "a column of type AggregateFunction"), (packed, "a Variant column is serialized")):
        with pytest.raises(QueryError, match=said) as caught:
            versioned(data)
        assert caught.value.code == 48
    for broken in (b"\x01\x01\x01a\x05UInt8", b"\x01\x01\x01a\x06String\x05x", b"\x01\x01\x09a"):
        with pytest.raises(QueryError, match="ends at"):
            versioned(broken)
    assert versioned(b"") == b""
    for type in ("Tuple(`a UInt8)", "Tuple(`a\\` Int8)", "Array(Int8, Int8)", "Variant(Nonsense)"):
        with pytest.raises(QueryError):
            check_type(type)


def test_a_time_zone_stands_in_the_type_from_its_version_on(server: Running) -> None:
    sql = "SELECT 'x' AS s, toDateTime(1, 'Asia/Tokyo') AS a, toDateTime(2) AS b, toDateTime(3, 'UTC') AS c"
    given = {"default_format": "Native"}
    plain = server.sql(sql, **given).body
    zoned = plain.replace(b"a\x08DateTime", b"a\x16DateTime('Asia/Tokyo')").replace(
        b"c\x08DateTime", b"c\x0fDateTime('UTC')"
    )
    assert server.sql(sql, client_protocol_version="54336", **given).body == INFO + plain
    assert server.sql(sql, client_protocol_version="54337", **given).body == INFO + zoned
    assert server.sql(sql + " FORMAT Native", client_protocol_version="54405").body == INFO + zoned


def test_blocks_of_types_that_cannot_be_told_apart_are_still_sent_to_those_who_need_no_more(server: Running) -> None:
    sql = "SELECT '{\"a\": 1}'::JSON AS j, 1::Dynamic AS d"
    given = {"default_format": "Native"}
    assert server.sql(sql, client_protocol_version="54405", **given).body == INFO + server.sql(sql, **given).body
