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
    "DROP_PROJECTION MATERIALIZE_PROJECTION DELETE UPDATE DROP_PARTITION MODIFY_COMMENT APPLY_DELETED_MASK"
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
CAPPED = words("max_execution_time max_memory_usage max_result_rows max_block_size")
SETTINGS = words(
    "max_threads max_insert_block_size max_insert_threads max_rows_to_read max_bytes_to_read "
    "max_rows_to_group_by max_rows_to_sort max_bytes_to_sort max_rows_in_set max_bytes_in_set max_rows_in_join "
    "max_bytes_in_join max_rows_in_distinct max_result_bytes max_columns_to_read max_query_size max_ast_depth "
    "result_overflow_mode read_overflow_mode timeout_overflow_mode group_by_overflow_mode sort_overflow_mode "
    "set_overflow_mode join_overflow_mode max_bytes_before_external_group_by max_bytes_before_external_sort "
    "union_default_mode except_default_mode intersect_default_mode extremes limit offset final session_timezone "
    "join_use_nulls join_algorithm any_join_distinct_right_table_keys joined_subquery_requires_alias "
    "group_by_use_nulls aggregate_functions_null_for_empty transform_null_in prefer_column_name_to_alias totals_mode "
    "totals_auto_threshold date_time_input_format date_time_output_format date_time_overflow_behavior "
    "cast_keep_nullable cast_ipv4_ipv6_default_on_conversion_error format_csv_delimiter "
    "format_csv_allow_single_quotes format_csv_allow_double_quotes format_csv_null_representation "
    "format_tsv_null_representation bool_true_representation bool_false_representation "
    "allow_suspicious_low_cardinality_types allow_experimental_json_type enable_json_type "
    "allow_experimental_variant_type allow_experimental_dynamic_type allow_experimental_object_type "
    "allow_experimental_lightweight_delete optimize_read_in_order optimize_move_to_prewhere "
    "optimize_aggregation_in_order optimize_trivial_count_query insert_null_as_default async_insert "
    "wait_for_async_insert insert_deduplicate insert_quorum use_client_time_zone flatten_nested "
    "data_type_default_nullable index_granularity index_granularity_bytes min_compress_block_size "
    "max_compress_block_size allow_nullable_key ttl_only_drop_parts merge_with_ttl_timeout "
    "enable_unaligned_array_join low_cardinality_allow_in_native_format cast_string_to_dynamic_use_inference "
    "output_format_native_encode_types_in_binary_format compile_expressions compile_aggregate_expressions "
    "use_skip_indexes use_skip_indexes_if_final force_primary_key force_index_by_date optimize_throw_if_noop "
    "max_subquery_depth min_execution_speed max_execution_speed "
    "timeout_before_checking_execution_speed count_distinct_optimization use_legacy_to_time "
    "do_not_merge_across_partitions_select_final apply_mutations_on_fly allow_experimental_time_time64_type "
    "format_custom_field_delimiter format_custom_row_before_delimiter format_custom_row_after_delimiter "
    "format_custom_row_between_delimiter format_custom_result_before_delimiter format_custom_result_after_delimiter "
    "format_custom_escaping_rule format_regexp format_regexp_escaping_rule"
)
# those of clients that say nothing about the query, that a single server has no use for, or that it answers itself:
# every change is waited for
IGNORED = words(
    "cancel_http_readonly_queries_on_client_close send_progress_in_http_headers http_headers_progress_interval_ms "
    "wait_end_of_query buffer_size enable_http_compression http_zlib_compression_level log_queries log_comment "
    "http_write_exception_in_output_format connect_timeout receive_timeout send_timeout http_receive_timeout "
    "http_send_timeout network_compression_method priority send_logs_level add_http_cors_header readonly allow_ddl "
    "enable_analyzer allow_experimental_analyzer mutations_sync alter_sync lock_acquire_timeout "
    "http_response_buffer_size insert_deduplication_token select_sequential_consistency skip_unavailable_shards "
    "optimize_skip_unused_shards distributed_product_mode prefer_localhost_replica load_balancing "
    "async_insert_busy_timeout_ms async_insert_max_data_size database_atomic_wait_for_drop_and_detach_synchronously "
    "max_untracked_memory query_profiler_real_time_period_ns query_profiler_cpu_time_period_ns"
)
_FORMATTING = re.compile(r"(?:in|out)put_format_\w+\Z")
# such as output_format_schema, the name of a file to be written
_REACHING = re.compile(r"path|file|schema|url|template|host|disk|storage|python|script|directory")


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


def setting(name: str) -> bool:
    """Whether a setting of ClickHouse may be given."""
    if name in SETTINGS or name in CAPPED:
        return True
    return bool(_FORMATTING.match(name)) and not _REACHING.search(name) and not name.startswith("input_format_values_")
