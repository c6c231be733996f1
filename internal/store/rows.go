package store

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// Rows are checked when they are read: a role that may write them may
// write anything, by hand as well. schema.sql has the same rules as constraints.
// A row that breaks one is an error that names it, and must never be a panic: that would
// happen in every process that reads the row.

// A RowError names the column of a row that has an invalid value, and what to do.
type RowError struct {
	Table, Row, Column string
	Err                error
}

func (e *RowError) Error() string {
	return fmt.Sprintf("table %s, row (%s), column %s: %v; %s", e.Table, e.Row, e.Column, e.Err, remedies[e.Table])
}

func (e *RowError) Unwrap() error { return e.Err }

// remedies are what to do about a bad row of a table.
var remedies = map[string]string{
	tableSets:        "correct the row by hand",
	tableWorkers:     "delete the row (a worker that is alive joins again)",
	tableReports:     "delete the row (the worker writes another)",
	tableCheckpoints: "correct the row by hand, or restore it from a backup",
	tableHistory:     "delete the row (nothing depends on it)",
	tableParked:      "correct the row by hand",
	tableParkOrders:  "delete the row, and give the order again",
}

const (
	tableSets        = "orchestrator_replica_sets"
	tableWorkers     = "orchestrator_workers"
	tableReports     = "orchestrator_reports"
	tableCheckpoints = "orchestrator_checkpoints"
	tableHistory     = "orchestrator_history"
	tableParked      = "orchestrator_parked"
	tableParkOrders  = "orchestrator_park_orders"
)

// A Row checks the columns of one row and keeps the first error.
type Row struct {
	table, row string
	Err        error
}

// RowOf begins to check a row of a table (its name without "orchestrator_"), which
// its key names.
func RowOf(table string, key ...any) *Row {
	var parts []string
	for _, k := range key {
		if text, ok := k.(string); ok {
			k = fmt.Sprintf("%q", text)
		}
		parts = append(parts, fmt.Sprint(k))
	}
	return &Row{table: "orchestrator_" + table, row: strings.Join(parts, ", ")}
}

func (r *Row) fail(column string, err error) {
	if r.Err == nil && err != nil {
		r.Err = &RowError{r.table, r.row, column, err}
	}
}

// Scanned takes the error of a Scan. One of a conversion names the column itself.
func (r *Row) Scanned(err error) *Row {
	if r.Err == nil && err != nil {
		r.Err = err
		if text := err.Error(); State(err) == "" && strings.HasPrefix(text, "sql: Scan error") {
			column := "?"
			if _, rest, ok := strings.Cut(text, `name "`); ok {
				column, _, _ = strings.Cut(rest, `"`)
			}
			table := r.table
			if other, ok := elsewhere[column]; ok {
				table = other
			}
			if strings.HasSuffix(text, "time.Time") {
				err = fmt.Errorf("a time must be finite (%w)", err)
			}
			r.Err = &RowError{table, r.row, column, err}
		}
	}
	return r
}

// elsewhere are columns that come from another table than the rest of their row.
var elsewhere = map[string]string{"step_at": tableSets, "reported_at": tableReports, "since": tableReports, "parked_since": tableParked}

// Range demands that low <= value <= high.
func (r *Row) Range(column string, value, low, high int64) *Row {
	if value < low || value > high {
		r.fail(column, fmt.Errorf("is %d; it must be between %d and %d", value, low, high))
	}
	return r
}

// AtLeast demands that low <= value.
func (r *Row) AtLeast(column string, value, low int64) *Row {
	if value < low {
		r.fail(column, fmt.Errorf("is %d; it must be at least %d", value, low))
	}
	return r
}

// Total demands a number of partitions.
func (r *Row) Total(value int, least int64) *Row {
	return r.Range("total", int64(value), least, protocol.Slots)
}

// Time demands a time that JSON can show: one in a year of four digits.
func (r *Row) Time(column string, t time.Time) *Row {
	if t.Year() < 1 || t.Year() > 9999 {
		r.fail(column, fmt.Errorf("is in the year %d; it must be between 1 and 9999", t.Year()))
	}
	return r
}

// Partitions reads a list of different numbers below total.
func (r *Row) Partitions(column, text string, total int) (list []int) {
	list, err := decode[int](text)
	seen := make(map[int]bool, len(list))
	for _, p := range list {
		switch {
		case err != nil:
		case p < 0 || p >= total:
			err = fmt.Errorf("is %s; with %d partitions there is no partition %d", shortened(text), total, p)
		case seen[p]:
			err = fmt.Errorf("is %s; partition %d is there twice", shortened(text), p)
		}
		seen[p] = true
	}
	if err != nil {
		r.fail(column, err)
		return nil
	}
	return list
}

// Strings reads a list of texts.
func Strings[T ~string](r *Row, column, text string) []T {
	list, err := decode[T](text)
	r.fail(column, err)
	return list
}

// Positions reads {"name": position, ...}.
func (r *Row) Positions(column, text string) map[string]int64 {
	var numbers map[string]*int64
	err := json.Unmarshal([]byte(text), &numbers)
	if err == nil && numbers == nil {
		err = errors.New("is null; it must be an object")
	}
	positions := make(map[string]int64, len(numbers))
	for _, name := range slices.Sorted(maps.Keys(numbers)) {
		switch n := numbers[name]; {
		case err != nil:
		case n == nil || *n < 0:
			err = fmt.Errorf("is %s; the position of %q can't be null or negative", shortened(text), name)
		default:
			positions[name] = *n
		}
	}
	r.fail(column, err)
	return positions
}

// Members reads {"worker": [partition, ...], ...}.
func (r *Row) Members(column, text string, total int) map[string][]int {
	var lists map[string]json.RawMessage
	err := json.Unmarshal([]byte(text), &lists)
	if err == nil && lists == nil {
		err = errors.New("is null; it must be an object")
	}
	r.fail(column, err)
	members := make(map[string][]int, len(lists))
	for _, name := range slices.Sorted(maps.Keys(lists)) {
		members[name] = r.Partitions(column, string(lists[name]), total)
	}
	return members
}

// JSON reads anything else.
func (r *Row) JSON(column string, text []byte, v any) {
	if err := json.Unmarshal(text, v); err != nil {
		r.fail(column, fmt.Errorf("is %s: %w", shortened(string(text)), err))
	}
}

// Marks reads [[slot, position], ...] of a partition; NULL is none.
func (r *Row) Marks(ahead sql.NullString, partition, total int) []protocol.Mark {
	if r.Err != nil || !ahead.Valid || ahead.String == "null" {
		return nil
	}
	pairs, err := decode[[]*int64](ahead.String)
	seen := make(map[int64]bool, len(pairs))
	marks := make([]protocol.Mark, 0, len(pairs))
	for _, p := range pairs {
		if len(p) != 2 || p[0] == nil || p[1] == nil {
			err = fmt.Errorf("is %s; it must be a list of pairs of a slot and a position", shortened(ahead.String))
			break
		}
		slot, position := *p[0], *p[1]
		switch {
		case slot < 0 || slot >= protocol.Slots:
			err = fmt.Errorf("there is no slot %d", slot)
		case slot%int64(total) != int64(partition):
			err = fmt.Errorf("slot %d is not of partition %d of %d", slot, partition, total)
		case seen[slot]:
			err = fmt.Errorf("slot %d is there twice", slot)
		case position < 0:
			err = fmt.Errorf("the position of slot %d is %d; it can't be negative", slot, position)
		}
		if err != nil {
			break
		}
		seen[slot] = true
		marks = append(marks, protocol.Mark{Slot: int(slot), Position: position})
	}
	if err != nil {
		r.fail("ahead", err)
		return nil
	}
	return marks
}

// decode reads a JSON list without nulls; an empty one is nil.
func decode[T any](text string) (list []T, err error) {
	var found []*T
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		return nil, fmt.Errorf("is %s: %w", shortened(text), err)
	}
	if found == nil {
		return nil, errors.New("is null; it must be a list")
	}
	for _, v := range found {
		if v == nil {
			return nil, fmt.Errorf("is %s; nothing in it can be null", shortened(text))
		}
		list = append(list, *v)
	}
	return list, nil
}

func shortened(text string) string {
	if len(text) > 100 {
		text = strings.ToValidUTF8(text[:100], "") + "..."
	}
	return text
}

// maxMicroseconds is the longest time that a Duration holds.
const maxMicroseconds = math.MaxInt64 / int64(time.Microsecond)

// Foreseen adds what to do to an error of the server or the driver about a value in the tables
// (a number out of range, or infinity), which names no row.
func Foreseen(err error) error {
	if err != nil && (Unstorable(err) || strings.Contains(err.Error(), "infinity")) {
		return fmt.Errorf("%w (a row of the library's tables may have an invalid value: apply schema.sql, which names it; rows of orchestrator_reports can be deleted)", err)
	}
	return err
}
