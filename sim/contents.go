package sim

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// This file compares a read model with the one of a run without faults, for a Harness
// without a Check.

// undisturbed calls the projection with each event once, in order, in a schema of its own,
// and returns the contents of that schema.
func (h Harness[E]) undisturbed(ctx context.Context, url string) (_ contents, err error) {
	s, err := newOwnSchema(ctx, url)
	if err != nil {
		return nil, err
	}
	defer func() {
		if dropped := s.drop(); err == nil {
			err = dropped
		}
	}()
	if err := h.setup(ctx, s.pool); err != nil {
		return nil, err
	}
	p := h.New(s.pool)
	for i, e := range h.Events {
		tx, err := dbconn.Begin(ctx, s.pool, nil)
		if err != nil {
			return nil, err
		}
		if err = invoke(orchestrator.ContextWithDelivery(ctx, orchestrator.Delivery{
			Projection: p.Name(), Assignment: orchestrator.Assignment{ReplicaSet: "sim", Generation: 1, TotalPartitions: 1},
			Position: int64(i + 1), Events: 1, Attempt: 1,
		}), p, handlerTx{tx}, []E{e}); err == nil {
			err = tx.Commit()
		}
		_ = tx.Rollback() // has no effect after a commit
		if err != nil {
			return nil, fmt.Errorf("sim: projection %q fails at Events[%d] in a run without faults: %w", p.Name(), i, err)
		}
	}
	c, err := contentsOf(ctx, s.pool)
	if err == nil && len(c) == 0 {
		err = fmt.Errorf("sim: Harness.Check is required: Setup creates no tables to compare")
	}
	return c, err
}

// contents are the sorted rows of the tables of a schema, as text.
type contents map[string][]string

// comparedSQL lists the tables of the schema, and of each the columns whose values do not
// depend on how often, when and in which order something was tried.
const comparedSQL = `
SELECT c.relname::text, coalesce(string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum), '')
  FROM pg_class c
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attidentity = ''
       AND NOT EXISTS (SELECT FROM pg_attrdef d WHERE d.adrelid = c.oid AND d.adnum = a.attnum AND a.attgenerated = ''
                          AND (pg_get_expr(d.adbin, d.adrelid) LIKE '%(%' OR pg_get_expr(d.adbin, d.adrelid) LIKE 'CURRENT_%'))
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
 GROUP BY 1`

func contentsOf(ctx context.Context, db *sql.DB) (contents, error) {
	columns := map[string]string{}
	err := scanAll(ctx, db, comparedSQL, func(rows *sql.Rows) error {
		var table, list string
		err := rows.Scan(&table, &list)
		columns[table] = list
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sim: list the tables of the read model: %w", err)
	}
	all := contents{}
	for table, list := range columns {
		all[table] = nil
		query := fmt.Sprintf(`SELECT row(%s)::text FROM %s`, list, sqltext.Quote(table))
		err := scanAll(ctx, db, query, func(rows *sql.Rows) error {
			var row string
			err := rows.Scan(&row)
			all[table] = append(all[table], row)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("sim: read table %s: %w", table, err)
		}
		slices.Sort(all[table])
	}
	return all, nil
}

func scanAll(ctx context.Context, db *sql.DB, query string, scan func(*sql.Rows) error) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// differ is the number of rows that an error names.
const differ = 3

// differs returns how got differs from the expected contents c.
func (c contents) differs(got contents) error {
	for _, table := range slices.Sorted(maps.Keys(c)) {
		missing, extra := notIn(c[table], got[table]), notIn(got[table], c[table])
		if len(missing) == 0 && len(extra) == 0 {
			continue
		}
		var parts []string
		if len(extra) > 0 {
			parts = append(parts, "has "+some(extra))
		}
		if len(missing) > 0 {
			parts = append(parts, "lacks "+some(missing))
		}
		return fmt.Errorf("table %s differs from a run without faults: it %s", table, strings.Join(parts, " and "))
	}
	return nil
}

// some returns the first few rows.
func some(rows []string) string {
	text := strings.Join(rows[:min(differ, len(rows))], " ")
	if more := len(rows) - differ; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// notIn returns the rows that are not among others, each as often as it is missing.
func notIn(rows, others []string) (left []string) {
	n := map[string]int{}
	for _, o := range others {
		n[o]++
	}
	for _, r := range rows {
		if n[r]--; n[r] < 0 {
			left = append(left, r)
		}
	}
	return left
}
