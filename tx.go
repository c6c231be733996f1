package orchestrator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/rawtx"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A handlerTx is the Tx of handlers. It is not a *sql.Tx, so that a type assertion gives a
// handler nothing more, and it notices what a handler must not do.
type handlerTx struct {
	tx *dbconn.Tx

	mu     sync.Mutex
	rows   []*sql.Rows // of the call under way
	copies []*sql.Stmt // of the call under way: COPY … FROM STDIN, as lib/pq has it
	ended  error       // a statement that was refused
	raw    int         // calls of Raw that are under way
}

// SQLTx returns the *sql.Tx to package rawtx.
func (t *handlerTx) SQLTx(rawtx.Key) *sql.Tx { return t.tx.Tx }

var errCopyOpen = errors.New("the handler left a COPY open: call Exec without arguments, then Close, before it returns")

// endCopies ends each COPY that the handler has left open, which would block the connection.
// It returns errCopyOpen if there was one, or the server's error about it.
func (t *handlerTx) endCopies(patience time.Duration) error {
	if len(t.copies) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	copies := t.copies
	t.copies = nil
	return t.tx.During(ctx, func() (err error) {
		for _, stmt := range copies {
			_, failed := stmt.ExecContext(ctx) // an error if it has ended
			var answer interface{ SQLState() string }
			switch {
			case failed == nil:
				err = errCopyOpen
			case errors.As(failed, &answer):
				err = failed
			}
			_ = stmt.Close()
		}
		return err
	})
}

var errRowsOpen = errors.New("the handler left the rows of a query open: close them before it returns (defer rows.Close())")

func (t *handlerTx) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if err := t.check(query); err != nil {
		return nil, err
	}
	return t.tx.ExecContext(ctx, query, args...)
}

func (t *handlerTx) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	if err := t.check(query); err != nil {
		return nil, err
	}
	stmt, err := t.tx.PrepareContext(ctx, query)
	if sqltext.FirstWord(query) == "COPY" && err == nil {
		t.mu.Lock()
		t.copies = append(t.copies, stmt)
		t.mu.Unlock()
	}
	return stmt, err
}

func (t *handlerTx) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if err := t.check(query); err != nil {
		return nil, err
	}
	rows, err := t.tx.QueryContext(ctx, query, args...)
	if err == nil {
		t.mu.Lock()
		t.rows = append(t.rows, rows)
		t.mu.Unlock()
	}
	return rows, err
}

// QueryRowContext can't return an error. The row of a statement that is refused has the error
// of a cancelled context, and settle returns the reason.
func (t *handlerTx) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if t.check(query) != nil {
		never, cancel := context.WithCancel(ctx)
		cancel()
		return t.tx.QueryRowContext(never, query, args...)
	}
	return t.tx.QueryRowContext(ctx, query, args...)
}

// Raw implements Tx. The error of f is the program's: see usercode.go.
func (t *handlerTx) Raw(f func(driverConn any) error) error {
	if err := t.check(""); err != nil {
		return err
	}
	t.raws(1)
	defer t.raws(-1)
	var err, failed error
	taken := t.tx.Raw(func(conn any) (broken bool) {
		if failed = contained(func() { err = f(conn) }); failed != nil {
			return true // anything may be under way on it
		}
		if dbconn.Busy(conn) {
			failed = errBusy
		}
		return failed != nil || store.FactsOf(err).Lost
	})
	switch {
	case failed != nil:
		failed = fmt.Errorf("Tx.Raw: %w", failed)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.ended = failed // whatever the handler returns
		return failed
	case taken != nil:
		return taken
	}
	return err
}

// raws counts the calls of Raw that are under way.
func (t *handlerTx) raws(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.raw += n
}

var (
	errBusy    = errors.New("the connection is busy: end what was begun on it before the function returns")
	errRawOpen = errors.New("the handler has returned while Tx.Raw was under way: wait for it")
)

var errInRaw = errors.New("Tx.Raw is under way: until it has returned, nothing else can be done in the transaction")

var errEndsTx = errors.New("a handler can't end its transaction, which commits with the checkpoint: return an error to have it rolled back")

// check refuses a statement that would end the transaction, and one that would never get the
// connection.
func (t *handlerTx) check(query string) error {
	word := sqltext.EndsTransaction(query)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case word != "":
		t.ended = fmt.Errorf("%s: %w", word, errEndsTx)
		return t.ended
	case t.raw > 0:
		t.ended = errInRaw
		return t.ended
	}
	return nil
}

// settle returns the error of a call of a handler that has returned err, with what it has left
// open, and prepares for the next call.
func (t *handlerTx) settle(err error, patience time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	open := false
	for i, r := range t.rows {
		open, t.rows[i] = isOpen(r) || open, nil
	}
	switch { // to pgx a connection with open rows is as good as a lost one
	case open && err == nil:
		err = errRowsOpen
	case open && store.FactsOf(err).Lost:
		err = fmt.Errorf("%w (%s)", errRowsOpen, err.Error())
	}
	if failed := t.endCopies(patience); err == nil {
		err = failed
	}
	if t.raw > 0 && t.ended == nil {
		t.ended = errRawOpen
	}
	if t.ended != nil {
		err = t.ended
	}
	t.rows, t.ended = t.rows[:0], nil
	return err
}

// isOpen reports whether rows were not closed. Rows whose context has ended are being closed.
// After a Scan into sql.RawBytes that waits until Close is called, and Columns waits for it.
func isOpen(r *sql.Rows) bool {
	open := make(chan bool, 1)
	go func() {
		_, closed := r.Columns()
		open <- closed == nil
	}()
	patience := time.NewTimer(rowsPatience)
	defer patience.Stop()
	select {
	case is := <-open:
		return is
	case <-patience.C:
	}
	_ = r.Close()
	return <-open
}

// rowsPatience is how long to wait for the answer whether rows are open.
const rowsPatience = 100 * time.Millisecond
