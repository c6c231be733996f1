package store_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

type cyclic struct{ error }

func (c *cyclic) Unwrap() error { return c }

type isPanics struct{ error }

func (isPanics) Is(error) bool { panic("no") }

type known struct{ error }

func (known) Facts() protocol.Facts { return protocol.Facts{Failed: true, State: "40001"} }

// What is known of errors, as they are and wrapped, whatever else their chain holds.
func TestFactsOf(t *testing.T) {
	loop := &cyclic{errors.New("loop")}
	closed, err := sql.Open("postgres", "")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for _, c := range []struct {
		err  error
		want protocol.Facts
	}{
		{errors.New("any"), protocol.Facts{}},
		{&pq.Error{Code: "57014"}, protocol.Facts{State: "57014"}},
		{&pq.Error{Code: "no"}, protocol.Facts{}},
		{(*pq.Error)(nil), protocol.Facts{}},
		{driver.ErrBadConn, protocol.Facts{Lost: true}},
		{sql.ErrConnDone, protocol.Facts{Lost: true}},
		{sql.ErrTxDone, protocol.Facts{Done: true}},
		{io.EOF, protocol.Facts{Network: true}},
		{context.DeadlineExceeded, protocol.Facts{Deadline: true}},
		{context.Canceled, protocol.Facts{Canceled: true}},
		{closed.PingContext(t.Context()), protocol.Facts{Closed: true}},
		{store.ErrSuperseded, protocol.Facts{Refused: true}},
		{store.ErrTransactionEnded, protocol.Facts{Ended: true}},
		{loop, protocol.Facts{}},
		{isPanics{errors.New("x")}, protocol.Facts{}},
		{errors.Join(isPanics{errors.New("x")}, &pq.Error{Code: "40P01"}), protocol.Facts{State: "40P01"}},
		{&store.PermanentError{Err: errors.New("x")}, protocol.Facts{Final: true}},
		{&store.PermanentError{Err: &pq.Error{Code: "40P01"}}, protocol.Facts{Final: true, State: "40P01"}},
		{&store.PermanentError{Err: isPanics{errors.New("x")}}, protocol.Facts{Final: true}},
		{&store.PermanentError{Err: (*pq.Error)(nil)}, protocol.Facts{Final: true}},
		{errors.Join(isPanics{errors.New("x")}, &store.PermanentError{Err: errors.New("x")}), protocol.Facts{Final: true}},
		{known{&pq.Error{Code: "42P01"}}, protocol.Facts{State: "40001"}},
	} {
		c.want.Failed = true
		for _, err := range []error{c.err, fmt.Errorf("wrapped: %w", c.err), errors.Join(errors.New("other"), c.err), errors.Join(c.err, loop)} {
			if diff := cmp.Diff(c.want, store.FactsOf(err)); diff != "" {
				t.Errorf("%T (-want +got):\n%s", c.err, diff)
			}
		}
	}
	if f := store.FactsOf(nil); f.Failed {
		t.Error("nil is a failure")
	}
}
