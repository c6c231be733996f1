package sim

import (
	"errors"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A handler's transaction ends as the model's transaction does, however that ends. The
// model notices what the handler has done to it.
func TestSubjectTransaction(t *testing.T) {
	t.Parallel()
	_, url := pgtest.Database(t)
	commit := func(c *subjectConnection) (err error) {
		c.commit(func(e error) { err = e })
		return err
	}
	for _, tt := range []struct {
		name     string
		handler  string // its last statement
		end      func(d *subjectDatabase, c *subjectConnection) error
		state    string // of the error, or
		is       error  // the error
		survives bool   // what the handler wrote is there afterwards
	}{
		{"a commit", "", func(_ *subjectDatabase, c *subjectConnection) error { return commit(c) }, "", nil, true},
		{"a lost connection", "", func(_ *subjectDatabase, c *subjectConnection) error { c.close(); return nil }, "", nil, false},
		{"a restart", "", func(d *subjectDatabase, _ *subjectConnection) error { d.restart(); return nil }, "", nil, false},
		{"a checkpoint without a COMMIT", "", func(_ *subjectDatabase, c *subjectConnection) error {
			err := written(c)
			c.close()
			return err
		}, "", store.ErrSuperseded, false},
		{"the model's failure", "", func(_ *subjectDatabase, c *subjectConnection) error { c.spoil(); return commit(c) }, "25P02", nil, false},
		{"a failed statement", "SELECT 1 / 0", func(_ *subjectDatabase, c *subjectConnection) error { return written(c) }, "25P02", nil, false},
		{"a transaction that was ended", "COMMIT; BEGIN", func(_ *subjectDatabase, c *subjectConnection) error { return written(c) }, "", store.ErrTransactionEnded, true},
		{"a constraint checked at COMMIT", "INSERT INTO rows VALUES (1)", func(_ *subjectDatabase, c *subjectConnection) error { return commit(c) }, "23503", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := &world{plan: planOf(1, options{postgres: true})}
			d, err := newSubjectDatabase(t.Context(), url, w)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := d.close(); err != nil {
					t.Error(err)
				}
			})
			if _, err := d.real.pool.ExecContext(t.Context(), `CREATE TABLE rows (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)`); err != nil {
				t.Fatal(err)
			}
			c := d.connect().(*subjectConnection)
			c.begin(func(e error) { err = e })
			tx, errTx := c.tx()
			if err := errors.Join(err, errTx); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.ExecContext(t.Context(), `INSERT INTO rows VALUES (1)`); err != nil {
				t.Fatal(err)
			}
			if tt.handler != "" {
				_, _ = tx.ExecContext(t.Context(), tt.handler) // the handler ignores its error
			}
			if again, err := c.tx(); tt.handler == "" && (err != nil || again.(handlerTx) != tx.(handlerTx)) {
				t.Errorf("the second event of a batch has another transaction, %v", err)
			}
			err = tt.end(d, c)
			if got := store.State(err); got != tt.state || tt.state == "" && !errors.Is(err, tt.is) {
				t.Errorf("it ended with %v", err)
			}
			if d.real.open > 0 && tt.handler == "" {
				t.Errorf("%d transactions are open", d.real.open)
			}
			c.close()
			var n int
			if err := d.real.pool.QueryRowContext(t.Context(), `SELECT count(*) FROM rows`).Scan(&n); err != nil || n > 0 != tt.survives {
				t.Errorf("%d rows are there, %v", n, err)
			}
		})
	}
}

// written returns the error of a move of the checkpoint.
func written(c *subjectConnection) (err error) {
	c.write(store.Lane{Projection: "p", Assignment: protocol.Assignment{Generation: 1, Total: 1}}, protocol.Checkpoint{}, protocol.Checkpoint{Position: 1},
		func(e error) { err = e })
	return err
}
