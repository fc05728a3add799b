"""ClickHouse's native protocol over TCP: what clickhouse-client, clickhouse-driver, asynch and clickhouse-go speak."""
