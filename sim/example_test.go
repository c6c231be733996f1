package sim_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/sim"
)

// A Deposit is an event of an account.
type Deposit struct {
	Account string
	Amount  int
}

// Balances adds up deposits. It is a plain projection that is not idempotent: an event that
// it gets twice counts twice.
type Balances struct{ db *sql.DB }

func (Balances) Name() string { return "balances" }

func (b Balances) Handle(ctx context.Context, d Deposit) error {
	_, err := b.db.ExecContext(ctx, addSQL, d.Account, d.Amount)
	return err
}

// SafeBalances writes the same in the transaction of the checkpoint.
type SafeBalances struct{ Balances }

func (SafeBalances) HandleTx(ctx context.Context, tx orchestrator.Tx, d Deposit) error {
	_, err := tx.ExecContext(ctx, addSQL, d.Account, d.Amount)
	return err
}

const addSQL = `
INSERT INTO balances (account, amount) VALUES ($1, $2)
    ON CONFLICT (account) DO UPDATE SET amount = balances.amount + excluded.amount`

// harness returns the harness of either projection.
func harness(projection func(db *sql.DB) orchestrator.Projection[Deposit]) sim.Harness[Deposit] {
	var events []Deposit
	for i := range 60 {
		events = append(events, Deposit{Account: fmt.Sprint("account ", i%7), Amount: 1 + i})
	}
	return sim.Harness[Deposit]{
		Setup: func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, `CREATE TABLE balances (account text PRIMARY KEY, amount integer NOT NULL)`)
			return err
		},
		New:         projection,
		Events:      events,
		AggregateID: func(d Deposit) string { return d.Account },
		Check: func(ctx context.Context, db *sql.DB, events []Deposit) error {
			want := 0
			for _, d := range events {
				want += d.Amount
			}
			var got int
			if err := db.QueryRowContext(ctx, `SELECT sum(amount) FROM balances`).Scan(&got); err != nil {
				return err
			}
			if got != want {
				return errors.New("the balances don't add up")
			}
			return nil
		},
		Seeds: 5,
	}
}

// testBalancesSurvive is the test of a projection. Name yours TestBalancesSurvive. Its
// failure prints the command that plays the seed again and the main facts, and names the
// page with the timeline.
func testBalancesSurvive(t *testing.T) {
	h := harness(func(db *sql.DB) orchestrator.Projection[Deposit] { return SafeBalances{Balances{db}} })
	h.Check = nil // compare with a run without faults
	h.Test(t)
}

func TestExample(t *testing.T) { testBalancesSurvive(t) }

// A test of a projection is one call: see testBalancesSurvive. Without a test, Run returns
// the *Failure.
func Example() {
	folder, err := os.MkdirTemp("", "failures")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(folder)

	h := harness(func(db *sql.DB) orchestrator.Projection[Deposit] { return Balances{db} })
	h.Folder, h.First = folder, 8 // Run ends at the first seed that fails
	var failure *sim.Failure
	if err := h.Run(context.Background()); errors.As(err, &failure) {
		fmt.Println("Balances:", failure.Err)
	}

	h = harness(func(db *sql.DB) orchestrator.Projection[Deposit] { return SafeBalances{Balances{db}} })
	fmt.Println("SafeBalances:", h.Run(context.Background()))
	// Output:
	// Balances: the balances don't add up
	// SafeBalances: <nil>
}
