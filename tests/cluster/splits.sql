SELECT id, url, _row FROM {t} ORDER BY L2Distance(e, {q:Array(Float32)}), _row LIMIT 10
SELECT id, L2Distance(e, {q:Array(Float32)}) AS d FROM {t} WHERE w > 1 AND lang = 'en' ORDER BY d, _row LIMIT 5 OFFSET 3
SELECT 1 - cosineDistance(e, {q:Array(Float32)}) AS similar, id FROM {t} ORDER BY similar DESC, _row LIMIT 5
SELECT id FROM {t} WHERE L2Distance(e, {q:Array(Float32)}) < 0.8
SELECT id FROM {t} WHERE dotProduct(e, {q:Array(Float32)}) >= 2 ORDER BY dotProduct(e, {q:Array(Float32)}) DESC, id
SELECT * FROM {t} ORDER BY id DESC LIMIT 3
SELECT * FROM {t} LIMIT 5
SELECT * EXCEPT (e, ts) FROM {t} ORDER BY s DESC, id LIMIT 2
SELECT id FROM {t} LIMIT 2, 3
SELECT id FROM {t} LIMIT 0
SELECT id, w FROM {t} ORDER BY w DESC NULLS FIRST, id LIMIT 7
SELECT url AS id FROM {t} ORDER BY id, _row LIMIT 3
SELECT t.id, default.{t}.w FROM default.{t} AS t WHERE t.id < 4 ORDER BY t.id
SELECT _row, id FROM {t} WHERE _row IN (3, 77, 150)
SELECT id FROM {t} PREWHERE w = 2 WHERE id > 100 ORDER BY id LIMIT {n:UInt8}
SELECT id FROM {t} WHERE w IS NULL
SELECT w FROM {t} ORDER BY w LIMIT 3 WITH TIES
SELECT lang, id FROM {t} ORDER BY id DESC LIMIT 2 BY lang
SELECT lang, id FROM {t} ORDER BY id DESC LIMIT 1, 2 BY lang LIMIT 3
SELECT id, w FROM {t} WHERE id < 10 ORDER BY id WITH FILL STEP 2
SELECT arrayJoin(tags) AS tag, id FROM {t} ORDER BY id, tag LIMIT 5
SELECT id, row_number() OVER (PARTITION BY lang ORDER BY s DESC, id) AS r FROM {t} WHERE id < 50 ORDER BY lang, r
SELECT id FROM {t} QUALIFY row_number() OVER (PARTITION BY lang ORDER BY L2Distance(e, {q:Array(Float32)}), id) = 1 ORDER BY id
SELECT count() FROM {t}
SELECT count(), sum(w), avg(w), min(url), max(s), uniq(lang), uniqExact(url), median(s) FROM {t} WHERE w > 2
SELECT count(), sum(w), avg(w), max(url) FROM {t} WHERE 0
SELECT max(_row), min(_row) FROM {t}
SELECT sum(w * 2), sum(w + 1), max(w) + min(w), count(w), sum(1) FROM {t}
SELECT lang, count() AS c, sum(w) FROM {t} GROUP BY lang ORDER BY c DESC, lang
SELECT lang, w, count() FROM {t} GROUP BY 1, 2 HAVING count() > 10 ORDER BY lang, w LIMIT 5
SELECT lower(lang) AS lang, any(url), anyLast(url), groupArray(id), argMin(url, w) FROM {t} GROUP BY lang ORDER BY lang
SELECT groupArrayIf(id, w = 2), groupUniqArray(lang), groupArray(3)(url) FROM {t}
SELECT toDate(ts) AS day, count(DISTINCT w), max(L2Distance(e, {q:Array(Float32)})) AS d FROM {t} GROUP BY day ORDER BY d, day
SELECT lang, w % 2 AS odd, count() FROM {t} GROUP BY ALL ORDER BY ALL
SELECT lang, count() FROM {t} GROUP BY lang WITH ROLLUP ORDER BY lang
SELECT lang, w, count() FROM {t} GROUP BY GROUPING SETS ((lang), (w), ()) ORDER BY ALL
SELECT arrayJoin(tags) AS tag, count() FROM {t} GROUP BY tag ORDER BY tag
SELECT if(w > 2, 'a', 'b') AS k, avg(s) FROM {t} GROUP BY k ORDER BY k SETTINGS max_threads = 2
SELECT multiIf(w = 1, 'x', w = 2, 'y', NULL) AS m, countIf(s > 3), sumIf(s, id > 9) FROM {t} GROUP BY m ORDER BY m
SELECT quantiles(0.1, 0.9)(s), sum(DISTINCT w), count(DISTINCT w, lang), sumMap(map(lang, 1)) FROM {t}
SELECT finalizeAggregation(sumState(w)), sumOrNull(w), minArray(e) FROM {t}
SELECT lang, sum(count()) OVER (), rank() OVER (ORDER BY count() DESC, lang) FROM {t} GROUP BY lang ORDER BY lang
SELECT count() FROM {t} HAVING count() > 1000
SELECT w, count() FROM {t} GROUP BY w ORDER BY w WITH FILL
SELECT DISTINCT lang FROM {t}
SELECT DISTINCT lang, w FROM {t} ORDER BY w, lang LIMIT 3
SELECT DISTINCT w + 1 AS x FROM {t} WHERE id < 60 ORDER BY x DESC
SELECT DISTINCT 1, lang FROM {t} ORDER BY lang
SELECT count() FROM (SELECT id FROM {t} ORDER BY L2Distance(e, {q:Array(Float32)}), _row LIMIT 10) WHERE id > 20
SELECT id FROM {t} WHERE id IN (SELECT id FROM {t} WHERE w = 3) ORDER BY id LIMIT 6
SELECT id FROM {t} WHERE w = (SELECT max(w) FROM {t}) ORDER BY id LIMIT 6
SELECT id, L2Distance(e, (SELECT e FROM {t} WHERE id = 7)) AS d FROM {t} ORDER BY d, id LIMIT 4
WITH {q:Array(Float32)} AS q, best AS (SELECT id, L2Distance(e, q) AS d FROM {t} ORDER BY d, id LIMIT 5) SELECT count(), sum(d) FROM best
SELECT a.id, b.n FROM (SELECT id, w FROM {t} WHERE id < 9) AS a JOIN (SELECT w, count() AS n FROM {t} GROUP BY w) AS b USING (w) ORDER BY id
SELECT id FROM (SELECT id FROM {t} WHERE id < 5 UNION ALL SELECT id FROM {t} WHERE id > 235) ORDER BY id
SELECT number, (SELECT count() FROM {t} WHERE w = 1) FROM numbers(2)
SELECT id FROM {t} WHERE url LIKE '%7' AND lang IN ('de', 'en') AND NOT (w = 3 OR id BETWEEN 10 AND 20)
SELECT id FROM {t} WHERE _row >= 37 AND _row < 45 AND w > 0
SELECT id FROM {t} WHERE 100 < _row AND _row <= 103
SELECT id FROM {t} WHERE _row = 77
SELECT count() FROM {t} WHERE ts < now() AND toDate(ts) < today()
