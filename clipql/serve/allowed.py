"""The lists by which the guard goes: what the network may name. What is on none of them is refused.

Functions stand in functions.txt, one a line. To allow one more: see that it reads nothing but its arguments, add it
there, and add an attempt that misuses it to tests/serve/escapes.txt.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

# suffixes of aggregate functions, as in sumIf or quantileOrNull
_COMBINATOR = re.compile(
    r"(if|array|map|simplestate|state|merge|mergestate|foreach|distinct|ordefault|ornull|resample|argmin|argmax|null)\Z"
)


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


TABLE_FUNCTIONS = words(
    "numbers numbers_mt zeros zeros_mt primes values generaterandom generateseries generate_series null view "
    "sqlstandardvalues connectedcomponents"
)
ENGINES = words(
    "mergetree replacingmergetree summingmergetree aggregatingmergetree collapsingmergetree "
    "versionedcollapsingmergetree coalescingmergetree memory log tinylog stripelog null atomic"
)
INDEX_KINDS = words(
    "flat ivf hnsw annoy usearch vector_similarity minmax set bloom_filter ngrambf_v1 tokenbf_v1 text full_text "
    "inverted"
)
CODECS = words("none lz4 lz4hc zstd delta doubledelta gcd gorilla fpc t64 alp sz3 default")
SYSTEM_TABLES = words(
    "aggregate_function_combinators collations columns completions constraints contributors data_skipping_indices "
    "data_type_families database_engines databases formats functions keywords merge_tree_settings metrics "
    "numbers numbers_mt one parts projections settings table_engines table_functions tables time_zones zeros zeros_mt "
    "dictionaries mutations settings_changes"
)
ALTERATIONS = words(
    "ADD_COLUMN DROP_COLUMN MODIFY_COLUMN COMMENT_COLUMN RENAME_COLUMN MATERIALIZE_COLUMN MODIFY_ORDER_BY MODIFY_TTL "
    "REMOVE_TTL MATERIALIZE_TTL ADD_INDEX DROP_INDEX MATERIALIZE_INDEX ADD_CONSTRAINT DROP_CONSTRAINT ADD_PROJECTION "
    "DROP_PROJECTION MATERIALIZE_PROJECTION DELETE UPDATE DROP_PARTITION MODIFY_COMMENT APPLY_DELETED_MASK "
    "MODIFY_SETTING RESET_SETTING"
)
FORMATS = words(
    "TabSeparated TSV TabSeparatedRaw TSVRaw Raw TabSeparatedWithNames TSVWithNames TabSeparatedWithNamesAndTypes "
    "TSVWithNamesAndTypes TabSeparatedRawWithNames TSVRawWithNames TabSeparatedRawWithNamesAndTypes "
    "TSVRawWithNamesAndTypes CSV CSVWithNames CSVWithNamesAndTypes CustomSeparated CustomSeparatedWithNames "
    "CustomSeparatedWithNamesAndTypes SQLInsert Values Vertical JSON JSONStrings JSONColumns JSONColumnsWithMetadata "
    "JSONCompact JSONCompactStrings JSONCompactColumns JSONEachRow JSONLines NDJSON JSONStringsEachRow "
    "PrettyJSONEachRow PrettyJSONLines PrettyNDJSON JSONEachRowWithProgress JSONCompactEachRow "
    "JSONCompactEachRowWithNames JSONCompactEachRowWithNamesAndTypes JSONCompactStringsEachRow "
    "JSONCompactStringsEachRowWithNames JSONCompactStringsEachRowWithNamesAndTypes JSONObjectEachRow JSONAsString "
    "JSONAsObject BSONEachRow TSKV Pretty PrettyNoEscapes PrettyMonoBlock PrettyNoEscapesMonoBlock PrettyCompact "
    "PrettyCompactNoEscapes PrettyCompactMonoBlock PrettyCompactNoEscapesMonoBlock PrettySpace PrettySpaceNoEscapes "
    "PrettySpaceMonoBlock PrettySpaceNoEscapesMonoBlock Parquet Arrow ArrowStream ORC Avro MsgPack RowBinary "
    "RowBinaryWithNames RowBinaryWithNamesAndTypes RowBinaryWithDefaults Native Null XML Markdown RawBLOB "
    "LineAsString Npy Hash One Form"
)
# with a value, what a request may ask for at most is the server's own limit
THREADS = words(
    "max_threads max_insert_threads max_final_threads max_threads_for_indexes max_download_threads "
    "max_parsing_threads max_alter_threads"
)
CAPPED = words("max_execution_time max_memory_usage max_result_rows max_block_size") | THREADS
# those of clients that say nothing about the query, that a single server has no use for, or that it answers itself
IGNORED = words(
    "cancel_http_readonly_queries_on_client_close send_progress_in_http_headers http_headers_progress_interval_ms "
    "interactive_delay "
    "wait_end_of_query buffer_size enable_http_compression http_zlib_compression_level log_queries log_comment "
    "http_write_exception_in_output_format connect_timeout receive_timeout send_timeout http_receive_timeout "
    "http_send_timeout network_compression_method priority send_logs_level add_http_cors_header readonly allow_ddl "
    "lock_acquire_timeout http_response_buffer_size select_sequential_consistency skip_unavailable_shards "
    "optimize_skip_unused_shards distributed_product_mode prefer_localhost_replica load_balancing "
    "async_insert_busy_timeout_ms async_insert_max_data_size database_atomic_wait_for_drop_and_detach_synchronously "
    "max_untracked_memory query_profiler_real_time_period_ns query_profiler_cpu_time_period_ns enable_analyzer "
    "allow_experimental_analyzer"
)
# Of settings whose value is text, those that only say how data looks or what a thing is called. Any other text may be
# SQL, a file or an address.
_TEXTS = words(
    "bool_true_representation bool_false_representation format_csv_null_representation format_tsv_null_representation "
    "format_custom_field_delimiter format_custom_row_before_delimiter format_custom_row_after_delimiter "
    "format_custom_row_between_delimiter format_custom_result_before_delimiter format_custom_result_after_delimiter "
    "format_regexp format_json_object_each_row_column_for_object_name count_distinct_implementation "
    "insert_deduplication_token force_optimize_projection_name preferred_optimize_projection_name"
)
_TEXT_TYPES = ("String", "Map", "URI")
_FORMATTING = re.compile(r"(?:in|out)put_format_\w+\Z")
# what reaches out: files, addresses, other servers, credentials; such as output_format_schema, a file to be written
_REACHING = re.compile(
    r"path|file|schema(?!_inference)|url|template|host|disk|storage|python|pandas|(?<!de)script|director|image"
    r"|s3|azure|hdfs|iceberg|delta_|data_?lake|paimon|unity|glue_catalog|kafka|rabbitmq|nats_|mongo|materialized_mysql|postgres"
    r"|odbc|jdbc|redis|ytsaurus|flight|keeper|remote|distributed_cache|named_collection|credential|secret|create_token"
    r"|backup|restore|ai_function|webassembly|stream_like|http_(?:response_headers|allow)|framing"
)
# what makes a promise void. In turn: who asks for how much and what others get; what looks into the process; that a
# statement is read as the guard reads it; what is there and what was done being told; that a statement ends in time
_BREAKING = re.compile(
    r"workload|os_thread|priority|_for_(?:all_|user|server)|replace_running|max_untracked|reserve_memory|overcommit"
    r"|introspection|debug|profile|perf_events|opentelemetry|trace|jemalloc|definer|security|_engine\Z|cloud_mode"
    r"|interactive_delay|bandwidth|read_buffer_size|max_streams_"  # at their least or most, no query ends in time
    r"|dialect|\Aimplicit|allow_settings_after|max_parser|max_(?:expanded_)?ast_elements|max_analyze|cascades|_plan_force"
    r"|make_distributed|serialize_query_plan|streaming|(?<!avro_)codec|custom_key|parallel_replicas?_(?:offset|count)|transaction"
    r"|fuzz|(?<!de)fault|inject(?!ive)|sleep|probability|background|discard|on_first_cancel|asterisk|materialized_columns"
    r"|query_cache|positional_arguments\Z|order_by_all|global_with|scopes_for_with|analyzer_compat|default_strictness|legacy_column"
    r"|deleted_mask|patch_part|alter_update_mode|lightweight_delete_mode|nondeterministic_mutations|processlist"
    r"|hyperscan|recursive_cte|join_order_(?:limit|max)|glob_expansion|regexp_max|base58_max|rand_distribution|range_max"
    r"|input_format_values_(?:interpret|deduce)|allow_ddl|readonly|log_|send_logs|\A(?:page|select|sort|order|filter)\Z"
)
# what of tables is for many servers, or for storage that is shared
_MANY = re.compile(r"zero_copy|table_readonly")


# functions of which one call can take milliseconds, as it goes through all of an argument that is there once:
# ClickHouse looks between blocks whether a query shall end. What takes more than linear time is on no list.
_SLOW = re.compile(
    r"(position|locate|instr|countsubstrings|countmatches|multi(search|match|fuzzy)|(not)?(i?like|match)|(re)?extract|regexp"
    r"|replace|translate|ngram|wordshingle|sparsegrams|hassubsequence|hassubstr|hasa(ll|ny)|has(token|phrase)|(not)?has\Z"
    r"|jaro|stringjaccard|string(bytes)?(entropy|uniq)|highlight|split|tokens|tokenize|array|map|json|simplejson|visitparam"
    r"|points?inpolygon|pointinellipses|polygon|h3polygon|geohashesinbox|readw|mvt|normalizequery|formatquery|encrypt|decrypt"
    r"|tryde|aes_|sha\d|md[45]|keccak|ripemd|hmac|repeat|reverse|base\d\d|hex|unhex|indexof|counte|bitmap|numericindexed"
    r"|timeseries|series|hierarchical|randomhadamard|financial|lower|upper|convertcharset|transform)"
)
SLOW_BLOCK = 2048


def slow(name: str) -> bool:
    """Whether calls of a function get small blocks."""
    return bool(_SLOW.match(name.lower()))


@cache
def functions() -> frozenset[str]:
    """The functions that may be called, in small letters."""
    text = files("clipql.serve").joinpath("functions.txt").read_text(encoding="utf-8")
    return frozenset(line.lower() for line in text.splitlines() if line and not line.startswith("#"))


def function(name: str) -> bool:
    """Whether a function may be called."""
    name = name.lower()
    while name:
        if name in functions():
            return True
        shorter = _COMBINATOR.sub("", name)
        if shorter == name:
            return False
        name = shorter
    return False


def setting(name: str, type: str) -> bool:
    """Whether a setting that ClickHouse has may be given. type: that of its value, as system.settings names it."""
    if _REACHING.search(name) or _BREAKING.search(name) or _MANY.search(name):
        return False
    return type not in _TEXT_TYPES or name in _TEXTS or _FORMATTING.match(name) is not None
